"""`python -m workers.inference`: one inference worker."""

import os

# two spinning OpenMP threads on a busy machine cost up to 25 times the work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import signal
import sys
import warnings

import torch
from celery import signals as celery_signals
from celery.platforms import SecurityWarning

from core.log import set_up
from core.startup import QueueGuard, check, errors_end_the_program, load_settings
from models.kit import malloc
from workers.inference.tasks import Worker


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    with errors_end_the_program():
        chosen = load_settings()
        check(chosen)
    set_up(chosen.log_level, "worker")
    celery_signals.setup_logging.connect(lambda **_said: None, weak=False)  # or Celery sets the root's level to its own
    warnings.simplefilter("ignore", SecurityWarning)  # in a container the worker is root of nothing
    torch.set_num_threads(1)
    malloc.keep_freed_memory()
    guard = QueueGuard(chosen, lambda: os.kill(os.getpid(), signal.SIGTERM))
    guard.start()
    Worker(chosen).start()
    sys.exit(guard.exit_status())


if __name__ == "__main__":
    main()
