"""`models.kit.features`: outputs, preprocessing and weights of a pretrained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.kit import features


def test_lite0_halves_its_pictures_as_tensorflow_does() -> None:
    """EfficientNet-Lite0 has a stem and four stages; an odd padding pixel goes to
    the right and below.
    """
    network = features.EfficientNetLite0()
    images = torch.rand(1, 3, 64, 48)
    found = network(images)
    assert [tuple(one.shape[1:]) for one in found] == [
        (32, 32, 24),
        (16, 32, 24),
        (24, 16, 12),
        (40, 8, 6),
        (80, 4, 3),
    ]
    stem = network.convolutions[0]
    assert isinstance(stem, nn.Conv2d)
    padded = functional.pad((images * 255 - 127) / 128, (0, 1, 0, 1))
    torch.testing.assert_close(found[0], functional.relu6(functional.conv2d(padded, stem.weight, stem.bias, 2)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """Saved and loaded weights give the same features; other shapes or
    missing names are rejected.
    """
    network = features.EfficientNetLite0()
    names = {name.removeprefix("convolutions."): value.numpy() for name, value in network.state_dict().items()}
    path = tmp_path / "weights.npz"
    np.savez(path, **names)
    again = features.load(features.EfficientNetLite0(), path)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(images)[-1], network(images)[-1])
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(ValueError, match=r"weights\.npz holds the weights of another network"):
        features.load(features.EfficientNetLite0((features.Stage(1, 5, 1, 1, 16),)), path)
