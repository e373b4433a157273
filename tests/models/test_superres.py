"""`models.superres`: equations in closed form, networks, descent, and tiles
against whole images.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from models import superres
from models.kit import card, resize
from models.kit.operations import Continuation
from models.kit.row_streams import RowStreams
from models.superres import degradation, descent, patches, regression, statistics

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
SMALL = superres.Config(height=48, width=48, margin=16, features=8, blocks=1)
STATISTICS = replace(SMALL, objective="statistics", network=False, predictor_blocks=1, wavelet_angles=2, tune_share=1.0)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return smoothed noise in 0 … 1."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    smooth = functional.avg_pool2d(noise, 5, 1, 2)
    return (0.3 * noise + 2.0 * (smooth - 0.5) + 0.35).clamp(0, 1)


def built(config: superres.Config = STATISTICS) -> superres.Model:
    """Return a model with reproducible weights and the residual stds of two images."""
    model = superres.Model(config)
    model.initialise(RowStreams.range(3, 0, 1))
    if config.objective == "statistics":
        with torch.no_grad():
            sharp, blurred = drawn(2, 3, 64, 64), functional.avg_pool2d(drawn(2, 3, 64, 64), 3, 1, 1)
            model.spread.copy_(torch.cat(statistics.residual_std(model.statistics(blurred), model.statistics(sharp))))
    return model.eval()


def upscaled(model: superres.Model, images: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the images of an `upscale` after all of its calls."""
    chosen = superres.UpscaleOptions(**options)
    answer = model.upscale(images, RowStreams.range(0, 0, len(images)), chosen)
    while isinstance(answer, Continuation):
        assert 0 < answer.done < 1
        assert all(len(value) == len(images) for value in answer.state.values())
        answer = model.upscale(images, RowStreams.range(0, 0, len(images)), chosen, answer.state)
    enlarged: torch.Tensor = answer["images"]
    return enlarged


# Equations


def test_crops_are_slices_of_each_image() -> None:
    """A crop has the position that the two uniform numbers give."""
    images = RowStreams.range(5, 0, 3).uniform(3 * 12 * 10).view(3, 3, 12, 10)
    crops = regression.random_crop(images, 6, torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.3]]))
    for crop, image, (top, left) in zip(crops, images, [(0, 0), (6, 4), (3, 1)], strict=True):
        assert torch.equal(crop, image[:, top : top + 6, left : left + 6])


def test_channels_are_shuffled_image_by_image() -> None:
    """Each image keeps its channels, in the order of its uniform numbers."""
    images = RowStreams.range(5, 0, 2).uniform(3 * 4).view(2, 3, 2, 2)
    shuffled = regression.shuffle_channels(images, torch.tensor([[0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]))
    assert torch.equal(shuffled[0], images[0])
    assert torch.equal(shuffled[1], images[1][[1, 2, 0]])


def test_crops_are_whole_patches_if_the_config_says_so() -> None:
    """Crops have one size at low resolution; with `whole_patches` each is as large as its image."""
    images, rows = RowStreams.range(5, 0, 12).uniform(3 * 24 * 24).view(12, 3, 24, 24), RowStreams.range(6, 0, 12)
    config = superres.Config(blocks=1, features=4, largest_scale_share=0.3)
    for whole, edges in ((False, {2: 6, 3: 6, 4: 6}), (True, {2: 12, 3: 8, 4: 6})):
        model = superres.Model(replace(config, whole_patches=whole))
        model.initialise(RowStreams.range(3, 0, 1))
        lows, highs, indices = patches.draw_by_scale(images, rows, model.config)
        assert {scale: low.shape[2] for scale, low in lows.items()} == edges
        losses = model.loss(images, rows, epoch=5)
        for scale, high in highs.items():
            error = regression.squared_error(model.regression(lows[scale], scale), high)
            torch.testing.assert_close(losses[indices[scale]], error)


def test_energy_is_the_mean_square_in_units_of_the_std() -> None:
    """The energy is the mean over the parts of the mean squares, each
    channel divided by its std.
    """
    predicted = [torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 2, 2)]
    found = [torch.full((1, 2, 3, 3), 2.0), torch.full((1, 1, 2, 2), 4.0)]
    spread = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert float(statistics.energy(predicted, found, spread)) == pytest.approx(((4 + 1) / 2 + 1) / 2)
    assert float(statistics.energy(predicted, found[:1], spread)) == pytest.approx(2.5)


