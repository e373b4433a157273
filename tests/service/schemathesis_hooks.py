"""Hooks of the schemathesis command, which loads this file by `SCHEMATHESIS_HOOKS`."""

import re
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give requests with a deadline a minute: a deadline of a millisecond is a 504 on any route."""
    deadline = str((case.headers or {}).get("Request-Timeout"))
    if re.fullmatch(r"\d+(\.\d+)?", deadline) and float(deadline) < 60:
        case.headers["Request-Timeout"] = "60"
