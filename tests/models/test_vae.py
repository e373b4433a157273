"""`models.vae`: equations, estimators on a trained network, likelihood against quadrature."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import vae
from models.kit import card, data
from models.kit.codes import describe_activity
from models.kit.operations import Continuation
from models.kit.row_streams import RowStreams
from models.kit.sampling import manifold_coordinates

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz"
TRAINED = ROOT / "checkpoints" / "vae-mnist-2d" / "1" / "model.safetensors"


@pytest.fixture(scope="module")
def trained() -> vae.Model:
    """Return the shipped model with two latent dimensions."""
    model: vae.Model = card.load(TRAINED)[0]
    return model


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Return forty binary digits, (40, 1, 28, 28)."""
    images = data.load(str(FIXTURE)).images[:40]
    return data.binarize(images, RowStreams.range(1, 0, 40))


def small(scale: float = 3.0, **config: Any) -> vae.Model:
    """Return an untrained model of 3 × 4 images whose posterior is far from the prior."""
    model = vae.Model(vae.Config(**{"height": 3, "width": 4, "hidden": (16,), "latents": 2, **config}))
    model.initialise(RowStreams.range(3, 0, 1))
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model.eval()


def drawn(model: vae.Model, count: int, seed: int = 5) -> torch.Tensor:
    """Return binary images of the small model's shape."""
    pixels = model.config.height * model.config.width
    pictures = (RowStreams.range(seed, 0, count).uniform(pixels) > 0.5).float()
    return pictures.view(count, 1, model.config.height, model.config.width)


# --- Equations ---


def test_log_normal_is_torchs(digits: torch.Tensor) -> None:
    """Eq. 9 agrees with torch.distributions."""
    z, mean, log_variance = RowStreams.range(1, 0, 3).normal(15).view(3, 3, 5)
    expected = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(vae.log_normal(z, mean, log_variance), expected)
    torch.testing.assert_close(vae.log_prior(z), vae.log_normal(z, torch.zeros_like(z), torch.zeros_like(z)))


def test_bernoulli_likelihood_is_torchs() -> None:
    """Eq. 11 agrees with torch.distributions, also where the sigmoid is 0 or 1 in float32."""
    x = (RowStreams.range(1, 0, 4).uniform(30) > 0.5).float()
    logits = 40 * RowStreams.range(2, 0, 4).normals(30, 0, 6)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x[:, None].expand(4, 6, 30)).sum(-1)
    torch.testing.assert_close(vae.log_bernoulli(x, logits), expected)


def test_closed_form_kl_equals_monte_carlo(trained: vae.Model, digits: torch.Tensor) -> None:
    """Eq. 10's KL is within 3 standard errors of a mean of log q − log p, for each image."""
    with torch.no_grad():
        mean, log_variance = trained.encoder(digits.flatten(1))
    z = vae.reparameterise(mean, log_variance, RowStreams.range(2, 0, 40).normals(2, 0, 4000))
    samples = (vae.log_normal(z, mean[:, None], log_variance[:, None]) - vae.log_prior(z)).double()
    gap = samples.mean(1) - vae.kl_to_prior(mean, log_variance)
    error = samples.std(1) / math.sqrt(4000)
    assert float(gap.mean().abs()) < 3 * float(error.square().sum().sqrt()) / 40
    assert float((gap / error).abs().max()) < 4.5


def test_minibatch_scales_both_terms() -> None:
    """Eq. 8 scales reconstruction and KL alike by N/M, whatever the batch size."""
    log_p_x, kl = RowStreams.range(1, 0, 6).normal(3), RowStreams.range(2, 0, 6).uniform(1)[:, 0]
    whole = vae.minibatch(vae.sgvb_b(log_p_x, kl), 600)
    torch.testing.assert_close(whole, 100 * (log_p_x.mean(1).sum() - kl.sum()))
    halves = [vae.minibatch(vae.sgvb_b(log_p_x[i : i + 3], kl[i : i + 3]), 300) for i in (0, 3)]
    torch.testing.assert_close(whole, halves[0] + halves[1])