def test_residual_std_is_the_error_of_the_regression() -> None:
    """The residual std is the root mean square of the difference per channel, and makes the energy
    1.
    """
    own, wanted = [drawn(3, 2, 4, 4)], [drawn(3, 2, 4, 4, seed=2)]
    (found,) = statistics.residual_std(own, wanted)
    expected = [float((own[0] - wanted[0])[:, channel].square().mean().sqrt()) for channel in range(2)]
    assert found.tolist() == pytest.approx(expected)
    assert float(statistics.energy(own, wanted, [found]).mean()) == pytest.approx(1.0)


def test_contrast_is_the_difference_of_two_phases() -> None:
    """The contrast is 0 for equal statistics, and its gradients for image and sample have opposite
    signs.
    """
    predicted, spread = [torch.zeros(1, 1, 1, 1)], [torch.ones(1)]
    real, sampled = ([torch.full((1, 1, 1, 1), value, requires_grad=True)] for value in (2.0, 3.0))
    found = statistics.contrastive_loss(predicted, real, sampled, spread)
    assert float(found.detach()) == pytest.approx(4 - 9)
    found.sum().backward()
    gradients = [tensor.grad for tensor in (*real, *sampled)]
    assert [float(grad) for grad in gradients if grad is not None] == pytest.approx([4.0, -6.0])


def test_the_luminance_of_grey_is_itself() -> None:
    """The weights sum to one, so a detail that is equal in all colours does
    not change the chroma.
    """
    images = drawn(2, 3, 8, 8)
    detail = drawn(2, 1, 8, 8, seed=2) - 0.5
    torch.testing.assert_close(regression.luminance(images + detail), regression.luminance(images) + detail)
    assert float(regression.chroma_error(images + detail, images).max()) < 1e-6
    assert float(regression.chroma_error(images * torch.tensor([1.1, 1, 1]).view(1, 3, 1, 1), images).min()) > 0.1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_grid_patterns_are_removed(scale: int) -> None:
    """A pattern with the period of the low-resolution grid vanishes; other detail mostly stays."""
    pattern = drawn(1, 3, scale, scale).repeat(1, 1, 12, 12)
    assert float(statistics.remove_grid_pattern(pattern, scale).abs().max()) < 1e-6
    noise = torch.randn(1, 3, 12 * scale, 12 * scale, generator=torch.Generator().manual_seed(2))
    assert float(statistics.remove_grid_pattern(noise, scale).square().mean()) > 0.9 * float(noise.square().mean())


