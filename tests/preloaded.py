"""Import what the processes of a `Stack` need: `tests/forked.py` forks them from this state."""

import gc
import importlib

for module in ("api.server", "workers.inference.tasks", "workers.training.worker"):
    importlib.import_module(module)

# collections in a forked process would copy every page that they mark
gc.collect()
gc.freeze()
