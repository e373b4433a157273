"""`models.bihm`: estimates against exact sums over every state of a tiny model."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from models import bihm
from models.bihm import (
    Config,
    DecodeOptions,
    InpaintOptions,
    LikelihoodOptions,
    Model,
    SampleOptions,
)
from models.kit.operations import Continuation
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.trainer import Trainer

TINY = Config(height=1, width=4, hidden=(3, 2), samples=2000)


def states(n: int) -> torch.Tensor:
    """Return every binary vector of n units, (2ⁿ, n)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)))


def tiny(scale: float = 1.5, config: Config = TINY) -> Model:
    """Return a small model with large weights."""
    model = Model(config)
    for number, parameter in enumerate(model.parameters()):
        parameter.data = scale * RowStreams.range(11, number, 1).normal(parameter.numel())[0].view_as(parameter)
    return model.requires_grad_(requires_grad=False)


class Exact:
    """Exact sums over all (x, h) of a tiny model, in float64."""

    def __init__(self, model: Model) -> None:
        model = model.double()
        x = states(model.sizes[0]).double()
        h1, h2 = (states(n).double() for n in model.config.hidden)
        pairs = [h1.repeat_interleave(len(h2), 0), h2.repeat(len(h1), 1)]
        h = [layer[None].expand(len(x), -1, -1) for layer in pairs]
        self.x, self.h = x, h
        self.log_p_joint = log_joint(model, x[:, None], h)
        self.log_q = log_inferred(model, x[:, None], h)
        self.log_p = self.log_p_joint.logsumexp(1)
        self.log_p_tilde = 2.0 * (0.5 * (self.log_p_joint + self.log_q)).logsumexp(1)
        self.log_z = 0.5 * self.log_p_tilde.logsumexp(0)
        self.log_p_star = self.log_p_tilde - 2.0 * self.log_z
        model.float()