def test_the_energys_gradient_is_its_finite_difference() -> None:
    """∂E/∂y agrees with central differences in float64."""
    model = built().double()
    low = drawn(1, 3, 8, 8).double()
    estimate = regression.interpolate_bicubic(low, 2)
    with torch.no_grad():
        target = model.predict(estimate, model.statistics(estimate), 2)
    spread = model.residual_stds()

    def energy(detail: torch.Tensor) -> torch.Tensor:
        return statistics.energy(target, model.statistics(estimate + detail), spread)

    detail = 0.1 * drawn(1, 1, 16, 16, seed=3).double()
    _, slope = descent.value_and_gradient(energy, detail)
    for place in ((3, 4), (9, 12)):
        step = torch.zeros_like(detail)
        step[0, 0, place[0], place[1]] = 1e-5
        with torch.no_grad():
            expected = float(energy(detail + step) - energy(detail - step)) / 2e-5
        assert float(slope[0, 0, place[0], place[1]]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


# Descent


def test_descent_falls_at_every_step_to_the_minimum_of_a_quadratic() -> None:
    """The energy of each image never rises, and an ill-conditioned quadratic is minimised."""
    weights = torch.logspace(-2, 0, 16).view(1, 1, 4, 4)
    goal = drawn(2, 1, 4, 4) * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)

    def quadratic(detail: torch.Tensor) -> torch.Tensor:
        return (weights * (detail - goal).square()).sum((1, 2, 3))

    state = descent.start_descent(quadratic, torch.zeros(2, 1, 4, 4))
    for _ in range(150):
        after = descent.descend(state, quadratic, 1)
        assert bool((after.energy <= state.energy).all())
        state = after
    assert bool((state.energy < 1e-4 * state.first).all())
    alone = descent.start_descent(lambda detail: quadratic(detail.expand(2, -1, -1, -1))[:1], torch.zeros(1, 1, 4, 4))
    alone = descent.descend(alone, lambda detail: quadratic(detail.expand(2, -1, -1, -1))[:1], 20)
    both = descent.descend(descent.start_descent(quadratic, torch.zeros(2, 1, 4, 4)), quadratic, 20)
    torch.testing.assert_close(alone.detail[0], both.detail[0])


def test_descent_halves_the_energy_of_a_picture() -> None:
    """Twenty steps from a blurred copy toward the statistics of the sharp
    image halve the energy.
    """
    model = built()
    high = drawn(1, 3, 32, 32)
    low = regression.downsample(high, 2)
    estimate = regression.interpolate_bicubic(low, 2)
    with torch.no_grad():
        target = model.statistics(high)
    state = descent.start_descent(
        lambda detail: statistics.energy(target, model.statistics(estimate + detail), model.residual_stds()),
        torch.zeros_like(estimate[:, :1]),
    )
    after = descent.descend(
        state, lambda detail: statistics.energy(target, model.statistics(estimate + detail), model.residual_stds()), 20
    )
    assert float(after.energy) < 0.5 * float(after.first)


# Training


def test_each_step_reaches_its_module() -> None:
    """Three steps have one loss per image and reach every weight; the wavelets
    wait for their epoch.
    """
    model = built()
    images, rows = drawn(3, 3, 64, 64), RowStreams.range(5, 0, 3)
    assert [step.module for step in model.training_steps(images, rows, 0)] == ["predictor", "generator"]
    for step in model.training_steps(images, rows, 1):
        assert step.losses.shape == (3,)
        player = getattr(model, step.module)
        step.losses.mean().backward(inputs=list(player.parameters()))
        scale = str(patches.draw_pair(images, rows, model.config)[2])
        for name, parameter in player.named_parameters():
            other = ("tails." in name or name.startswith("scales.")) and f".{scale}" not in name
            assert other or float(parameter.grad.abs().sum()) > 0, (step.module, name)
    assert model.OPTIMIZED_MODULES == ("predictor", "generator", "scattering")
    assert built(SMALL).OPTIMIZED_MODULES == ()


def test_the_generator_can_make_the_negative_samples() -> None:
    """With `negative` = "generator" the scattering learns to tell its pictures from the true ones."""
    model = built(replace(STATISTICS, negative="generator", tune_from=0, tune_share=1.0))
    images, rows = drawn(3, 3, 64, 64), RowStreams.range(5, 0, 3)
    steps = list(model.training_steps(images, rows, 0))
    low, _, scale = patches.draw_pair(images, rows, model.config)
    estimate = model.regress(low, scale)
    sampled = model.statistics(model._generate(low, estimate, scale))[:1]
    predicted = model.predict(estimate, model.statistics(estimate), scale)
    real = model.statistics(patches.draw_pair(images, rows, model.config)[1])[:1]
    expected = statistics.contrastive_loss(predicted, real, sampled, model.residual_stds())
    torch.testing.assert_close(steps[2].losses, expected)


