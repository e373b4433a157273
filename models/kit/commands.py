"""Implement the commands of `python -m models`, one function each.

A function takes the parsed arguments and returns the exit status; None means 0. Import this module
after the number of threads is set: it imports torch.
"""

import argparse
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import kit
from models.kit import card, data, estimate, export, families, memory, schema, train
from models.kit.operations import options_of
from models.kit.preview import image_grid
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams


def _train(arguments: argparse.Namespace) -> int:
    """Train a recipe and write the run into a folder; return the exit status.

    SIGTERM or Ctrl-C stops the training after a checkpoint, from which `--resume` continues.
    """
    recipe = _read_recipe(arguments)
    out = arguments.out or Path("runs") / recipe.name
    out.mkdir(parents=True, exist_ok=True)
    is_main = os.environ.get("RANK", "0") == "0"
    with _locked(out) if is_main else nullcontext():
        recipe, pictures, held_back = _load_training_data(recipe, arguments.data_folder)
        if is_main and not (out / "state.pt").exists():
            provenance = export.provenance(recipe, pictures, arguments.device, held_back)
            if arguments.start:
                provenance["start"] = [export.describe_start(start) for start in arguments.start]
            (out / export.PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
        outcome = train.train(
            recipe,
            pictures.images,
            out,
            resume=arguments.resume,
            device=arguments.device,
            held_back=held_back.images if held_back else None,
            start=export.load_start_weights(arguments.start) if arguments.start else None,
            report=_print_json,
        )
    print(f"{outcome.reason} after {outcome.epochs} epochs, {outcome.seconds:.0f} s: {out}", file=sys.stderr)
    if outcome.reason in {"not a number", "diverged"}:
        what = "became NaN or infinite" if outcome.reason == "not a number" else "diverged"
        remedy = "a smaller learning_rate, grad_clip or warmup_steps may help"
        print(f"error: the loss {what} in epoch {outcome.epochs + 1}; {remedy}", file=sys.stderr)
        return kit.BAD_LOSS
    return kit.INTERRUPTED if outcome.reason == "interrupted" else 0


def _export(arguments: argparse.Namespace) -> None:
    """Write the model of a run as a checkpoint without metrics, and print the checkpoint's path.

    The path is CHECKPOINTS/NAME/VERSION/model.safetensors.
    """
    a = arguments
    print(export.export(a.run, a.checkpoints, a.version, a.selection, a.note))


def _combine(arguments: argparse.Namespace) -> None:
    """Write a checkpoint made of the weights of several checkpoints, without metrics."""
    a = arguments
    export.combine(a.source, a.out, a.data_folder, mean=a.mean, factors=a.factors, note=a.note)


def _publish(arguments: argparse.Namespace) -> None:
    """Write the model of a run as a checkpoint with metrics and a preview.

    Prints the checkpoint's path and metrics as one line of JSON. The metrics are measured on the
    first COUNT test images. With `--against CHECKPOINT`, the metrics of that checkpoint on the same
    images are printed, too.
    """
    a = arguments
    _print_json(export.publish(a.run, a.checkpoints, a.version, a.data_folder, a.count, a.k, a.against, a.job))


def _estimate(arguments: argparse.Namespace) -> None:
    """Time a few steps of a recipe, and print the memory and time of its whole training as JSON.

    The whole training is not run, and no run folder is written.
    """
    recipe = _read_recipe(arguments)
    recipe, pictures, held_back = _load_training_data(recipe, arguments.data_folder)
    held_back_images = held_back.images if held_back else None
    _print_json(estimate.estimate(recipe, pictures.images, held_back_images, arguments.device, arguments.seconds))


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError if a checkpoint's weights or operations do not fit its model card."""
    card.check(arguments.checkpoint)


def _refresh(arguments: argparse.Namespace) -> None:
    """Add to checkpoints of earlier releases what their model cards and previews lack."""
    for path in arguments.checkpoint:
        export.refresh(path, arguments.data_folder, arguments.count, arguments.data or "")


def _dataset(arguments: argparse.Namespace) -> None:
    """Write MNIST or Fashion-MNIST as one NPZ file with the arrays `train` and `test`."""
    folder = arguments.data_folder
    arrays = {split: data.load(arguments.name, split, folder).images.numpy() for split in ("train", "test")}
    with arguments.out.open("wb") as file:
        np.savez(file, train=arrays["train"], test=arrays["test"])


def _devices(_arguments: argparse.Namespace) -> None:
    """Print as JSON how many devices a training can use: the number of GPUs, or 1 without a GPU."""
    _print_json({"devices": max(1, torch.cuda.device_count())})


def _families(_arguments: argparse.Namespace) -> None:
    """Print the training options of each family as JSON, for `core/catalog/families.json`."""
    print(json.dumps(families.describe_families(), indent=1, ensure_ascii=False))


def _evaluate(arguments: argparse.Namespace) -> None:
    """Measure a checkpoint on test images, and print each metric as a line of JSON.

    With `--write`, the metrics are also stored in the checkpoint's model card.
    """
    model, described = card.load(arguments.checkpoint, arguments.device)
    source = arguments.data or described["provenance"]["data"]["name"]
    pictures = data.load(source, "test", arguments.data_folder)
    images = export.preprocess_as_trained(described, pictures.images, arguments.seed)[: arguments.count]

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(images)}", end="\n" if done == len(images) else "", file=sys.stderr, flush=True)

    extra = {} if arguments.z_samples is None else {"z_samples": arguments.z_samples}
    if extra and described["family"] != "bihm":
        raise ValueError(f"--z-samples is an option of the family bihm, this model is of {described['family']}")
    described["figures"] = model.evaluate(images, arguments.seed, arguments.k, arguments.precision, report, **extra)
    for figure in described["figures"]:
        _print_json(figure)
    if arguments.write:
        card.save(arguments.checkpoint, model, described)