def test_iwae_bound_rises_with_k() -> None:
    """L_K of groups of the same samples never falls with the group size, and K = 1 is SGVB A."""
    log_p_x, log_p_z, log_q = 30 * RowStreams.range(4, 0, 24).normal(3 * 64).view(3, 8, 192)[..., :64]
    log_w = log_p_x + log_p_z - log_q
    means = [float(vae.iwae_bound(log_w.reshape(-1, k)).mean()) for k in (1, 2, 4, 8, 16, 32, 64)]
    assert means == sorted(means)
    assert means[-1] > means[0] + 1
    a = vae.sgvb_a(log_p_x[:, :1], log_p_z[:, :1], log_q[:, :1])
    torch.testing.assert_close(vae.iwae_bound(log_w[:, :1]), a)


# --- Estimators on a trained network ---


def estimates(model: vae.Model, x: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return an estimator's value (A, B) and its encoder gradient."""
    mean, log_variance = model.encoder(x)
    z = vae.reparameterise(mean, log_variance, noise)
    log_p_x, log_q = model.log_p_x(x, z), vae.log_normal(z, mean[:, None], log_variance[:, None])
    signal = log_p_x + vae.log_prior(z) - log_q
    log_q_fixed = vae.log_normal(z.detach(), mean[:, None], log_variance[:, None])
    return {
        "A": vae.sgvb_a(log_p_x, vae.log_prior(z), log_q),
        "B": vae.sgvb_b(log_p_x, vae.kl_to_prior(mean, log_variance)),
        "score": vae.score_function(signal, log_q_fixed),
    }


REPEATS = 200


def test_estimators_agree_in_mean_and_differ_in_variance(trained: vae.Model, digits: torch.Tensor) -> None:
    """SGVB A and B agree in the mean; B's gradient varies less, the score function's far more."""
    x = digits[:3].flatten(1)
    bias = trained.encoder.mean.bias.requires_grad_(True)
    weight = trained.encoder.mean.weight.requires_grad_(True)
    spread = trained.encoder.log_variance.weight.requires_grad_(True)
    values: dict[str, list[float]] = {"A": [], "B": []}
    gradients: dict[str, list[torch.Tensor]] = {"A": [], "B": [], "score": []}
    for repeat in range(REPEATS):
        noise = RowStreams.range(8, 3 * repeat, 3).normals(2, 0, 1)
        for name, term in estimates(trained, x, noise).items():
            parts = torch.autograd.grad(term.sum(), (bias, weight, spread), retain_graph=True)
            gradients[name].append(torch.cat([part.flatten() for part in parts]).double())
            if name in values:
                values[name].append(float(term.detach().mean()))
    for parameter in (bias, weight, spread):
        parameter.requires_grad_(False)
    difference = torch.tensor(values["A"]) - torch.tensor(values["B"])
    assert float(difference.mean().abs()) < 3 * float(difference.std()) / math.sqrt(REPEATS)
    mean = {name: torch.stack(drawn).mean(0) for name, drawn in gradients.items()}
    variance = {name: float(torch.stack(drawn).var(0).sum()) for name, drawn in gradients.items()}
    gap = torch.stack(gradients["A"]) - torch.stack(gradients["B"])
    assert float((mean["A"] - mean["B"]).square().sum()) < 3 * float(gap.var(0).sum()) / REPEATS
    assert variance["B"] < variance["A"]
    assert variance["score"] > 100 * variance["B"]


def test_score_function_points_the_same_way() -> None:
    """With many samples the score function's mean gradient is the reparameterised one."""
    model = small(latents=2)
    x = drawn(model, 1).flatten(1)
    noise = RowStreams.range(1, 0, 1).normals(2, 0, 200_000)
    target = model.encoder.mean.bias
    gradients = {
        n: torch.autograd.grad(t.sum(), target, retain_graph=True)[0] for n, t in estimates(model, x, noise).items()
    }
    torch.testing.assert_close(gradients["A"], gradients["B"], rtol=0.05, atol=0.05)
    torch.testing.assert_close(gradients["score"], gradients["B"], rtol=0.1, atol=0.15)


DRAWS = 200


def test_dreg_points_the_same_way_and_varies_less(trained: vae.Model, digits: torch.Tensor) -> None:
    """DReG's mean gradients of L_K are the plain estimator's; the encoder's has less variance."""
    images = digits[:3]
    config = dataclasses.asdict(trained.config) | {"samples": 20}
    names = ["encoder.mean.bias", "encoder.log_variance.weight", "decoder.trunk.0.weight", "decoder.logits.bias"]
    gradients: dict[str, list[list[torch.Tensor]]] = {}
    for objective in ("importance", "importance_dreg"):
        model = vae.Model(vae.Config(**{**config, "objective": objective}))
        model.load_state_dict(trained.state_dict())
        parameters = [model.get_parameter(name) for name in names]
        gradients[objective] = []
        for repeat in range(DRAWS):
            loss = model.loss(images, RowStreams.range(8, 3 * repeat, 3)).sum()
            parts = torch.autograd.grad(loss, parameters)
            gradients[objective].append([part.flatten().double() for part in parts])
    for number, name in enumerate(names):
        plain, dreg = (torch.stack([drawn[number] for drawn in gradients[kind]]) for kind in gradients)
        gap = plain - dreg
        assert float(gap.mean(0).square().sum()) < 3 * float(gap.var(0).sum()) / DRAWS + 1e-8, name
        if name.startswith("encoder"):
            assert float(dreg.var(0).sum()) < 0.5 * float(plain.var(0).sum()), name
        else:
            torch.testing.assert_close(dreg, plain, rtol=1e-3, atol=1e-3)


def test_dreg_has_no_variance_at_the_posterior() -> None:
    """If q is the posterior, weights are equal and the encoder's DReG gradient is zero."""
    model = small(objective="importance_dreg", samples=5)
    for name, parameter in model.named_parameters():  # q is the prior, and the decoder ignores z
        if name.startswith("encoder") or name == "decoder.trunk.0.weight":
            parameter.data.zero_()
    loss = model.loss(drawn(model, 4), RowStreams.range(2, 0, 4)).sum()
    bias, weight = torch.autograd.grad(loss, (model.encoder.mean.bias, model.encoder.log_variance.weight))
    torch.testing.assert_close(bias, torch.zeros_like(bias), rtol=0, atol=1e-5)
    torch.testing.assert_close(weight, torch.zeros_like(weight), rtol=0, atol=1e-5)


# --- Likelihood ---


def quadrature(model: vae.Model, x: torch.Tensor) -> torch.Tensor:
    """Return log p(x) by the rectangle rule over the latent plane, float64."""
    axis = torch.linspace(-7, 7, 281)
    z = torch.cartesian_prod(axis, axis)[None].expand(len(x), -1, -1)
    terms = (model.log_p_x(x, z) + vae.log_prior(z)).double()
    return terms.logsumexp(1) + 2 * math.log(14 / 280)


def finished(
    model: vae.Model, images: torch.Tensor, rows: RowStreams, options: vae.LikelihoodOptions
) -> dict[str, Any]:
    """Return the result of `log_likelihood` after all of its calls."""
    answer = model.log_likelihood(images, rows, options)
    while isinstance(answer, Continuation):
        answer = model.log_likelihood(images, rows, options, answer.state)
    return answer


@pytest.mark.parametrize(("likelihood", "scale"), [("bernoulli", 3.0), ("gaussian", 1.0)])
def test_log_likelihood_equals_quadrature(likelihood: str, scale: float) -> None:
    """5000 importance samples give log p(x) of a 2-D model within 4 standard errors."""
    model = small(scale, likelihood=likelihood)
    images = drawn(model, 6)
    answer = finished(model, images, RowStreams.range(2, 0, 6), vae.LikelihoodOptions(k=5000))
    with torch.no_grad():
        exact = quadrature(model, images.flatten(1))
    assert float(answer["standard_error"].max()) < 0.5
    assert float(((answer["log_p"] - exact) / answer["standard_error"]).abs().max()) < 4
    assert float(answer["effective_sample_size"].min()) >= 1
    assert float(answer["effective_sample_size"].max()) <= 5000


def test_slices_make_the_whole(trained: vae.Model, digits: torch.Tensor) -> None:
    """K = 600 in three calls equals one pass over the same samples."""
    rows, images = RowStreams.range(3, 0, 4), digits[:4]
    first = trained.log_likelihood(images, rows, vae.LikelihoodOptions(k=600))
    assert isinstance(first, Continuation)
    assert first.done == pytest.approx(250 / 600)
    assert all(len(value) == 4 for value in first.state.values())
    answer = finished(trained, images, rows, vae.LikelihoodOptions(k=600))
    with torch.inference_mode():
        log_w = trained.log_weights(images.flatten(1), rows, 0, 600).double()
    weight = (log_w - log_w.max(1, keepdim=True).values).exp()
    torch.testing.assert_close(answer["log_p"], vae.iwae_bound(log_w).float())
    size = weight.sum(1).square() / weight.square().sum(1)
    torch.testing.assert_close(answer["effective_sample_size"], size.float(), rtol=1e-4, atol=1e-3)
    error = weight.std(1) / weight.mean(1) / math.sqrt(600)
    torch.testing.assert_close(answer["standard_error"], error.float(), rtol=1e-3, atol=1e-5)
    assert answer["k"] == 600


def test_rows_of_a_batch_must_have_the_same_progress(trained: vae.Model, digits: torch.Tensor) -> None:
    """A batch of rows with different numbers of samples is rejected."""
    rows, options = RowStreams.range(3, 0, 2), vae.LikelihoodOptions(k=600)
    part = trained.log_likelihood(digits[:2], rows, options)
    assert isinstance(part, Continuation)
    state = part.state
    state["count"] = torch.tensor([250, 500])
    with pytest.raises(ValueError, match="same progress"):
        trained.log_likelihood(digits[:2], rows, options, state)


def test_energy_is_minus_the_bound(trained: vae.Model, digits: torch.Tensor) -> None:
    """Energies exceed −log p(x), and with one draw equal the training loss of SGVB B."""
    rows, images = RowStreams.range(4, 0, 8), digits[:8]
    energies = trained.energy(images, rows, vae.EnergyOptions(draws=200))["energies"]
    log_p = finished(trained, images, rows, vae.LikelihoodOptions(k=2000))["log_p"]
    assert bool((energies > -log_p).all())
    with torch.no_grad():
        loss = trained.loss(images, rows)
    torch.testing.assert_close(trained.energy(images, rows, vae.EnergyOptions(draws=1))["energies"], loss)


def test_objectives_are_their_equations() -> None:
    """The loss is −A, −B or −L_K by the config, with one sample in `single_sample_epochs`."""
    images = drawn(small(), 5)
    rows = RowStreams.range(9, 0, 5)
    x, noise = images.flatten(1), rows.normals(2, 0, 7)
    for objective in ("sgvb_a", "sgvb_b", "importance", "importance_dreg"):
        model = small(objective=objective, samples=7, single_sample_epochs=2)
        mean, log_variance = model.encoder(x)
        z = vae.reparameterise(mean, log_variance, noise)
        log_p_x = model.log_p_x(x, z)
        log_p_z, log_q = vae.log_prior(z), vae.log_normal(z, mean[:, None], log_variance[:, None])
        expected = {
            "sgvb_a": vae.sgvb_a(log_p_x, log_p_z, log_q),
            "sgvb_b": vae.sgvb_b(log_p_x, vae.kl_to_prior(mean, log_variance)),
            "importance": vae.iwae_bound(log_p_x + log_p_z - log_q),
        }[objective.removesuffix("_dreg")]
        torch.testing.assert_close(model.loss(images, rows, 2), -expected, rtol=1e-4, atol=1e-4)
        early = small(objective=objective, samples=1).loss(images, rows)
        torch.testing.assert_close(model.loss(images, rows, 1), early)


# --- Operations ---


def test_only_two_latents_make_a_manifold(trained: vae.Model) -> None:
    """A model with other latents has no manifold, and cells outside the grid are rejected."""
    assert "manifold" in trained.operations()
    other = small(latents=3)
    assert "manifold" not in other.operations()
    with pytest.raises(ValueError, match="needs 2 latents"):
        other.manifold(RowStreams.range(0, 0, 1), vae.ManifoldOptions())
    with pytest.raises(ValueError, match="has 9 cells"):
        trained.manifold(RowStreams.range(0, 9, 1), vae.ManifoldOptions(size=3))


def test_decoding_a_mean_is_reconstructing(trained: vae.Model, digits: torch.Tensor) -> None:
    """`decode` of the encoder's means equals `reconstruct`, for means and for draws of the pixels."""
    rows = RowStreams.range(3, 0, len(digits))
    codes = trained.encode(digits, rows, vae.EncodeOptions())["mean"]
    for output in ("means", "draws"):
        decoded = trained.decode(codes, rows, vae.DecodeOptions(output))
        expected = trained.reconstruct(digits, rows, vae.ReconstructOptions(output=output))
        assert torch.equal(decoded["images"], expected["images"])
    assert trained.operations()["decode"]["codes"] == {"sizes": [2], "minimum": -16.0, "maximum": 16.0}


def test_the_most_active_latents_are_listed_first() -> None:
    """A latent whose mean does not depend on the image has the activity 0; at most 64 are listed."""
    model = small(latents=70)
    images = RowStreams.range(4, 0, 40).uniform(12).view(40, 1, 3, 4)
    model.encoder.mean.weight.data[5] *= 100.0
    model.encoder.mean.weight.data[7] = 0.0
    described = describe_activity(model, images)
    assert described is not None
    assert described["measure"] == "standard deviation of the mean of q(z|x) over 40 pictures"
    assert len(described["active"]) == 64
    assert described["active"][0]["index"] == 5
    assert 7 not in {entry["index"] for entry in described["active"]}
    values = [entry["activity"] for entry in described["active"]]
    assert values == sorted(values, reverse=True)
    assert describe_activity(nn.Linear(1, 1), images) is None


def test_the_manifold_is_the_decoder_over_the_grid(trained: vae.Model) -> None:
    """The cell (row r, column c) is the decoder's mean at (Φ⁻¹ of c, Φ⁻¹ of r), for any seed."""
    cells = trained.manifold(RowStreams.range(5, 0, 9), vae.ManifoldOptions(size=3))["images"]
    at = manifold_coordinates(3)
    with torch.no_grad():
        expected = trained.decoder(torch.stack((at[2], at[1]))[None]).sigmoid()
    torch.testing.assert_close(cells[1 * 3 + 2].flatten(), expected[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(cells, trained.manifold(RowStreams.range(6, 0, 9), vae.ManifoldOptions(size=3))["images"])


def test_a_path_starts_and_ends_at_its_pictures(trained: vae.Model, digits: torch.Tensor) -> None:
    """First and last frame are the reconstructions of both images; frames beyond are rejected."""
    rows, options = RowStreams.range(5, 0, 6), vae.InterpolateOptions(steps=6)
    first, second = digits[:1].expand(6, 1, 28, 28), digits[1:2].expand(6, 1, 28, 28)
    frames = trained.interpolate(first, second, rows, options)["images"]
    ends = trained.reconstruct(digits[:2], RowStreams.range(5, 0, 2), vae.ReconstructOptions())["images"]
    torch.testing.assert_close(frames[[0, 5]], ends, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no frame 6"):
        trained.interpolate(first, second, RowStreams.range(5, 1, 6), options)


def test_options_of_sampling(trained: vae.Model) -> None:
    """Draws are binary with the right means; low temperature or truncation gives z near 0."""
    rows = RowStreams.range(2, 0, 300)
    means = trained.sample(rows, vae.SampleOptions())["images"]
    draws = trained.sample(rows, vae.SampleOptions(output="draws"))["images"]
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert float(draws.mean()) == pytest.approx(float(means.mean()), abs=0.003)
    with torch.no_grad():
        centre = trained.decoder(torch.zeros(1, 2)).sigmoid().view(1, 1, 28, 28)
    for options in (vae.SampleOptions(temperature=1e-4), vae.SampleOptions(truncation=1e-4)):
        torch.testing.assert_close(trained.sample(rows, options)["images"], centre.expand_as(means), atol=1e-2, rtol=0)


def test_binarization_of_grey_pictures(trained: vae.Model, digits: torch.Tensor) -> None:
    """A draw depends on the seed, a threshold does not, and both keep binary images."""
    grey = data.grey(data.load(str(FIXTURE)).images[:4])
    encode = {
        (how, seed): trained.encode(grey, RowStreams.range(seed, 0, 4), vae.EncodeOptions(binarization=how))["mean"]
        for how in ("draw", "threshold", "none")
        for seed in (1, 2)
    }
    assert not torch.equal(encode["draw", 1], encode["draw", 2])
    assert torch.equal(encode["threshold", 1], encode["threshold", 2])
    assert not torch.equal(encode["threshold", 1], encode["none", 1])
    binary = [
        trained.encode(digits[:4], RowStreams.range(1, 0, 4), vae.EncodeOptions(binarization=how))["mean"]
        for how in ("draw", "threshold", "none")
    ]
    assert torch.equal(binary[0], binary[1])
    assert torch.equal(binary[0], binary[2])


def test_a_gaussian_decoder_draws_within_range() -> None:
    """A Gaussian decoder's means and draws are in 0 … 1, and binarization has no effect."""
    model = small(likelihood="gaussian", channels=1)
    rows = RowStreams.range(2, 0, 20)
    for output in ("means", "draws"):
        images = model.sample(rows, vae.SampleOptions(output=output))["images"]
        assert images.shape == (20, 1, 3, 4)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    grey = rows.uniform(12).view(20, 1, 3, 4)
    draw = model.energy(grey, rows, vae.EnergyOptions(binarization="draw"))["energies"]
    assert torch.equal(draw, model.energy(grey, rows, vae.EnergyOptions(binarization="none"))["energies"])


def test_normal_initialisation_is_the_papers() -> None:
    """`init` normal draws every parameter from N(0, 0.1²); the default is within ±1/√fan-in."""
    weights = torch.cat([p.detach().flatten() for p in small_initialised("normal").parameters()])
    assert float(weights.std()) == pytest.approx(0.1, rel=0.02)
    layer = small_initialised("torch").encoder.trunk[0].requires_grad_(requires_grad=False)
    assert isinstance(layer, nn.Linear)
    assert float(layer.weight.abs().max()) <= 784**-0.5
    assert float(layer.weight.std()) == pytest.approx(784**-0.5 / math.sqrt(3), rel=0.02)


def small_initialised(init: str) -> vae.Model:
    """Return a new model of digits with one layer of 100 units."""
    model = vae.Model(vae.Config(hidden=(100,), latents=5, init=init))
    model.initialise(RowStreams.range(1, 0, 1))
    return model