def test_a_noise_input_makes_the_detail_a_draw() -> None:
    """The same row gives the same picture, another row another one; without rows the noise is zero."""
    model = built(replace(STATISTICS, noise=True)).eval()
    low = drawn(1, 3, 40, 40)
    one, same, other = (model.sharpen(low, 4, rows=RowStreams.range(1, at, 1)) for at in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, model.sharpen(low, 4))


def test_the_generator_starts_where_the_regression_ends() -> None:
    """`warm_start` copies a regression's weights to the generator; if some are missing, the error
    names them.
    """
    trained, model = built(SMALL), superres.Model(STATISTICS)
    model.initialise(RowStreams.range(9, 0, 1))
    model.warm_start(trained.state_dict())
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
        assert torch.equal(weight, model.state_dict()[name.replace("regression.", "generator.")])
    with pytest.raises(ValueError, match=r"regression\.head\.weight is missing"):
        model.warm_start({})


# Upscaling


@pytest.mark.parametrize("method", ["bicubic", "tv", "mse", "statistics"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_method_gives_the_middle_of_a_tile(method: str, scale: int) -> None:
    """The margin is cut off, values are in 0 … 1, and methods without learning
    keep a flat tile flat.
    """
    model = built()
    images = torch.stack([drawn(3, 48, 48)[0].expand(3, -1, -1), torch.full((3, 48, 48), 0.4)])
    found = upscaled(model, images, method=method, scale=scale)
    assert found.shape == (2, 3, 16 * scale, 16 * scale)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    if method in ("bicubic", "tv"):
        torch.testing.assert_close(found[1], torch.full_like(found[1], 0.4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 30)])
@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("method", ["bicubic", "tv", "mse", "statistics", "descent"])
def test_pictures_of_any_size_have_no_margin_if_they_are_not_divided(
    method: str, scale: int, size: tuple[int, int]
) -> None:
    """With margins of 0 a whole picture is enlarged, of any size, by every method."""
    model = built()
    images, rows = drawn(1, 3, *size), RowStreams.range(0, 0, 1)
    named = {"inference": "descent", "steps": 1} if method == "descent" else {"method": method}
    options = superres.UpscaleOptions(scale=scale, **named)
    answer = model.upscale(images, rows, options, margins=(0, 0))
    while isinstance(answer, Continuation):
        answer = model.upscale(images, rows, options, answer.state, margins=(0, 0))
    assert answer["images"].shape == (1, 3, size[0] * scale, size[1] * scale)
    if method == "mse":
        with torch.no_grad():
            assert torch.equal(answer["images"], model.regress(images, scale).clamp(0, 1))


def test_each_axis_has_its_margin() -> None:
    """The margins of an axis are cut off that axis."""
    model, images = built(SMALL), drawn(1, 3, 24, 30)
    found = model.upscale(images, RowStreams.range(0, 0, 1), superres.UpscaleOptions(scale=2), margins=(0, 5))
    whole = model.upscale(images, RowStreams.range(0, 0, 1), superres.UpscaleOptions(scale=2), margins=(0, 0))
    assert isinstance(found, dict)
    assert isinstance(whole, dict)
    assert torch.equal(found["images"], whole["images"][..., 10:-10])


def test_learned_methods_agree_with_their_low_resolution() -> None:
    """U of the result equals the input to half a grey level, if nothing clips."""
    model = built()
    low = 0.3 + 0.4 * drawn(1, 3, 48, 48)
    model.requires_grad_(requires_grad=False)
    for high in (model.regress(low, 4), model.regress(low, 4, ensemble=True), model.sharpen(low, 4, 0.3)):
        found = resize.bicubic(48, 48, 4)(high)
        assert float((found - low).abs().max()) < 0.5 / 255


def test_fidelity_goes_from_the_statistics_to_the_regression() -> None:
    """Fidelity 1 is the regression bit for bit, 0 the generator, and 0.5 their mean."""
    model = built()
    images = drawn(1, 3, 48, 48)
    mse = upscaled(model, images, method="mse", scale=2)
    sharp, half, faithful = (upscaled(model, images, scale=2, fidelity=value) for value in (0.0, 0.5, 1.0))
    assert torch.equal(faithful, mse)
    assert not torch.allclose(sharp, mse, atol=1e-3)
    torch.testing.assert_close(half, 0.5 * (sharp + mse), atol=0.02, rtol=0)  # clipping comes last


def test_descent_reports_its_progress() -> None:
    """A descent takes one call to begin and one per step, with rising progress; fidelity 1 gives
    the regression.
    """
    model = built()
    images = drawn(2, 3, 48, 48)
    options = superres.UpscaleOptions(scale=2, inference="descent", steps=2)
    rows, shares, state = RowStreams.range(0, 0, 2), [], None
    while isinstance(answer := model.upscale(images, rows, options, state), Continuation):
        shares.append(answer.done)
        state = answer.state
    assert shares == sorted(shares)
    assert len(shares) == 2
    assert answer["images"].shape == (2, 3, 32, 32)
    faithful = upscaled(model, images, scale=2, inference="descent", steps=1, fidelity=1.0)
    torch.testing.assert_close(faithful, upscaled(model, images, scale=2, method="mse"), atol=1e-5, rtol=0)


def test_a_model_without_statistics_has_only_the_regression() -> None:
    """The card of a model without statistics does not list the method, and its default method is
    the regression.
    """
    model = built(SMALL)
    method = model.operations()["upscale"]["options"]["properties"]["method"]
    assert method["enum"] == ["bicubic", "tv", "mse"]
    assert method["default"] == "mse"
    assert built().operations()["upscale"]["options"]["properties"]["method"]["default"] == "statistics"
    images = drawn(1, 3, 48, 48)
    assert torch.equal(upscaled(model, images), upscaled(model, images, method="mse"))
    with pytest.raises(ValueError, match="scale must be one of 2, 4, not 3"):
        upscaled(built(replace(SMALL, scales=(2, 4))), images, scale=3)


def test_finalize_makes_a_filter_for_each_scale() -> None:
    """Before `finalize` nothing is filtered; after it the detail has another spectrum of similar
    strength.
    """
    config = replace(STATISTICS, detail_radius=3)
    model, plain = built(config), built()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.generator.named_parameters():
            if name.startswith("tails."):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "taps_" not in name})
    low, patches = drawn(1, 3, 48, 48), drawn(20, 3, 96, 96)
    for scale in config.scales:
        assert torch.equal(model.sharpen(low, scale), plain.sharpen(low, scale))
    model.finalize(lambda: iter([patches]), lambda first, count: RowStreams.range(0, first, count))
    for scale in config.scales:
        taps = model.get_buffer(f"taps_{scale}")
        assert not torch.equal(taps, built(config).get_buffer(f"taps_{scale}"))
        torch.testing.assert_close(taps, taps.T, atol=1e-5, rtol=0)
        estimate = model.regress(low, scale)
        before, after = ((one.sharpen(low, scale) - estimate).detach() for one in (plain, model))
        assert float((after - before).abs().max()) > 1e-3
        assert 0.4 < float(after.std() / before.std()) < 2.5
        assert torch.equal(model.sharpen(low, scale, 1.0), estimate)
    started = built(config)
    started.warm_start(model.state_dict())
    assert torch.equal(started.get_buffer("taps_2"), built(config).get_buffer("taps_2"))  # a training computes its own


