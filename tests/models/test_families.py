"""The contract that every family of `models/` fulfils."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from models.kit import card
from models.kit.codes import CodeFormat
from models.kit.operations import Continuation, describe, options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json, json_schema, to_json

FAMILIES = card.families()
SMALL = {"k": 20, "steps": 5, "draws": 3}


def built(family: str) -> tuple[Any, Any]:
    """Return the family's module and a model of its default `Config` with reproducible weights."""
    module = card.family(family)
    model = module.Model(module.Config())
    model.initialise(RowStreams.range(3, 0, 1))
    return module, model.eval()


def shape_of(config: Any) -> tuple[int, int, int]:
    """Return the (C, H, W) of a family's images."""
    return config.channels, config.height, config.width


def output_shape(model: Any, operation: str) -> tuple[int, int, int]:
    """Return the (C, H, W) of an operation's images: the family's, or an enlarged
    tile without its margin.
    """
    channels, height, width = shape_of(model.config)
    entry = model.operations()[operation]
    if "margin" not in entry:
        return channels, height, width
    scale = entry["options"]["properties"]["scale"]["default"]
    return channels, *(scale * (edge - 2 * entry["margin"]) for edge in (height, width))


def finished(method: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return the final result of an operation, after all of its calls."""
    answer = method(*arguments)
    while isinstance(answer, Continuation):
        assert 0 < answer.done < 1
        answer = method(*arguments, answer.state)
    result: dict[str, Any] = answer
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_starts_from_weights_of_the_same_networks(family: str) -> None:
    """A training can start from the weights of a model with the same networks; weights of others
    are rejected.
    """
    module, trained = built(family)
    model = module.Model(module.Config())
    card.warm_start(model, trained.state_dict())
    for own, other in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(ValueError, match="training starts from a"):
        card.warm_start(model, {"unknown.weight": torch.zeros(3)})


def codes_of(model: Any, rows: RowStreams) -> torch.Tensor:
    """Return codes in the range that the model states, of the length for its default options."""
    stated: CodeFormat = model.code_format()
    return stated.minimum + (stated.maximum - stated.minimum) * rows.uniform(stated.sizes[-1], 40)


def run_operation(model: Any, operation: str, rows: RowStreams) -> dict[str, Any]:
    """Run an operation for `rows`, with input images that depend on the row."""
    entry = model.operations()[operation]
    if "codes" in entry:
        options: Any = options_of(model, operation)()
        return finished(getattr(model, operation), codes_of(model, rows), rows, options)
    small = {name: value for name, value in SMALL.items() if name in entry["options"]["properties"]}
    pictures = []
    for number, _ in enumerate(entry["inputs"]):
        channels, height, width = shape_of(model.config)
        drawn = rows.uniform(channels * height * width, 40 + number)
        pictures.append(drawn.view(-1, channels, height, width))
    options = from_json(options_of(model, operation), small)
    return finished(getattr(model, operation), *pictures, rows, options)


def losses_of(model: Any, images: torch.Tensor, rows: RowStreams) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the loss and "", or the losses of each optimizer step and the prefix of
    its module's weights.
    """
    if not getattr(model, "OPTIMIZED_MODULES", ()):
        yield "", model.loss(images, rows)
        return
    for step in model.training_steps(images, rows):
        yield f"{step.module}.", step.losses


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_documented_as_a_paper(family: str) -> None:
    """The docstring of a family's module names the paper and how the module departs from it."""
    document = inspect.getdoc(card.family(family)) or ""
    assert "arXiv" in document or "PMLR" in document
    assert "Departs from the paper:" in document


@pytest.mark.parametrize("family", FAMILIES)
def test_its_config_survives_json(family: str) -> None:
    """A config survives JSON, and its schema has every field with its default."""
    module = card.family(family)
    config = module.Config()
    assert from_json(module.Config, to_json(config)) == config
    properties = json_schema(module.Config)["properties"]
    assert {name: entry["default"] for name, entry in properties.items()} == to_json(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_weights_survive_a_file(family: str) -> None:
    """Weights saved as safetensors and loaded into a new model are bit-identical."""
    module, model = built(family)
    again = module.Model(module.Config())
    again.load_state_dict(load(save(model.state_dict())))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_its_operations_are_those_it_defines(family: str) -> None:
    """`operations` lists the model's methods, with inputs and options from their signatures."""
    _, model = built(family)
    listed = model.operations()
    assert listed
    assert set(listed) <= set(describe(model))
    for entry in listed.values():
        assert entry["inputs"] in ([], ["images"], ["first", "second"], ["images", "mask"], ["codes"])
        assert ("codes" in entry) == (entry["inputs"] == ["codes"])
        assert entry["options"]["additionalProperties"] is False


@pytest.mark.parametrize("family", FAMILIES)
def test_each_result_has_the_right_shape_and_range(family: str) -> None:
    """Images are in 0 … 1, tensors are finite with one row per request, and all else is
    a string or a number.
    """
    _, model = built(family)
    rows = RowStreams.range(11, 0, 3)
    for operation in model.operations():
        for name, value in run_operation(model, operation, rows).items():
            if not isinstance(value, torch.Tensor):
                assert isinstance(value, int | float | str), (operation, name)
                continue
            assert value.shape[0] == 3, (operation, name)
            assert bool(torch.isfinite(value).all()), (operation, name)
            if name == "images":
                assert value.shape[1:] == output_shape(model, operation)
                assert 0 <= float(value.min()) <= float(value.max()) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_batch_mates(family: str) -> None:
    """A row alone equals that row in a batch, up to the last bits that depend on
    a CPU's batch shape.
    """
    _, model = built(family)
    for operation in model.operations():
        together = run_operation(model, operation, RowStreams.range(11, 0, 3))
        alone = run_operation(model, operation, RowStreams.range(11, 2, 1))
        for name, value in alone.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value[0], together[name][2], rtol=1e-4, atol=1e-4)
        again = run_operation(model, operation, RowStreams.range(11, 0, 3))
        for name, value in together.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, again[name]), (operation, name)
        if model.operations()[operation]["inputs"]:
            other = run_operation(model, operation, RowStreams.range(12, 0, 3))
            assert any(not torch.equal(v, other[n]) for n, v in together.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("family", FAMILIES)
def test_its_losses_are_finite_with_one_per_image(family: str) -> None:
    """`loss` or each of `training_steps` gives one finite number per image, with a
    gradient for every weight.
    """
    module, model = built(family)
    rows = RowStreams.range(5, 0, 16)
    channels, height, width = shape_of(module.Config())
    images = (rows.uniform(channels * height * width, 9) > 0.5).float().view(16, channels, height, width)
    moved = set()
    for player, losses in losses_of(model, images, rows):
        assert losses.shape == (16,)
        assert bool(torch.isfinite(losses).all())
        named = {name: p for name, p in model.named_parameters() if name.startswith(player)}
        losses.mean().backward(inputs=list(named.values()))
        for name, parameter in named.items():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name
        moved |= set(named)
    assert moved == {name for name, _ in model.named_parameters()}


def test_a_family_is_a_module_or_a_package() -> None:
    """The families are the modules of `models/` without a leading underscore and its
    packages except `kit`.
    """
    folder = Path(card.__file__).parents[1]
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}
    packages = {file.parent.name for file in folder.glob("*/__init__.py")} - {"kit"}
    assert modules | packages == set(FAMILIES)
    with pytest.raises(ValueError, match="no family 'kit'"):
        card.family("kit")
    with pytest.raises(ValueError, match="no family"):
        card.family("../vae")
