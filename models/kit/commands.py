"""The commands of `python -m models`; each takes the parsed arguments and returns the exit status.

torch is imported inside the functions: the number of threads must be set first, and `--help` does not need it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.kit.data import ImageSet
    from models.kit.recipe import Recipe

# Exit statuses: can be resumed; the loss ended the training; not enough memory.
INTERRUPTED, BAD_LOSS, TOO_LARGE = 3, 4, 5


def train(arguments: argparse.Namespace) -> int:
    """Train a recipe; prints one line of JSON per epoch. SIGTERM or Ctrl-C leaves a checkpoint to resume from."""
    from models.kit import export  # noqa: PLC0415
    from models.kit.recipe import Recipe  # noqa: PLC0415
    from models.kit.train import train  # noqa: PLC0415

    recipe = Recipe.from_json(with_overrides(recipe_values(arguments.recipe), arguments.set))
    _check_size(recipe, arguments)
    out = arguments.out or Path("runs") / recipe.name
    out.mkdir(parents=True, exist_ok=True)
    is_main = os.environ.get("RANK", "0") == "0"
    with _locked(out) if is_main else nullcontext():
        pictures, held_back = _load_training_data(recipe, arguments.data_folder)
        if is_main and not (out / "state.pt").exists():
            provenance = export.provenance(recipe, pictures, arguments.device, held_back)
            if arguments.start:
                provenance["start"] = [export.describe_start(start) for start in arguments.start]
            (out / export.PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")

        def report(line: dict[str, Any]) -> None:
            print(json.dumps(line), flush=True)

        outcome = train(
            recipe,
            pictures.images,
            out,
            resume=arguments.resume,
            device=arguments.device,
            held_back=held_back.images if held_back else None,
            start=export.load_start_weights(arguments.start) if arguments.start else None,
            report=report,
        )
    print(f"{outcome.reason} after {outcome.epochs} epochs, {outcome.seconds:.0f} s: {out}", file=sys.stderr)
    if outcome.reason in {"not a number", "diverged"}:
        what = "became NaN or infinite" if outcome.reason == "not a number" else "diverged"
        remedy = "a smaller learning_rate, grad_clip or warmup_steps may help"
        print(f"error: the loss {what} in epoch {outcome.epochs + 1}; {remedy}", file=sys.stderr)
    return {"interrupted": INTERRUPTED, "not a number": BAD_LOSS, "diverged": BAD_LOSS}.get(outcome.reason, 0)


def export(arguments: argparse.Namespace) -> int:
    """Write a run as CHECKPOINTS/NAME/VERSION/model.safetensors, without figures; `evaluate` adds them."""
    from models.kit.export import export  # noqa: PLC0415

    print(export(arguments.run, arguments.checkpoints, arguments.version, arguments.selection, arguments.note))
    return 0


def publish(arguments: argparse.Namespace) -> int:
    """Export a run with figures and a preview; prints its path and figures as one line of JSON.

    The figures are quick ones, on the first test images; `--against` is evaluated on the same images.
    """
    from models.kit import data  # noqa: PLC0415
    from models.kit.export import publish  # noqa: PLC0415

    def load(name: str, split: str) -> ImageSet:
        return data.load(_find_source(name, arguments.data_folder), split, arguments.data_folder)

    path = arguments.checkpoints, arguments.version
    result = publish(arguments.run, *path, load, arguments.count, arguments.k, arguments.against, arguments.job)
    print(json.dumps(result, ensure_ascii=False))
    return 0


def estimate(arguments: argparse.Namespace) -> int:
    """Time a few steps of a recipe and print, as one line of JSON, what the whole run would take; keeps nothing."""
    from models.kit.estimate import estimate  # noqa: PLC0415
    from models.kit.recipe import Recipe  # noqa: PLC0415

    recipe = Recipe.from_json(with_overrides(recipe_values(arguments.recipe), arguments.set))
    _check_size(recipe, arguments)
    pictures, held_back = _load_training_data(recipe, arguments.data_folder)
    held_back_images = held_back.images if held_back else None
    print(json.dumps(estimate(recipe, pictures.images, held_back_images, arguments.device, arguments.seconds)))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Check that a file's card names a known family and its weights have the names, shapes and types of that model."""
    from models.kit.card import check  # noqa: PLC0415

    check(arguments.checkpoint)
    return 0


