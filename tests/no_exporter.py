"""Exit with status 1 if what API and workers import includes an exporter of OpenTelemetry.

`tests/service/test_tracing.py` forks it from the process that has imported all of it.
"""

import importlib
import sys

for module in ("tests.preloaded", "workers.inference.worker"):
    importlib.import_module(module)
sys.exit(any(name.startswith("opentelemetry.exporter") for name in sys.modules))
