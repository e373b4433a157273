"""Read and write checkpoints: safetensors files with the model's card as JSON in the header.

The card has the model's identity (name, version, family, summary, image shape), its `operations`,
its metrics (`figures`) and its `provenance`. A card can be read without torch.
"""

from __future__ import annotations

import base64
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

import models

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

FORMAT = 1
HEADER_LIMIT_BYTES = 2**20
_STRUCTURES = ("config", "image", "operations", "figures", "provenance")  # the other fields are strings and numbers
ADDED = ("decode",)  # operations that cards of earlier releases lack, though their models have them
ADDED_FIELDS = ("any_size",)  # of operations, that cards of earlier releases lack
REQUIRED = ("format", "name", "version", "family", "summary", "created_at", *_STRUCTURES, "license")


def save(path: Path, model: nn.Module, card: dict[str, Any], preview: bytes | None = None) -> None:
    """Write a model's weights, its model card and an optional PNG preview as one file, atomically.

    Raises ValueError if the card lacks a required field, or if card and preview are too large for
    the header.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - reading a card needs no torch

    _check_fields(card, "the card")
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = path.with_name(path.name + ".part")
    metadata = {"card": json.dumps(card, ensure_ascii=False, allow_nan=False)}
    if preview is not None:
        metadata["preview"] = base64.b64encode(preview).decode()
    size = sum(len(text.encode()) for text in metadata.values())
    if size > HEADER_LIMIT_BYTES * 3 // 4:
        raise ValueError(f"card and preview have {size} bytes, too many for the header of a file")
    save_file(weights, part, metadata=metadata)
    part.chmod(0o644)
    part.replace(path)


def read_card(path: Path) -> dict[str, Any]:
    """Return the model card in the header of a checkpoint file.

    Raises ValueError if the file is not a safetensors file, has no card, or has a card that lacks a
    required field or whose `format` is not `FORMAT`.
    """
    try:
        with safe_open(path, "numpy") as file:
            card = json.loads(file.metadata()["card"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is not a safetensors file, or one without a card") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{path.name} has a card of another format than {FORMAT}")
    _check_fields(card, f"the card of {path.name}")
    return card


def read_preview(path: Path) -> bytes | None:
    """Return the PNG preview in a checkpoint file's header, or None if there is none."""
    with safe_open(path, "numpy") as file:
        preview = file.metadata().get("preview")
    return None if preview is None else base64.b64decode(preview)


def _check_fields(card: dict[str, Any], name: str) -> None:
    """Raise ValueError, which names the file, if a model card lacks a required field."""
    missing = [field for field in REQUIRED if field not in card]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")


def family(name: str) -> Any:
    """Return the module of the family `name`, which defines the classes `Config` and `Model`.

    Raises ValueError if there is no such family.
    """
    if name not in families():
        raise ValueError(f"no family {name!r}; there are {', '.join(families())}")
    return importlib.import_module(f"models.{name}")


def families() -> list[str]:
    """Return the names of all model families: the modules of the package `models`, except `kit`.

    These include the modules in the folder of `--extra-models`, if it was added to the package.
    """
    folders = [Path(folder) for folder in models.__path__]
    names = {file.stem for folder in folders for file in folder.glob("[!_]*.py")}
    names |= {file.parent.name for folder in folders for file in folder.glob("[!_]*/__init__.py")}
    return sorted(names - {"kit"})


def load(path: Path, device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
    """Return the model of a checkpoint file, on `device` and in evaluation mode, and its card.

    Raises ValueError if the file has no valid model card, or if the weights do not fit the card.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    from models.kit.schema import from_json  # noqa: PLC0415

    card = read_card(path)
    module = family(card["family"])
    model = module.Model(from_json(module.Config, card["config"]))
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"the weights of {path.name} do not fit its card: {error}") from error
    return model.eval().requires_grad_(requires_grad=False).to(device), card


def warm_start(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load `weights`, from which a training starts, into its new model.

    `weights` is keyed by name. If the model has a method `warm_start`, that method loads the
    weights, and may accept a part of them; otherwise all weights of the model are required. Raises
    ValueError if names or shapes do not fit the model.
    """
    load_weights = getattr(model, "warm_start", None)
    if load_weights is not None:
        load_weights(weights)
        return
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(f"training starts from a model with the same networks: {error}") from error


def check(path: Path) -> None:
    """Check that a checkpoint fits the model of its model card, without running the model.

    Raises ValueError if names, shapes or data types of the weights differ from the model's, if the
    card lists other operations than the model has, or if the file is damaged.
    """
    import torch  # noqa: PLC0415

    from models.kit.schema import from_json  # noqa: PLC0415

    card = read_card(path)
    module = family(card["family"])
    config = from_json(module.Config, card["config"])
    with torch.device("meta"):
        model = module.Model(config)
    expected = {name: (list(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            # compare shapes before reading any tensor: the header may claim any size
            actual = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            _compare_shapes(path.name, {name: shape for name, (shape, _) in expected.items()}, actual)
            dtypes = {name: file.get_tensor(name).dtype for name in actual}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    for name, (_, dtype) in expected.items():
        if dtypes[name] != dtype:
            raise ValueError(f"{name} of {path.name} is {dtypes[name]}, not {dtype}")
    stored = card["operations"]
    operations = json.loads(json.dumps(model.operations()))
    expected_operations = {
        name: {
            field: value for field, value in spec.items() if field not in ADDED_FIELDS or field in stored.get(name, {})
        }
        for name, spec in operations.items()
        if name in stored or name not in ADDED
    }
    if expected_operations != stored:
        raise ValueError(f"the card of {path.name} lists other operations than those of {card['family']} here")


def _compare_shapes(file: str, expected: dict[str, list[int]], actual: dict[str, list[int]]) -> None:
    """Raise ValueError if the names or shapes of a file's weights differ from the expected ones."""
    missing, unknown = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    if missing or unknown:
        raise ValueError(f"{file} {f'lacks the weights {missing[0]}' if missing else f'has unknown {unknown[0]}'}")
    for name, shape in expected.items():
        if actual[name] != shape:
            raise ValueError(f"{name} of {file} has shape {actual[name]}, its card requires {shape}")
