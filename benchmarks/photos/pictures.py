"""Test photographs of upscaling: five that scikit-image ships; none is used for training."""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
NAMES = tuple(file.split(".")[0] for file in FILES)


def photograph(name: str) -> np.ndarray:
    """Return a test photograph by name, 8-bit RGB."""
    file = FILES[NAMES.index(name)]
    with Image.open(Path(skimage.__file__).parent / "data" / file) as picture:
        return np.asarray(picture.convert("RGB"))
