"""`models.ebgan`: equations against closed forms, gradients of the two steps, operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models import ebgan
from models.kit.operations import Continuation
from models.kit.optimizers import OptimizerStep
from models.kit.row_streams import LATENT, RowStreams
from models.kit.schema import from_json


def small(**changed: Any) -> ebgan.Model:
    """Return a model of 8 × 8 images with reproducible weights, in evaluation mode."""
    config = {"height": 8, "width": 8, "latents": 5, "size_g": 16, "size_d": 12, **changed}
    model = ebgan.Model(ebgan.Config(**config))
    model.initialise(RowStreams.range(4, 0, 1))
    return model.eval()


def pictures(count: int, model: ebgan.Model, seed: int = 9) -> torch.Tensor:
    """Return grey noise in 0 … 1."""
    pixels = model.config.channels * model.config.height * model.config.width
    return RowStreams.range(seed, 0, count).uniform(pixels).view(count, 1, model.config.height, model.config.width)


def finished(model: ebgan.Model, rows: RowStreams, options: ebgan.SampleOptions) -> dict[str, Any]:
    """Return the result of `sample` after all of its calls."""
    answer = model.sample(rows, options)
    while isinstance(answer, Continuation):
        assert 0 < answer.done < 1
        answer = model.sample(rows, options, answer.state)
    return answer


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a tensor, which must have one."""
    assert tensor.grad is not None
    return tensor.grad


# --- Equations ---


def test_the_energy_is_the_norm_over_a_pictures_pixels() -> None:
    """The energy is in 0 … 56 for 28 × 28 pixels in −1 … 1, independent of the batch, and
    has a gradient at 0.
    """
    white, black = torch.ones(3, 1, 28, 28), -torch.ones(3, 1, 28, 28)
    torch.testing.assert_close(ebgan.energy(white, black), torch.full((3,), 56.0))
    one = black.clone()
    one[:, :, 0, 0], one[:, :, 0, 1] = 0.5, 1.0
    torch.testing.assert_close(ebgan.energy(one, black), torch.full((3,), 2.5))
    torch.testing.assert_close(ebgan.energy(one[:1], black[:1]), torch.full((1,), 2.5))
    guess = black.clone().requires_grad_()
    ebgan.energy(black, guess).sum().backward()
    assert torch.equal(gradient(guess), torch.zeros_like(black))


def test_the_energys_gradient_is_its_finite_difference() -> None:
    """The gradient agrees with central differences in double precision."""
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guess = torch.zeros_like(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: ebgan.energy(x, r), guess)


def test_the_hinge_is_computed_for_each_sample() -> None:
    """A sample above the margin adds nothing and gets no gradient, whatever the batch's mean."""
    fake = torch.tensor([2.0, 9.0, 11.0, 50.0], requires_grad=True)
    real = torch.tensor([3.0, 3.0, 4.0, 5.0])
    losses = ebgan.discriminator_loss(real, fake, 10.0)
    torch.testing.assert_close(losses, torch.tensor([11.0, 4.0, 4.0, 5.0]))
    losses.sum().backward()
    assert gradient(fake).tolist() == [-1.0, -1.0, 0.0, 0.0]
    torch.testing.assert_close(ebgan.generator_loss(fake), fake)


def test_pulling_away_of_known_codes() -> None:
    """Identical codes give 1, orthogonal ones 0, opposite ones 1 (the cosine is
    squared), at any norm.
    """
    same = torch.tensor([[1.0, 2.0, 3.0]]) * torch.tensor([[1.0], [5.0], [0.1]])
    torch.testing.assert_close(ebgan.pulling_away(same), torch.ones(3))
    torch.testing.assert_close(ebgan.pulling_away(torch.eye(4) * 7.0), torch.zeros(4))
    torch.testing.assert_close(ebgan.pulling_away(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])), torch.ones(2))
    assert ebgan.pulling_away(torch.ones(1, 3)).tolist() == [0.0]


def test_pulling_away_is_the_papers_double_sum() -> None:
    """The mean of the rows is 1/(N(N − 1)) Σᵢ Σ_{j≠i} cos², computed directly."""
    code = RowStreams.range(2, 0, 6).normal(5)
    total = 0.0
    for i in range(6):
        for j in range(6):
            if i != j:
                total += float(code[i] @ code[j] / (code[i].norm() * code[j].norm())) ** 2
    assert float(ebgan.pulling_away(code).mean()) == pytest.approx(total / 30, rel=1e-5)


