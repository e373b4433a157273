"""Configure logging: structlog and `logging` write one JSON object per line on standard error."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import orjson
import structlog

log = logging.getLogger(__name__)


def set_up(level: str, part: str) -> None:
    """Configure logging of this process.

    `level` is the minimum level; every line has the field `part`, the name of the process's role,
    such as "api".
    """

    def named(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        event["part"] = part
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        named,
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str).decode()),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("celery", "kombu", "amqp", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def best_effort(act: Callable[[], object]) -> None:
    """Call `act`; if it raises an exception, log the exception as a warning and return.

    Use this for work that is repeated later anyway.
    """
    try:
        act()
    except Exception:
        log.warning("will be tried again", exc_info=True)