def test_the_ensemble_is_equivariant() -> None:
    """The result for a rotated image is the rotated result."""
    model = built(SMALL)
    images = drawn(1, 3, 48, 48)
    found = upscaled(model, images, ensemble=True, method="mse", scale=2)
    turned = upscaled(model, torch.rot90(images, 1, (2, 3)), ensemble=True, method="mse", scale=2)
    torch.testing.assert_close(turned, torch.rot90(found, 1, (2, 3)), atol=1e-4, rtol=0)


# Denoising

DENOISER = replace(SMALL, objective="denoiser", denoiser_blocks=1, denoiser_features=8)


@pytest.mark.parametrize("quality", [15, 40, 90])
@pytest.mark.parametrize("subsample", [True, False])
def test_compression_is_that_of_jpeg_files(quality: int, subsample: bool) -> None:
    """Compressed images differ from Pillow's by far less than these from the originals."""
    images = (drawn(1, 3, 40, 56).mul(255).round() / 255).contiguous()
    stream = io.BytesIO()
    pixels = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    expected = torch.from_numpy(np.asarray(Image.open(stream).convert("RGB")).copy()).permute(2, 0, 1) / 255
    found = degradation.compress(images, torch.tensor([float(quality)]), (0, 0), subsample=subsample)[0]
    lost = float((expected - images[0]).abs().mean())
    assert float((found - expected).abs().mean()) < 0.2 * lost