def test_pulling_away_of_gaussian_codes_is_one_over_their_dimension() -> None:
    """For independent Gaussian codes in 32 dimensions the term is 1/32 within three standard errors
    of 200 batches.
    """
    found = torch.stack([ebgan.pulling_away(RowStreams.range(seed, 0, 50).normal(32)).mean() for seed in range(200)])
    error = float(found.std()) / math.sqrt(200)
    assert abs(float(found.mean()) - 1 / 32) < 3 * error < 0.001


def test_pulling_away_is_safe_for_a_zero_code() -> None:
    """A zero code counts as orthogonal; all values and gradients are finite, and
    the others' are exact.
    """
    code = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    rows = ebgan.pulling_away(code)
    assert rows[0] == 0
    rows.mean().backward()
    assert torch.isfinite(gradient(code)).all()
    assert torch.equal(gradient(code)[0], torch.zeros(2, dtype=torch.float64))
    free = RowStreams.range(1, 0, 4).normal(3).double().requires_grad_()
    assert torch.autograd.gradcheck(ebgan.pulling_away, free)


def test_the_plain_gans_losses_are_the_logarithms() -> None:
    """The losses are −log D(x) − log(1 − D(G(z))) and −log D(G(z)) with D = sigmoid(logit)."""
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -0.5])
    expected = -real.sigmoid().log() - (1 - fake.sigmoid()).log()
    torch.testing.assert_close(ebgan.gan_discriminator_loss(real, fake), expected)
    torch.testing.assert_close(ebgan.gan_generator_loss(fake), -fake.sigmoid().log())


# --- Optimizer steps ---

GAMES = [
    {},
    {"pulling_away": 0.1, "layers_d": 3},
    {"objective": "gan", "layers_d": 3},
    {"architecture": "conv", "dropout": 0.5, "code": 6},
    {"layers_d": 4, "layers_dec": 2, "code": 3},
]


def reached(module: torch.nn.Module) -> list[bool]:
    """Return which weights have a gradient that is not zero."""
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()]


