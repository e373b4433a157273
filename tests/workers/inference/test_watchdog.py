"""The watchdog in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.stack import ROOT

PROGRAM = """
import ctypes, sys, threading, time
from workers.inference.watchdog import Watchdog

dog = Watchdog(1.0)

def beat():
    while True:
        dog.check()
        time.sleep(0.1)

threading.Thread(target=beat, daemon=True).start()
time.sleep(0.3)
{act}
print("through", flush=True)
"""


@pytest.mark.parametrize(
    ("act", "through"),
    [
        ("time.sleep(2)", True),
        ("with dog.working('a'):\n    for _ in range(10): time.sleep(0.3); dog.advance()", True),
        ("for _ in range(5):\n    with dog.working('a'): time.sleep(0.5)", True),
        ("with dog.working('a'): time.sleep(20)", False),
        ("with dog.working('a'): ctypes.PyDLL(None).sleep(20)", False),
        ("with dog.working('a'):\n    dog.advance(); ctypes.PyDLL(None).sleep(20)", False),
    ],
    ids=["idle", "advancing", "short pieces", "hangs", "hangs with the lock", "hangs after a step"],
)
def test_only_work_that_does_not_advance_is_ended(act: str, through: bool) -> None:
    """A program without progress exits with status 1 and a traceback; others end normally."""
    program = PROGRAM.format(act=act)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "through" in done.stdout) == ((0, True) if through else (1, False)), done.stderr
    assert ("Timeout" in done.stderr) == (not through)