def _sample(arguments: argparse.Namespace) -> None:
    """Draw images from a checkpoint's model and write them as a grid in one PNG; print its path.

    The same seed gives the same images.
    """
    model, described = card.load(arguments.checkpoint, arguments.device)
    available = [name for name, entry in described["operations"].items() if not entry["inputs"]]
    if arguments.operation not in available:
        raise ValueError(f"no operation {arguments.operation!r} without images; there are {', '.join(available)}")
    options: Any = schema.from_json(options_of(model, arguments.operation), _with_overrides({}, arguments.set))
    rows = RowStreams.range(arguments.seed, 0, arguments.count, arguments.device)
    images = getattr(model, arguments.operation)(rows, options)["images"]
    image_grid(images, arguments.columns).save(arguments.out, optimize=True)
    print(arguments.out)


_FUNCTIONS = (
    *(_train, _export, _combine, _publish, _estimate, _check),
    *(_refresh, _dataset, _devices, _families, _evaluate, _sample),
)
COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    function.__name__.removeprefix("_"): function for function in _FUNCTIONS
}


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _read_recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the command line names, changed by its options `--set`.

    Raises TooLargeError if the recipe's training needs more than `--memory-bytes`, and ValueError
    if there is no such recipe or it is not valid.
    """
    folder = Path(__file__).parents[1] / "recipes"
    name = arguments.recipe
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ValueError(f"no recipe {name!r}; there are {known}, or give the path of a JSON file")
    values = json.loads(path.read_text())
    # what was asked for counts, not the steps and epochs of the recipe
    for name, unused in (("epochs", ("steps", "min_epochs")), ("batch_size", ("min_epochs",))):
        if any(change.startswith(f"training.{name}=") for change in arguments.set):
            for default in unused:
                values.get("training", {}).pop(default, None)
    recipe = Recipe.from_json(_with_overrides(values, arguments.set))
    if arguments.memory_bytes:
        memory.check_size(recipe, arguments.memory_bytes)
    return recipe


def _with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set values in the nested dictionary `values`, in place, and return it.

    Each override is "a.b=c": it sets `values["a"]["b"]` to c, which is JSON, or else a string.
    Raises ValueError if an override has no "=".
    """
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


def _load_training_data(recipe: Recipe, folder: Path) -> tuple[Recipe, data.ImageSet, data.ImageSet | None]:
    """Return the recipe with its number of epochs set, the training images and the validation
    images.

    Data sets are read from `folder`. The number of epochs follows from `training.steps` and the
    number of images (`Recipe.fitted`). The validation images are None if the data set has no
    validation split, or if the recipe asks for no validation.
    """
    uploaded = data.find_uploaded(recipe.data, folder)
    has_validation = uploaded and (uploaded / "validation.npy").is_file() and recipe.training.validation
    images = data.load(recipe.data, "train", folder)
    held_back = data.load(recipe.data, "validation", folder) if has_validation else None
    count = min(recipe.training.pictures or len(images.images), len(images.images))
    return recipe.fitted(count if held_back else count - recipe.training.validation), images, held_back


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Return a context manager that locks the run folder `out`; its file `lock` names this process.

    Raises ValueError if another process has locked the folder.
    """
    with (out / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process works on the run {out.name}") from error
        file.truncate(0)
        file.write(json.dumps(_process_identity()))
        file.flush()
        yield


def _process_identity() -> dict[str, Any]:
    """Return what identifies this process among those of all hosts and containers.

    `pid` is valid in the PID namespace `pid_namespace` of the host that was started as `boot_id`;
    `start_ticks`, the start time of the process, shows whether the number was used again. Without
    `/proc`, there are only `pid` and `host`, the name of the host.
    """
    identity: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
    with suppress(OSError):
        identity["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity["pid_namespace"] = str(Path("/proc/self/ns/pid").readlink())
        # after the name, which may have spaces and brackets, this is field 22 of proc(5)
        identity["start_ticks"] = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return identity