@pytest.mark.parametrize("changed", GAMES)
def test_each_step_reaches_its_module(changed: dict[str, Any]) -> None:
    """The discriminator's loss gives the generator no gradient; the generator's loss
    reaches all of its weights.
    """
    model = small(**changed).train()
    steps = model.training_steps(pictures(6, model), RowStreams.range(1, 0, 6))
    first = next(steps)
    assert isinstance(first, OptimizerStep)
    assert first.module == "discriminator"
    first.losses.mean().backward()
    assert not any(reached(model.generator))
    assert all(reached(model.discriminator))
    second = next(steps)
    assert second.module == "generator"
    before = [gradient(p).clone() for p in model.discriminator.parameters()]
    second.losses.mean().backward(inputs=list(model.generator.parameters()))
    for parameter, grad in zip(model.discriminator.parameters(), before, strict=True):
        assert torch.equal(gradient(parameter), grad)
    gradients = [p.grad for p in model.generator.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert next(steps, None) is None
    for step in (first, second):
        assert step.losses.shape == (6,)
        assert all(values.shape == (6,) for values in step.metrics.values())


def test_the_generator_step_uses_the_updated_discriminator() -> None:
    """The generator's step uses the weights that the discriminator has after its own step."""
    model = small().train()
    images, rows = pictures(6, model), RowStreams.range(1, 0, 6)
    steps = model.training_steps(images, rows)
    next(steps)
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.mul_(0.5)
    fake = model.generator(rows.normal(5, LATENT))
    expected, _ = model.discriminator(fake)
    torch.testing.assert_close(next(steps).losses, expected)


def test_the_pulling_away_term_is_on_the_generators_loss_alone() -> None:
    """The weight of the pulling-away term adds weight · f_PT of the generated codes to the
    generator's loss only.
    """
    images = pictures(6, small())
    plain = list(small(batch_norm=False).training_steps(images, RowStreams.range(1, 0, 6)))
    model = small(batch_norm=False, pulling_away=0.3)
    repelled = list(model.training_steps(images, RowStreams.range(1, 0, 6)))
    assert torch.equal(plain[0].losses, repelled[0].losses)
    code, _ = model.discriminator.encoder(model.generator(RowStreams.range(1, 0, 6).normal(5, LATENT)))
    torch.testing.assert_close(repelled[1].losses - plain[1].losses, 0.3 * ebgan.pulling_away(code))


def test_metrics_have_the_share_of_active_hinges() -> None:
    """A hinge is active exactly where D(G(z)) is below the margin."""
    model = small(margin=4.0).train()
    step = next(model.training_steps(pictures(50, model), RowStreams.range(1, 0, 50)))
    facts = step.metrics
    assert 0 < float(facts["active_hinges"].mean()) < 1
    assert torch.equal(facts["active_hinges"] == 1, facts["d_fake"] < 4.0)
    torch.testing.assert_close(step.losses, facts["d_real"] + ebgan.hinge(facts["d_fake"], 4.0))


def test_contrast_pictures_are_blank_or_faint() -> None:
    """Half of them are black, and the others keep at most `FAINTEST` of a picture's brightness."""
    images = torch.ones(4, 1, 2, 2)
    uniform = torch.tensor([[0.1, 0.9], [0.49, 0.2], [0.5, 0.5], [0.9, 1.0]])
    made = ebgan.contrast_pictures(images, uniform)
    torch.testing.assert_close(made.amax((1, 2, 3)), torch.tensor([0.0, 0.0, 0.5, 1.0]) * ebgan.FAINTEST)


def test_contrast_raises_the_energy_of_a_blank_picture() -> None:
    """Only the discriminator's step changes: its gradient raises the energy of blank pictures."""
    images, plain, contrast = pictures(6, small()), small(), small(contrast=1.0)
    rows = RowStreams.range(1, 0, 6)
    steps = [next(model.training_steps(images, rows)) for model in (plain, contrast)]
    hinges = ebgan.hinge(steps[1].metrics["d_contrast"], ebgan.CONTRAST_MARGIN * contrast.config.margin)
    torch.testing.assert_close(steps[1].losses, steps[0].losses + hinges)
    blank = torch.zeros(1, 1, 8, 8)
    before = float(contrast.energies(blank).detach())
    optimizer = torch.optim.SGD(contrast.discriminator.parameters(), 1e-2)
    hinges.mean().backward()
    optimizer.step()
    assert float(contrast.energies(blank).detach()) > before
    with pytest.raises(ValueError, match="plain GAN"):
        small(objective="gan", contrast=1.0)


def test_dropout_belongs_to_the_row() -> None:
    """Dropout depends on the row, differs between the passes of a step, and
    is off in operations.
    """
    model = small(dropout=0.5, layers_d=3)
    images = pictures(4, model)
    rows = RowStreams.range(1, 0, 4)
    codes = [model.discriminator.encoder(images, rows, stream)[1] for stream in (7, 7, 9)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    alone = model.discriminator.encoder(images[2:3], RowStreams.range(1, 2, 1), 7)[1]
    torch.testing.assert_close(alone[0], codes[0][2])
    whole, kept = model.discriminator.encoder(images)
    assert torch.equal(whole, kept)


def test_after_training_statistics_and_quantiles_are_fixed() -> None:
    """`finalize` stores the quantiles of the training energies; then samples do not
    depend on their batch.
    """
    model = small()
    images = pictures(2000, model)
    before = model.generator(RowStreams.range(5, 0, 3).normal(5))
    model.finalize(lambda: iter(images.split(500)), lambda first, count: RowStreams.range(8, first, count))
    model.eval()
    assert not torch.equal(before, model.generator(RowStreams.range(5, 0, 3).normal(5)))
    energies = model.energies(images)
    torch.testing.assert_close(model.quantiles[500], energies.median(), rtol=1e-3, atol=1e-3)
    assert model.quantiles[0] == energies.min()
    assert model.quantiles[1000] == energies.max()
    again = small()
    again.finalize(lambda: iter(images.split(500)), lambda first, count: RowStreams.range(8, first, count))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# --- Operations ---


def finalized() -> ebgan.Model:
    """Return a model with quantiles."""
    model = small()
    images = pictures(1000, model)
    model.finalize(lambda: iter([images]), lambda first, count: RowStreams.range(8, first, count))
    return model.eval().requires_grad_(requires_grad=False)


def test_percentiles_are_ranks_among_the_training_energies() -> None:
    """The training images' percentiles are uniform; outside the quantiles they are 0 and 100."""
    model = finalized()
    answer = model.energy(pictures(1000, model), RowStreams.range(1, 0, 1000), ebgan.NoOptions())
    assert answer["unit"] == "norm"
    ranks = answer["energies"].argsort().argsort().float() / 999 * 100
    torch.testing.assert_close(answer["percentile"], ranks, atol=0.2, rtol=0)
    ends = model.percentile(torch.tensor([0.0, 1000.0]))
    assert ends.tolist() == [0.0, 100.0]
    order = model.percentile(torch.linspace(0.0, 12.0, 500))
    assert bool((order.diff() >= 0).all())


def test_best_of_keeps_the_lowest_energy() -> None:
    """Of 40 candidates in three calls each row keeps the lowest energy; candidate 0
    is the plain sample.
    """
    model, rows = finalized(), RowStreams.range(3, 0, 7)
    answer = finished(model, rows, ebgan.SampleOptions(best_of=40))
    candidates = [(model.generator(z) + 1) / 2 for z in rows.normals(5, 0, 40, LATENT).unbind(1)]
    energies = torch.stack([model.energies(images) for images in candidates], dim=1)
    torch.testing.assert_close(answer["energies"], energies.amin(1))
    chosen = energies.argmin(1)
    expected = torch.stack(candidates, dim=1)[torch.arange(7), chosen]
    torch.testing.assert_close(answer["images"], expected)
    torch.testing.assert_close(finished(model, rows, ebgan.SampleOptions())["images"], candidates[0])
    assert set(answer) == {"images", "energies"}


def test_rejection_keeps_the_first_candidate_under_the_threshold() -> None:
    """Each row keeps its first candidate below the threshold, or the lowest energy, and
    counts its proposals.
    """
    model, rows = finalized(), RowStreams.range(3, 0, 30)
    candidates = torch.stack([(model.generator(z) + 1) / 2 for z in rows.normals(5, 0, 40, LATENT).unbind(1)], dim=1)
    energies = torch.stack([model.energies(images) for images in candidates.unbind(1)], dim=1)
    below = float(energies.flatten().quantile(0.03))
    answer = finished(model, rows, ebgan.SampleOptions(below=below, proposals=40))
    under = energies < below
    assert 0 < int(answer["accepted"].sum()) < 30
    for row in range(30):
        hits = under[row].nonzero()[:, 0].tolist()
        assert bool(answer["accepted"][row]) == bool(hits)
        assert int(answer["proposals"][row]) == (hits[0] + 1 if hits else 40)
        index = hits[0] if hits else int(energies[row].argmin())
        torch.testing.assert_close(answer["energies"][row], energies[row, index])
        torch.testing.assert_close(answer["images"][row], candidates[row, index])
        alone = finished(model, RowStreams.range(3, row, 1), ebgan.SampleOptions(below=below, proposals=40))
        assert int(alone["proposals"][0]) == int(answer["proposals"][row])


def test_a_threshold_that_all_meet_takes_one_proposal() -> None:
    """A threshold above all energies ends after one call; one below all ends
    after all proposals.
    """
    model, rows = finalized(), RowStreams.range(3, 0, 4)
    answer = finished(model, rows, ebgan.SampleOptions(below=1e6))
    assert answer["proposals"].tolist() == [1] * 4
    assert torch.equal(answer["images"], finished(model, rows, ebgan.SampleOptions())["images"])
    none = finished(model, rows, ebgan.SampleOptions(below=0.0, proposals=20))
    assert not bool(none["accepted"].any())
    best = finished(model, rows, ebgan.SampleOptions(best_of=20))
    assert torch.equal(none["images"], best["images"])


def test_decoding_z_is_sampling() -> None:
    """The code of a sample is its z: decoded, it is the same image."""
    model, rows = finalized(), RowStreams.range(3, 0, 7)
    z = rows.normals(model.config.latents, 0, 1, LATENT)[:, 0]
    decoded = model.decode(z, RowStreams.range(9, 0, 7), ebgan.NoOptions())
    assert torch.equal(decoded["images"], finished(model, rows, ebgan.SampleOptions())["images"])
    activity = model.code_activity(decoded["images"], rows)
    assert activity.values.shape == (model.config.latents,)
    assert activity.measure == "norm of the generator's first weights"


def test_the_config_has_the_default_of_best_of() -> None:
    """A sample is the best of `config.best_of` candidates; `best_of` or `below` of
    a request come first.
    """
    plain, rows = finalized(), RowStreams.range(3, 0, 7)
    model = small(best_of=5).eval()
    model.load_state_dict(plain.state_dict())
    assert model.operations()["sample"]["options"]["properties"]["best_of"]["default"] == 5
    for asked, same in (({}, {"best_of": 5}), ({"best_of": 1}, {}), ({"below": 1e6}, {"below": 1e6})):
        found = finished(model, rows, ebgan.SampleOptions(**asked))
        wanted = finished(plain, rows, ebgan.SampleOptions(**same))
        assert torch.equal(found["images"], wanted["images"])


def test_below_replaces_the_default_of_best_of() -> None:
    """The service sends all defaults of the card: `below` beside them is rejection sampling."""
    model, rows = finalized(), RowStreams.range(3, 0, 7)
    several = small(best_of=5).eval()
    several.load_state_dict(model.state_dict())
    rules = several.operations()["sample"]["options"]["properties"]
    below = float(model.quantiles[500])
    filled = {name: rule["default"] for name, rule in rules.items()} | {"below": below}
    found = finished(several, rows, from_json(ebgan.SampleOptions, filled))
    wanted = finished(model, rows, ebgan.SampleOptions(below=below))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match="not both"):
        several.sample(rows, ebgan.SampleOptions(best_of=2, below=below))


def test_invalid_sampling_options_are_rejected() -> None:
    """`best_of` with `below`, and rows of different progress, are rejected."""
    model, rows = small(), RowStreams.range(3, 0, 2)
    with pytest.raises(ValueError, match="not both"):
        model.sample(rows, ebgan.SampleOptions(best_of=2, below=1.0))
    partial = model.sample(rows, ebgan.SampleOptions(best_of=50))
    assert isinstance(partial, Continuation)
    assert all(len(value) == 2 for value in partial.state.values())
    with pytest.raises(ValueError, match="same progress"):
        model.sample(rows, ebgan.SampleOptions(best_of=50), {**partial.state, "done": torch.tensor([16, 32])})


def test_a_plain_gan_scores_but_does_not_reconstruct() -> None:
    """A plain GAN's energy is −log D(x) in nats, its code the last hidden layer;
    it cannot reconstruct.
    """
    model = small(objective="gan", layers_d=3)
    assert set(model.operations()) == {"sample", "decode", "energy", "encode"}
    assert model.operations()["energy"]["unit"] == "nats"
    images, rows = pictures(3, model), RowStreams.range(1, 0, 3)
    answer = model.energy(images, rows, ebgan.NoOptions())
    logits, code = model.discriminator(images * 2 - 1)
    torch.testing.assert_close(answer["energies"], -logits.sigmoid().log())
    torch.testing.assert_close(model.encode(images, rows, ebgan.NoOptions())["code"], code)
    with pytest.raises(ValueError, match="cannot reconstruct"):
        model.reconstruct(images, rows, ebgan.NoOptions())


def test_the_energy_is_the_distance_to_the_reconstruction() -> None:
    """The energy is ‖2 x̂ − 2 x‖ of images in 0 … 1, for both architectures."""
    for architecture in ("mlp", "conv"):
        model = small(architecture=architecture)
        images, rows = pictures(3, model), RowStreams.range(1, 0, 3)
        guess = model.reconstruct(images, rows, ebgan.NoOptions())["images"]
        energies = model.energy(images, rows, ebgan.NoOptions())["energies"]
        torch.testing.assert_close(energies, 2.0 * (guess - images).flatten(1).norm(dim=1))


def test_impossible_networks_are_rejected() -> None:
    """Convolutions need multiples of four pixels, and a discriminator needs an encoder."""
    with pytest.raises(ValueError, match="multiples of four"):
        small(architecture="conv", height=10)
    with pytest.raises(ValueError, match="leaves no encoder"):
        small(layers_d=3, layers_dec=3)


def test_the_figures_of_a_card() -> None:
    """Each figure is the mean it names, with a standard error; too few images or another
    precision are rejected.
    """
    model = finalized()
    images = pictures(20, model)
    figures = {figure["name"]: figure for figure in model.evaluate(images, 1, 30)}
    assert figures["energy"]["value"] == pytest.approx(float(model.energies(images).mean()), abs=1e-3)
    drawn = finished(model, RowStreams.range(1, 0, 30), ebgan.SampleOptions())["images"]
    assert figures["sample_energy"]["value"] == pytest.approx(float(model.energies(drawn).mean()), abs=1e-3)
    assert 0 < figures["pulling_away"]["value"] <= 1
    assert all(set(figure) == {"name", "value", "unit", "better", "detail"} for figure in figures.values())
    with pytest.raises(ValueError, match="two of each"):
        model.evaluate(images, 1, 1)
    with pytest.raises(ValueError, match="float32"):
        model.evaluate(images, 1, 30, "bfloat16")