def layers(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """Return the linear layers of a model, typed as such."""
    return [module for module in modules if isinstance(module, nn.Linear)]


def log_joint(model: Model, x: torch.Tensor, h: list[torch.Tensor]) -> torch.Tensor:
    """Return log p(x, h), computed directly in float64."""

    def log_prob(t: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        return torch.where(t == 1, probability, 1 - probability).log().sum(-1)

    total = log_prob(h[-1], torch.sigmoid(model.top))
    for layer, lower, upper in zip(layers(model.p), [x.expand(-1, h[0].shape[1], -1), *h[:-1]], h, strict=True):
        total = total + log_prob(lower, torch.sigmoid(upper @ layer.weight.T + layer.bias))
    return total


def log_inferred(model: Model, x: torch.Tensor, h: list[torch.Tensor]) -> torch.Tensor:
    """Return log q(h|x), computed directly in float64."""
    total = torch.zeros(len(x), h[0].shape[1], dtype=torch.float64)
    for layer, lower, upper in zip(layers(model.q), [x, *h[:-1]], h, strict=True):
        probability = torch.sigmoid(lower @ layer.weight.T + layer.bias)
        total = total + torch.where(upper == 1, probability, 1 - probability).log().sum(-1)
    return total


def finished(method: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return the result of a sliced operation."""
    answer = method(*arguments)
    while isinstance(answer, Continuation):
        answer = method(*arguments, answer.state)
    result: dict[str, Any] = answer
    return result


@pytest.fixture(scope="module")
def exact() -> Exact:
    """Return the exact sums of the tiny model."""
    return Exact(tiny())


def test_log_joint_and_log_inferred_are_the_products_of_the_layers(exact: Exact) -> None:
    """The model's log p(x, h) and log q(h|x) agree with the definition."""
    model = tiny()
    h = [layer.float() for layer in exact.h]
    x = exact.x.float()[:, None]
    torch.testing.assert_close(model.log_joint(x, h).double(), exact.log_p_joint, atol=2e-5, rtol=0)
    torch.testing.assert_close(model.log_inferred(x, h).double(), exact.log_q, atol=2e-5, rtol=0)


def test_p_star_is_a_distribution_above_its_bound(exact: Exact) -> None:
    """Σ p* = 1, Z ≤ 1, and p̃* exceeds neither p* nor p, for every x."""
    assert float(exact.log_p_star.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(exact.log_z) < 0
    assert bool((exact.log_p_tilde <= exact.log_p_star).all())
    assert bool((exact.log_p_tilde <= exact.log_p).all())


def test_eq_7_finds_z(exact: Exact) -> None:
    """The estimate of log Z is within three standard errors of the exact
    sum, and makes Σ p* one.
    """
    found = tiny().estimate_log_z(seed=4, samples=200_000)
    assert found["log_z"] == pytest.approx(float(exact.log_z), abs=3 * found["standard_error"])
    assert 0 < found["standard_error"] < 0.02
    assert found["largest"] < 0.01
    total = float((exact.log_p_tilde - 2 * found["log_z"]).exp().sum())
    assert total == pytest.approx(1.0, abs=6 * found["standard_error"])


def test_estimators_reach_the_sums(exact: Exact) -> None:
    """log p, log p̃* and log p* by K = 20 000 samples are within four standard errors of
    the sums, for every x.
    """
    model = tiny()
    model.log_z.fill_(float(exact.log_z))
    model.log_z_error.fill_(0.0)
    images = exact.x.float().view(-1, 1, 1, 4)
    answer = finished(
        model.log_likelihood, images, RowStreams.range(5, 0, len(images)), LikelihoodOptions("none", 20_000)
    )
    for name, error, sums in (
        ("log_p", "standard_error", exact.log_p),
        ("log_p_tilde_star", "log_p_tilde_star_standard_error", exact.log_p_tilde),
        ("log_p_star", "log_p_star_standard_error", exact.log_p_star),
    ):
        away = (answer[name].double() - sums).abs() / answer[error]
        assert float(away.max()) < 4, name
    assert bool((answer["effective_sample_size"] <= answer["effective_sample_size_star"]).all())


def test_with_one_sample_p_equals_p_tilde_star() -> None:
    """With K = 1 eqs. 4 and 5 give the same number."""
    a = RowStreams.range(1, 0, 7).normal(1)
    assert torch.allclose(bihm.log_p_tilde_star(a), bihm.log_p(a), atol=1e-6)
    assert torch.allclose(bihm.log_p(a), a[:, 0], atol=1e-6)


@pytest.mark.parametrize("baseline", [False, True])
def test_algorithm_1_is_the_gradient_of_log_p_tilde_star(baseline: bool) -> None:
    """With samples in exactly q's proportions, Algorithm 1 gives the exact gradient of log p̃* (to
    1e-6).

    q's units have the probabilities ¼, ½, ¾, so that 1024 samples contain every h in proportion to
    q.
    """
    model = tiny().double()
    third = math.log(3.0)
    for layer, biases in zip(layers(model.q), ([third, -third, 0.0], [-third, third]), strict=True):
        layer.weight.data.zero_()
        layer.bias.data = torch.tensor(biases, dtype=torch.float64)
    exact = Exact(model)
    model.double()
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    at = int((exact.x == x).all(1).nonzero()[0])
    counts = (exact.log_q[at].exp() * 1024).round().long()
    assert int(counts.sum()) == 1024
    h = [layer[at].repeat_interleave(counts, 0)[None] for layer in exact.h]
    model.requires_grad_(requires_grad=True)
    carrier = bihm.surrogate_objective(
        model.log_joint(x[:, None], h), model.log_inferred(x[:, None], h), baseline=baseline
    )
    gradients = torch.autograd.grad(carrier.sum(), list(model.parameters()))
    model.requires_grad_(requires_grad=False)

    def log_p_tilde() -> float:
        every = [layer[at][None] for layer in exact.h]
        total = log_joint(model, x[:, None], every) + log_inferred(model, x[:, None], every)
        return float(2.0 * (0.5 * total).logsumexp(1))

    step = 1e-5
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            kept = float(flat[i])
            flat[i] = kept + step
            upper = log_p_tilde()
            flat[i] = kept - step
            lower = log_p_tilde()
            flat[i] = kept
            assert float(gradient.view(-1)[i]) == pytest.approx((upper - lower) / (2 * step), abs=1e-6)


def test_loss_is_the_bound_and_its_gradient_agrees_with_the_sums(exact: Exact) -> None:
    """Averaged over seeds (K = 2000), the loss is near −log p̃*, and its gradient near
    that of the exact bound.
    """
    model = tiny().requires_grad_(requires_grad=True)
    images = exact.x.float()[5].view(1, 1, 1, 4).expand(400, -1, -1, -1)
    loss = model.loss(images, RowStreams.range(2, 0, 400))
    assert float(loss.detach().mean()) == pytest.approx(-float(exact.log_p_tilde[5]), abs=0.03)
    (gradient,) = torch.autograd.grad(loss.mean(), [model.top])
    other = Model(TINY).double()
    other.load_state_dict(tiny().state_dict())
    other.double().requires_grad_(requires_grad=True)
    every = [layer[5][None] for layer in exact.h]
    x = exact.x[5][None, None]
    bound = 2.0 * (0.5 * (log_joint(other, x, every) + log_inferred(other, x, every))).logsumexp(1)
    (wanted,) = torch.autograd.grad(-bound.sum(), [other.top])
    torch.testing.assert_close(gradient.double(), wanted, atol=0.02, rtol=0)


def test_if_q_is_the_posterior_z_is_one_and_all_samples_count() -> None:
    """If q is p's posterior, Z = 1 and the effective sample size is K."""
    model = tiny()
    q, p = layers(model.q), layers(model.p)
    for layer in [*q, *p]:
        layer.weight.data.zero_()
    q[0].bias.data.copy_(p[1].bias.data)
    q[1].bias.data.copy_(model.top.data)
    found = model.estimate_log_z(seed=1, samples=5000)
    assert found["log_z"] == pytest.approx(0.0, abs=1e-6)
    rows, options = RowStreams.range(1, 0, 1), LikelihoodOptions("none", 200)
    answer = finished(model.log_likelihood, torch.zeros(1, 1, 1, 4), rows, options)
    assert float(answer["effective_sample_size"][0]) == pytest.approx(200, rel=1e-4)
    assert "log_p_star" not in answer


def test_the_sleep_phase_trains_q_alone_and_raises_z(exact: Exact) -> None:
    """Steps along the gradient of `sleep_loss` leave p as it is and move Z toward 1."""
    model = tiny().requires_grad_(requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(100):
        optimizer.zero_grad()
        model.sleep_loss(RowStreams.range(step, 0, 100)).mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if not name.startswith("q."))
    found = model.estimate_log_z(seed=4, samples=20_000)
    assert float(exact.log_z) / 2 < found["log_z"] < 0


def test_the_weight_of_the_sleep_phase_changes_gradients_and_not_the_loss() -> None:
    """The option `sleep` changes neither the value of the loss nor the gradient of p's weights,
    only that of q's.
    """
    losses, gradients = [], []
    for weight in (0.0, 0.5):
        model = tiny(config=dataclasses.replace(TINY, samples=10, sleep=weight)).requires_grad_(requires_grad=True)
        images = states(4)[:12].view(12, 1, 1, 4)
        loss = model.loss(images, RowStreams.range(2, 0, 12))
        weights = [layer.weight for layer in [*layers(model.p), *layers(model.q)]]
        gradients.append(torch.autograd.grad(loss.mean(), weights))
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    assert all(torch.equal(a, b) for a, b in zip(gradients[0][:2], gradients[1][:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(gradients[0][2:], gradients[1][2:], strict=True))


def test_the_gradient_of_log_z_is_exact_on_average() -> None:
    """The gradient of `log_z_surrogate` is ∇ log Z² = ∇ log Σ p̃*(x), summed over every state."""
    model = tiny().requires_grad_(requires_grad=True)
    parameters = list(model.parameters())
    x, h1, h2 = (states(n) for n in model.sizes)
    h = [h1.repeat_interleave(len(h2), 0), h2.repeat(len(h1), 1)]
    h = [layer[None].expand(len(x), -1, -1) for layer in h]
    roots = 0.5 * (model.log_joint(x[:, None], h) + model.log_inferred(x[:, None], h))
    log_z_squared = (2.0 * roots.logsumexp(1)).logsumexp(0)
    exact = torch.autograd.grad(log_z_squared, parameters)
    estimate = torch.autograd.grad(model.log_z_surrogate(RowStreams.range(5, 0, 40_000)), parameters)
    for expected, actual in zip(exact, estimate, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.01)


def test_the_weight_of_log_z_changes_gradients_and_not_the_loss() -> None:
    """The option `z_weight` adds −∇ log Z² times the weight to the mean gradient of a batch."""
    images, rows, gradients, losses = states(4)[:12].view(12, 1, 1, 4), RowStreams.range(2, 0, 12), [], []
    for weight in (0.0, 0.5):
        model = tiny(config=dataclasses.replace(TINY, samples=10, z_weight=weight)).requires_grad_(requires_grad=True)
        loss = model.loss(images, rows)
        gradients.append(torch.autograd.grad(loss.mean(), model.top))
        losses.append(loss.detach())
    (added,) = torch.autograd.grad(model.log_z_surrogate(rows), model.top)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[1][0], gradients[0][0] - 0.5 * added)


def test_the_validation_loss_has_the_weight_of_log_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch is chosen by the mean of −log p̃* minus `z_weight` times log Z²."""
    images = (states(4)[:12].view(12, 1, 1, 4) * 255).byte()
    draws, losses = 5000, {}
    monkeypatch.setattr(bihm, "VALIDATION_DRAWS", draws)
    for weight in (0.0, 0.5):
        config = {**dataclasses.asdict(TINY), "z_weight": weight}
        training = {"binarization": "none", "validation": 4, "batch_size": 4}
        recipe = {"family": "bihm", "name": "a", "summary": "", "data": "", "config": config, "training": training}
        trainer = Trainer(Recipe.from_json(recipe), images)
        trainer.model.load_state_dict(tiny().state_dict())
        losses[weight] = trainer.validate()
    log_z = tiny().estimate_log_z(1, draws)["log_z"]
    assert log_z < -0.01
    assert losses[0.5] == pytest.approx(losses[0.0] - 0.5 * 2.0 * log_z)


def test_the_prior_is_an_l1_penalty_by_the_size_of_the_data() -> None:
    """Per image the prior adds its rate over the number of training images, times Σ|w|."""
    images, losses = states(4)[:12].view(12, 1, 1, 4), []
    for prior, l1 in ((0.0, 0.0), (2.0, 0.0), (0.0, 0.04)):
        model = tiny(config=dataclasses.replace(TINY, samples=10, prior=prior, l1=l1))
        model.training_images = 50
        losses.append(model.loss(images, RowStreams.range(2, 0, 12)).detach())
    weights = sum(float(layer.weight.detach().abs().sum()) for layer in layers([*model.q, *model.p]))
    torch.testing.assert_close(losses[1], losses[0] + 0.04 * weights)
    torch.testing.assert_close(losses[2], losses[1])


def shares(images: torch.Tensor) -> torch.Tensor:
    """Return how often each of the 16 images of four pixels occurs."""
    code = (images.flatten(1) * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(1).long()
    return torch.bincount(code, minlength=16).double() / len(code)


def departure(found: torch.Tensor, probability: torch.Tensor, count: int) -> float:
    """Return χ² of 16 shares, per degree of freedom."""
    return float((count * (found - probability).square() / probability).sum() / (len(found) - 1))


@pytest.mark.parametrize(
    ("options", "of"),
    [
        (SampleOptions(source="p", output="draws"), "p"),
        (SampleOptions(source="p_star", output="draws", steps=10, candidates=4, inner=20), "p_star"),
        (SampleOptions(source="block", output="draws", pool=60, inner=10), "p_star"),
    ],
    ids=["ancestral", "gibbs", "block"],
)
def test_samples_follow_their_distribution(options: SampleOptions, of: str, exact: Exact) -> None:
    """3000 draws have the exact shares (χ² per degree of freedom below 3), and p's
    differ from those of p*.
    """
    count = 3000
    answer = finished(tiny().sample, RowStreams.range(8, 0, count), options)
    wanted = {"p": exact.log_p.exp(), "p_star": exact.log_p_star.exp()}
    found = shares(answer["images"])
    assert departure(found, wanted.pop(of), count) < 3
    assert departure(found, wanted.popitem()[1], count) > 10


def test_inpainting_draws_the_hidden_pixels_given_the_known(exact: Exact) -> None:
    """Two hidden pixels have the shares of p*(hidden | known); the known ones do not change."""
    count = 2000
    images = torch.tensor([1.0, 0.0, 0.3, 0.6]).view(1, 1, 1, 4).expand(count, -1, -1, -1)
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4).expand(count, -1, -1, -1)
    options = InpaintOptions(binarization="draw", output="draws", steps=15, candidates=4, inner=40, pool=10)
    answer = finished(tiny().inpaint, images, mask, RowStreams.range(9, 0, count), options)
    assert torch.equal(answer["images"].flatten(1)[:, :2], images.flatten(1)[:, :2])
    found = shares(answer["images"])[8:12]
    wanted, other = exact.log_p_star.exp()[8:12], exact.log_p.exp()[8:12]
    assert departure(found, wanted / wanted.sum(), count) < 3
    assert departure(found, other / other.sum(), count) > 10


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_mask_must_hide_some_and_keep_some(level: float) -> None:
    """A mask that hides nothing or everything is rejected."""
    picture = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match="mask"):
        tiny().inpaint(picture, torch.full_like(picture, level), RowStreams.range(0, 0, 1), InpaintOptions())


def test_decodings_follow_p_given_a_layer(exact: Exact) -> None:
    """Of the lowest layer the probabilities are exact; of the top layer their mean is that of
    p(x|h).
    """
    model, count = tiny(), 20000
    h1 = states(3)
    lowest = model.decode(h1, RowStreams.range(1, 0, len(h1)), DecodeOptions(layer=0))
    torch.testing.assert_close(lowest["images"].flatten(1), layers(model.p)[0](h1).sigmoid())
    for top in states(2):
        given = (exact.h[1][0] == top.double()).all(1)
        joint = exact.log_p_joint[:, given].exp()
        expected = (joint.sum(1) @ exact.x / joint.sum()).float()
        for output in ("means", "draws"):
            rows = RowStreams.range(5, 0, count)
            drawn = model.decode(top.expand(count, -1), rows, DecodeOptions(output=output))["images"]
            torch.testing.assert_close(drawn.flatten(1).mean(0), expected, rtol=0.0, atol=0.015)
    half = model.decode(torch.full((count, 2), 0.5), RowStreams.range(5, 0, count), DecodeOptions(binarization="draw"))
    assert half["binarization"] == "draw"
    assert model.operations()["decode"]["codes"] == {"sizes": [3, 2], "minimum": 0.0, "maximum": 1.0, "option": "layer"}


def test_encodings_are_the_layers_probabilities(exact: Exact) -> None:
    """The first layer's probabilities are exact; the second's agree with the sums over h₁."""
    images = exact.x.float().view(-1, 1, 1, 4)
    answer = tiny().encode(images, RowStreams.range(3, 0, 16), bihm.EncodeOptions("none", 1000))
    wanted = [(exact.log_q.exp()[..., None] * layer).sum(1) for layer in exact.h]
    torch.testing.assert_close(answer["layers.0"].double(), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(answer["layers.1"].double(), wanted[1], atol=0.06, rtol=0)