def test_the_grid_of_the_compression_can_start_before_the_image() -> None:
    """An image that starts within a block is compressed as a part of the image that starts at it."""
    whole = drawn(1, 3, 32, 32)
    whole[:, :, :3] = whole[:, :, 3:4]
    whole[:, :, :, :5] = whole[:, :, :, 5:6]
    quality = torch.tensor([30.0])
    found = degradation.compress(whole[:, :, 3:, 5:], quality, (3, 5), subsample=False)
    expected = degradation.compress(whole, quality, (0, 0), subsample=False)[:, :, 3:, 5:]
    torch.testing.assert_close(found, expected)


def test_noise_has_the_std_of_its_severity() -> None:
    """A severity of 1 adds noise of 30 grey levels; a severity of 0 adds none."""
    images = torch.full((2, 3, 64, 64), 0.5)
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    noisy = degradation.add_noise(images, degradation.noise_std(torch.tensor([0.0, 1.0])), noise)
    assert float((noisy[0] - 0.5).abs().max()) < 0.5 / 255 + 1e-6
    assert float(noisy[1].std() * 255) == pytest.approx(30, rel=0.05)


def test_patches_of_the_denoiser_follow_from_their_rows() -> None:
    """Each image gives one patch, alone in its group or not, and some of them stay clean."""
    images, rows = drawn(8, 3, 96, 96), RowStreams.range(5, 0, 8)
    groups = list(patches.draw_degraded(images, rows))
    assert sorted(torch.cat([group.index for group in groups]).tolist()) == list(range(8))
    assert {group.clean.shape[-1] for group in groups} <= {24, 48}
    for group in groups:
        assert group.clean.shape == group.degraded.shape
        assert 0 <= float(group.clean.min()) <= float(group.clean.max()) <= 1
    first = next(iter(patches.draw_degraded(images[:1], RowStreams.range(5, 0, 1))))
    same = next(group for group in groups if 0 in group.index.tolist())
    at = same.index.tolist().index(0)
    torch.testing.assert_close(first.clean[0], same.clean[at])
    torch.testing.assert_close(first.degraded[0], same.degraded[at])


def test_a_training_of_the_denoiser_changes_nothing_else() -> None:
    """The only step has one loss per image and reaches every weight of the denoiser."""
    model = built(DENOISER)
    assert model.OPTIMIZED_MODULES == ("denoiser",)
    (step,) = model.training_steps(drawn(4, 3, 96, 96), RowStreams.range(5, 0, 4), 0)
    assert (step.module, step.losses.shape) == ("denoiser", (4,))
    step.losses.mean().backward(inputs=list(model.denoiser.parameters()))
    gradients = [parameter.grad for parameter in model.denoiser.parameters()]
    assert all(gradient is not None and float(gradient.abs().sum()) > 0 for gradient in gradients)
    with pytest.raises(ValueError, match="denoiser_blocks"):
        superres.Model(replace(DENOISER, denoiser_blocks=0))


def test_only_models_with_a_denoiser_have_the_option() -> None:
    """Without a denoiser the option is missing, and another value than 0 is rejected."""
    images = drawn(1, 3, 48, 48)
    assert "denoise" not in built().operations()["upscale"]["options"]["properties"]
    with pytest.raises(ValueError, match="`denoise` must be 0"):
        upscaled(built(), images, denoise=0.5)
    assert built(DENOISER).operations()["upscale"]["options"]["properties"]["denoise"]["default"] == 0.0


