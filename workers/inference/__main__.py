"""Run an inference worker: `python -m workers.inference`.

This does the same as `celery -A core.broker.celery_app worker -P solo`, with two differences.
Settings and servers are checked before torch is imported. Celery's gossip and mingle are off, and
so is Celery's own heartbeat unless the setting `remote_control` is on.
"""

import gc
import os
import socket
import sys

from core.startup import check, errors_end_the_program, load_settings


def main() -> None:
    """Check settings and servers, then run an inference worker until SIGTERM or SIGINT.

    The worker finishes its current message first.
    """
    # collections would find nothing while modules are imported, and take a tenth of that time
    gc.disable()  # until `InferenceWorker.start`
    with errors_end_the_program():
        settings = load_settings()
        check(settings)
    from core.broker.celery_app import app  # noqa: PLC0415 - a refused start is quick

    worker = app.Worker(
        hostname=f"inference-{os.getpid()}@{socket.gethostname()}",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=not settings.remote_control,
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
