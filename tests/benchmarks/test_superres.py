"""The benchmark of upscaling: metrics against scikit-image's and closed forms, and a short run of
each script.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import metrics as reference
from torch import nn
from torch.nn import functional

from tests.benchmarks.modules import Importer


@pytest.mark.parametrize(("name", "expected"), [("astronaut", 26.84), ("chelsea", 31.47), ("coffee", 27.29)])
def test_bicubic_reproduces_the_known_figures(module: Importer, name: str, expected: float) -> None:
    """Pillow's bicubic filter at ×4 gives the PSNR in the literature, to 0.05 dB."""
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    original = metrics.cropped(pictures.photograph(name), 4)
    low = metrics.downscaled(original, 4)
    assert metrics.psnr(metrics.resized(low, *original.shape[:2]), original) == pytest.approx(expected, abs=0.05)


def test_psnr_and_ssim_are_those_of_scikit_image(module: Importer) -> None:
    """PSNR and SSIM of the luma without its border agree with scikit-image; equal images have no
    error.
    """
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    original = metrics.cropped(pictures.photograph("chelsea"), 4)
    worse = metrics.resized(metrics.downscaled(original, 4), *original.shape[:2])
    inner = slice(metrics.BORDER, -metrics.BORDER)
    a, b = (metrics.luma(one)[inner, inner] for one in (worse, original))
    expected_psnr = reference.peak_signal_noise_ratio(b, a, data_range=255)  # type: ignore[no-untyped-call]
    assert metrics.psnr(worse, original) == pytest.approx(expected_psnr)
    expected = reference.structural_similarity(  # type: ignore[no-untyped-call]
        b, a, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(worse, original) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(original, original) == pytest.approx(1.0)
    assert metrics.psnr(original, original) == math.inf


def test_psnr_of_a_benchmark_set(module: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Originals are cropped to the size of the low resolution, and the regression exceeds bicubic
    interpolation.
    """
    superres, metrics, pictures = module("superres"), module("photos.metrics"), module("photos.pictures")
    original = pictures.photograph("chelsea")[60:157, 80:175]
    low = metrics.downscaled(np.ascontiguousarray(original[:96, :94]), 2)
    (tmp_path / "Cats").mkdir()
    Image.fromarray(original).save(tmp_path / "Cats" / "one_HR.png")
    Image.fromarray(low).save(tmp_path / "Cats" / "one_LR_x2.png")
    superres.psnr(superres.CHECKPOINT, tmp_path, ["Cats"], [2])
    found = json.loads(capsys.readouterr().out)
    expected = metrics.psnr(metrics.resized(low, 96, 94), original[:96, :94])
    assert (found["set"], found["scale"], found["pictures"]) == ("Cats", 2, 1)
    assert found["bicubic"] == pytest.approx(expected, abs=0.1)  # a border of 2 pixels instead of 4
    assert found["regression"] > found["bicubic"] + 1.0


def test_vgg_gives_every_rectified_layer(module: Importer) -> None:
    """VGG-16 has thirteen outputs in five sizes; the first is the ReLU of a convolution of BGR
    minus the mean.
    """
    network = module("photos.vgg").VGG16()
    images = torch.rand(2, 3, 32, 32)
    found = network(images)
    assert [one.shape[1] for one in found] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [one.shape[2] for one in found] == [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    levels = images[:, [2, 1, 0]] * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    first = network.convolutions[0]
    assert isinstance(first, nn.Conv2d)
    expected = functional.conv2d(levels, first.weight, first.bias, padding=1).relu()
    torch.testing.assert_close(found[0], expected)


def test_distance_is_that_of_unit_features(module: Importer) -> None:
    """The distance is 0 for equal images and at most 4, with one number per image and stage."""
    vgg = module("photos.vgg")
    network = vgg.VGG16().requires_grad_(requires_grad=False)
    first, second = torch.rand(2, 2, 3, 32, 32)
    assert float(vgg.distances(network, first, first).abs().max()) == 0
    found = vgg.distances(network, first, second)
    assert found.shape == (2, 13)
    assert bool(((found > 0) & (found <= 4)).all())


def test_luma_spans_16_to_235(module: Importer) -> None:
    """Black, white and green have the luma of BT.601."""
    luma = module("photos.metrics").luma
    colours = np.array([[[0, 0, 0], [255, 255, 255], [0, 255, 0]]], np.uint8)
    assert luma(colours)[0] == pytest.approx([16.0, 235.0, 144.553])


def test_energies_of_a_blurred_picture_are_lower(module: Importer) -> None:
    """An image has energies 1; blurred it loses most of the finest octave and less of the next."""
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    original = metrics.cropped(pictures.photograph("coffee"), 4)
    blurred = metrics.resized(metrics.downscaled(original, 2), *original.shape[:2])
    same, less = metrics.energies(original, original), metrics.energies(blurred, original)
    assert (same.gradient, same.octave_1, same.octave_2) == pytest.approx((1, 1, 1))
    assert less.octave_1 < 0.5 * less.octave_2 < 0.5
    assert less.gradient < 1


def test_consistency_is_of_the_picture_made_small(module: Importer) -> None:
    """An original is consistent with its own reduction, a flipped one is not."""
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    original = metrics.cropped(pictures.photograph("astronaut"), 4)
    low = metrics.downscaled(original, 4)
    assert metrics.consistency(original, low) == math.inf
    assert metrics.consistency(original[::-1], low) < 20


def test_the_largest_cell_separates_a_lattice_from_texture(module: Importer) -> None:
    """A wave has all power in one cell, two waves half, white noise little; a lattice in noise has
    its share of the power.
    """
    largest_cell = module("photos.metrics").largest_cell
    y, x = np.mgrid[:192, :256]
    noise = np.random.default_rng(1).normal(0, 1, y.shape)
    wave = np.sqrt(2) * np.cos(2 * np.pi * (0.32 * y + 0.47 * x))
    share, at = largest_cell(wave)
    assert share == pytest.approx(1, abs=1e-3)
    assert sorted(abs(frequency) for frequency in at) == pytest.approx([0.32, 0.47], abs=1 / 32)
    assert largest_cell(wave + np.sqrt(2) * np.cos(2 * np.pi * 0.1 * x))[0] == pytest.approx(0.5, abs=0.01)
    assert largest_cell(noise)[0] < 0.02
    assert largest_cell(5 * wave + 7)[0] == pytest.approx(1, abs=1e-3)
    for strength in (0.25, 0.5):
        expected = strength**2 / (1 + strength**2)
        assert largest_cell(noise + strength * wave)[0] == pytest.approx(expected + 0.008, abs=0.012)
    grid = np.sqrt(2) * np.cos(np.pi * (y + x))  # at (½, ½), where a frequency is its own mirror image
    assert largest_cell(grid)[0] == pytest.approx(1, abs=1e-3)
    assert largest_cell(np.zeros((64, 64))) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_the_shipped_detail_is_no_lattice(module: Importer, name: str) -> None:
    """In the detail that the statistics add at ×4, no cell of the spectrum has more than 8 % of the
    power.
    """
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    lattice = module("lattice")
    from models.kit import card

    model, _ = card.load(lattice.CHECKPOINT)
    original = np.ascontiguousarray(pictures.photograph(name)[40:296, 120:376])
    x = torch.from_numpy(metrics.downscaled(original, 4).copy()).permute(2, 0, 1)[None].float() / 255.0
    with torch.inference_mode():
        regression, statistics = (metrics.luma(lattice.levels(model.sharpen(x, 4, one))) for one in (1.0, 0.0))
    assert np.abs(statistics - regression).max() > 5
    assert metrics.largest_cell(statistics - regression)[0] <= lattice.MOST


def test_the_lattice_page_has_its_figures(module: Importer) -> None:
    """The page has means and largest cells by fidelity, and one line per photograph."""
    lattice = module("lattice")
    one = {"psnr": 28.0, "vgg": 0.15, "noise_vgg": 0.16, "cell": 0.05, "at": [0.3, 0.5], "strength": 2.0}
    photograph = {"psnr": 29.0, "vgg": 0.17, "lacking_cell": 0.04, "fidelities": {"0.0": one}}
    other = {**photograph, "fidelities": {"0.0": {**one, "vgg": 0.14, "cell": 0.07}}}
    result = {"scales": {"4": {"astronaut": photograph, "coffee": other}}, "machine": {"cpu": "a processor"}}
    page = lattice.page({**result, "commit": "abc", "date": "today"})
    assert "| statistics, fidelity 0.0 | 28.00 | 0.1450 | 0.1600 | 7.0% |" in page
    assert "| coffee | 7.0% | 0.30, 0.50 | 4.0% |" in page


def test_perceptual_distance_is_a_distance(module: Importer) -> None:
    """The perceptual distance is 0 for equal images and symmetric."""
    metrics = module("photos.metrics")
    from models.kit import features

    torch.manual_seed(1)
    network = features.EfficientNetLite0()
    drawn = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    first, second = (metrics.seen(network, one) for one in drawn)
    assert metrics.perceptual(network, drawn[0], first) == 0
    assert metrics.perceptual(network, drawn[0], second) > 1e-3
    there, back = metrics.perceptual(network, drawn[0], second), metrics.perceptual(network, drawn[1], first)
    assert there == pytest.approx(back)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_model_downsamples_as_pillow_does(module: Importer, scale: int) -> None:
    """U differs from Pillow's filter, which rounds between its passes, by one level in under 20 %
    of values and by more in under 0.1 %.
    """
    metrics, pictures = module("photos.metrics"), module("photos.pictures")
    from models.superres import regression

    original = metrics.cropped(pictures.photograph("coffee"), 12)
    high = torch.from_numpy(original.copy()).permute(2, 0, 1)[None] / 255.0
    mine = (regression.downsample(high, scale)[0].permute(1, 2, 0) * 255.0).round().numpy().astype(np.int16)
    apart = np.abs(mine - metrics.downscaled(original, scale).astype(np.int16))
    assert (apart > 0).mean() < 0.2
    assert (apart > 1).mean() < 0.001


def test_the_script_explains_itself(
    module: Importer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` lists the commands of the script."""
    monkeypatch.setattr("sys.argv", ["superres", "--help"])
    with pytest.raises(SystemExit):
        module("superres").main()
    assert "python benchmarks/superres.py measure" in capsys.readouterr().out


def test_a_whole_picture_is_enlarged_as_one_tile(module: Importer) -> None:
    """`upscale` with method `bicubic` of one tile equals the interpolation of the whole image,
    except at its border.
    """
    superres = module("superres")
    from models import superres as family
    from models.superres import regression

    model = family.Model(family.Config(height=48, width=48, margin=16, features=4, blocks=1))
    low = module("photos.metrics").downscaled(module("photos.pictures").photograph("chelsea")[:120, :184], 4)
    options = family.UpscaleOptions(scale=4, method="bicubic")
    found = superres.upscaled(model, low, options)
    x = torch.tensor(low).permute(2, 0, 1)[None] / 255.0
    whole = regression.interpolate_bicubic(x, 4).clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).numpy()
    assert found.shape == (120, 184, 3)
    assert np.abs(found[12:-12, 12:-12].astype(int) - whole[12:-12, 12:-12]).max() <= 1


def test_the_page_has_every_method_and_photograph(
    module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The page has a table of means, a table of photographs for each of three metrics, and the
    descents' energies.
    """
    superres = module("superres")
    one = {"psnr": 28.0, "ssim": 0.8, "vgg": 0.15, "lite0": 0.3, "consistency": 60.0}
    one |= {"gradient": 0.5, "octave_1": 0.1, "octave_2": 0.6}
    method: dict[str, Any] = {"cpu_s_per_megapixel": 0.5, "wall_s_per_megapixel": 0.6, "peak_mib": 400}
    method["photographs"] = {"astronaut": one, "coffee": {**one, "psnr": 29.0}}
    result = {"scale": 4, "methods": {"mse": method, "descent": {**method, "energies": {"astronaut": [1.0, 0.4]}}}}
    result |= {"machine": {"cpu": "a processor", "cores": 2}, "commit": "abc", "date": "today"}
    monkeypatch.setattr(superres, "RESULTS", tmp_path / "superres")
    superres.report(result)
    page = (tmp_path / "superres.md").read_text()
    assert "| regression | 28.50 | 0.800 | 0.1500 |" in page
    assert "| regression | 28.00 | 29.00 |" in page
    assert "0.40 (1.000)" in page