@pytest.mark.parametrize(
    "options",
    [{"method": "bicubic"}, {"method": "tv"}, {"method": "mse"}, {"inference": "descent", "steps": 2}, {}],
    ids=["bicubic", "tv", "mse", "descent", "statistics"],
)
def test_denoising_comes_before_every_method(options: dict[str, Any]) -> None:
    """The result is that of the cleaned tile; without denoising it has the bytes of a model that
    has no denoiser.
    """
    model = built(replace(STATISTICS, denoiser_blocks=1, denoiser_features=8))
    plain = superres.Model(STATISTICS).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "denoiser" not in name})
    images = drawn(2, 3, 48, 48)
    assert torch.equal(upscaled(model, images, scale=2, **options), upscaled(plain, images, scale=2, **options))
    with torch.no_grad():
        clean = model.denoise(images, 0.7)
    assert float((clean - images).abs().max()) > 1e-3
    found = upscaled(model, images, scale=2, denoise=0.7, **options)
    assert torch.equal(found, upscaled(plain, clean, scale=2, **options))


def test_the_denoiser_takes_odd_sizes() -> None:
    """An image with odd sides keeps its size, and the strength has an effect."""
    model = built(DENOISER)
    images = drawn(1, 3, 33, 47)
    with torch.no_grad():
        weak, strong = model.denoise(images, 0.2), model.denoise(images, 0.9)
    assert weak.shape == images.shape
    assert not torch.equal(weak, strong)


# The shipped model


@pytest.fixture(scope="module")
def shipped() -> superres.Model:
    """Return the shipped `superres-photos`."""
    model: superres.Model = card.load(CHECKPOINT)[0]
    return model


@pytest.mark.parametrize("method", ["mse", "statistics"])
def test_the_shipped_model_shows_no_seam(shipped: superres.Model, method: str) -> None:
    """Two adjacent tiles differ by at most one level from the whole image, also at their seam."""
    margin, core = shipped.config.margin, shipped.config.height - 2 * shipped.config.margin
    low = drawn(1, 3, core + 2 * margin, 2 * core + 2 * margin)
    tiles = torch.cat([low[..., :, j : j + core + 2 * margin] for j in (0, core)])
    found = torch.cat(list(upscaled(shipped, tiles, method=method, scale=2, fidelity=0.0)), 2)
    whole = shipped.sharpen(low, 2) if method == "statistics" else shipped.regress(low, 2)
    cut = 2 * margin
    expected = whole[0, :, cut:-cut, cut:-cut].clamp(0, 1)
    apart = (found.mul(255).round() - expected.mul(255).round()).abs()
    assert float(apart.max()) <= 1


def test_the_shipped_model_agrees_with_its_low_resolution(shipped: superres.Model) -> None:
    """The 8-bit result of every learned method, downsampled, has a PSNR of 45 dB
    or more to the input.
    """
    low = (0.1 + 0.8 * drawn(1, 3, 32, 32)).mul(255).round() / 255
    for high in (shipped.regress(low, 4), shipped.sharpen(low, 4), shipped.sharpen(low, 4, 0.5)):
        levels = high.clamp(0, 1).mul(255).round() / 255
        again = resize.bicubic(32, 32, 4)(levels)
        assert float((again - low).square().mean()) < 10**-4.5


def test_the_shipped_descent_halves_its_energy(shipped: superres.Model) -> None:
    """Twenty steps from the regression's estimate halve the energy under Φ(x)."""
    low = regression.downsample(drawn(1, 3, 96, 96), 4)
    estimate = shipped.regress(low, 4)
    posterior = shipped.energy_function(low, estimate, 4)
    state = descent.descend(descent.start_descent(posterior, torch.zeros_like(estimate[:, :1])), posterior, 20)
    assert float(state.energy) <= 0.5 * float(state.first)