def dataset(arguments: argparse.Namespace) -> int:
    """Write a named data set as one NPZ file with the arrays train and test."""
    import numpy as np  # noqa: PLC0415

    from models.kit import data  # noqa: PLC0415

    folder = arguments.data_folder
    arrays = {split: data.load(arguments.name, split, folder).images.numpy() for split in ("train", "test")}
    with arguments.out.open("wb") as file:
        np.savez(file, train=arrays["train"], test=arrays["test"])
    return 0


def devices(_arguments: argparse.Namespace) -> int:
    """Print, as one line of JSON, how many devices a training can use: the GPUs, or one CPU."""
    import torch  # noqa: PLC0415

    print(json.dumps({"devices": max(1, torch.cuda.device_count())}))
    return 0


def families(_arguments: argparse.Namespace) -> int:
    """Print the training options of every family as JSON: the content of `core/catalog/families.json`."""
    from models.kit.families import describe_families  # noqa: PLC0415

    print(json.dumps(describe_families(), indent=1, ensure_ascii=False))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a checkpoint on test images and print its figures as JSON lines."""
    from models.kit import card, data  # noqa: PLC0415
    from models.kit.export import test_images  # noqa: PLC0415

    model, described = card.load(arguments.checkpoint, arguments.device)
    source = _find_source(arguments.data or described["provenance"]["data"]["name"], arguments.data_folder)
    pictures = data.load(source, "test", arguments.data_folder)
    images = test_images(described, pictures, arguments.seed)[: arguments.count]

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(images)}", end="\n" if done == len(images) else "", file=sys.stderr, flush=True)

    extra = {} if arguments.z_samples is None else {"z_samples": arguments.z_samples}
    if extra and described["family"] != "bihm":
        raise ValueError(f"--z-samples is an option of the family bihm, this model is of {described['family']}")
    described["figures"] = model.evaluate(images, arguments.seed, arguments.k, arguments.precision, report, **extra)
    for figure in described["figures"]:
        print(json.dumps(figure, ensure_ascii=False))
    if arguments.write:
        card.save(arguments.checkpoint, model, described)
    return 0


def sample(arguments: argparse.Namespace) -> int:
    """Draw samples of a checkpoint onto one PNG; the same seed gives the same images."""
    from models.kit import card, schema  # noqa: PLC0415
    from models.kit.grid import image_grid  # noqa: PLC0415
    from models.kit.operations import options_of  # noqa: PLC0415
    from models.kit.row_streams import RowStreams  # noqa: PLC0415

    model, described = card.load(arguments.checkpoint, arguments.device)
    available = [name for name, entry in described["operations"].items() if not entry["inputs"]]
    if arguments.operation not in available:
        raise ValueError(f"no operation {arguments.operation!r} without images; there are {', '.join(available)}")
    options: Any = schema.from_json(options_of(model, arguments.operation), with_overrides({}, arguments.set))
    rows = RowStreams.range(arguments.seed, 0, arguments.count, arguments.device)
    images = getattr(model, arguments.operation)(rows, options)["images"]
    image_grid(images, arguments.columns).save(arguments.out, optimize=True)
    print(arguments.out)
    return 0


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides "a.b=c", c being JSON or else a string, to nested `values`; ValueError if there is no "="."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: write NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        inner = values
        *parents, name = path.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return values


def recipe_values(name: str) -> dict[str, Any]:
    """Return the JSON of a recipe, by name or by path; ValueError lists the names."""
    folder = Path(__file__).parents[1] / "recipes"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ValueError(f"no recipe {name!r}; there are {known}, or give the path of a JSON file")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _check_size(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Raise TooLargeError if the recipe cannot fit into the memory limit."""
    from models.kit.size import check_size  # noqa: PLC0415

    if arguments.memory_bytes:
        check_size(recipe, arguments.memory_bytes)


def _load_training_data(recipe: Recipe, folder: Path) -> tuple[ImageSet, ImageSet | None]:
    """Return the training images and, if the data set has a validation split of its own and it is used, that split."""
    from models.kit import data  # noqa: PLC0415

    source = _find_source(recipe.data, folder)
    has_validation = (Path(source) / "validation.npy").is_file() and recipe.training.validation
    return data.load(source, "train", folder), data.load(source, "validation", folder) if has_validation else None


def _find_source(name: str, folder: Path) -> str:
    """Return the path of a converted data set in `folder` if there is one, else the name or path as given."""
    return str(folder / name) if (folder / name / "dataset.json").is_file() else name


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of the run in `out`, a file with the process id; ValueError if another process holds it."""
    with (out / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process works on the run {out.name}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
