"""`python -m workers`: one inference worker."""

import os

# two spinning OpenMP threads on a busy machine cost up to 25 times the work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import warnings

import torch
from celery import signals
from celery.platforms import SecurityWarning

from models.kit import memory
from workers.logs import set_up
from workers.settings import settings
from workers.tasks import Worker


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    chosen = settings()
    set_up(chosen.log_level, "worker")
    signals.setup_logging.connect(lambda **_said: None, weak=False)  # or Celery sets the root's level to its own
    warnings.simplefilter("ignore", SecurityWarning)  # in a container the worker is root of nothing
    torch.set_num_threads(1)
    memory.keep_freed()
    Worker(chosen).start()


if __name__ == "__main__":
    main()
