"""Write the OpenAPI description of this checkout's API to a file: `python -m studio.describe FILE`.

No service needs to run.
"""

import sys
import tempfile
from pathlib import Path

import orjson

from api.app import create_app
from core.settings import Settings


def main() -> None:
    """Write the description to the file that the first argument names."""
    with tempfile.TemporaryDirectory() as state:
        description = create_app(Settings(state=Path(state), log_level="error")).openapi()
    Path(sys.argv[1]).write_bytes(orjson.dumps(description))


if __name__ == "__main__":
    main()
