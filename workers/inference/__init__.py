"""Run inference workers: Celery workers that keep models in memory and run them with torch."""

import os

# read when torch loads OpenMP: two spinning threads on a busy machine cost up to 25 times the work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
