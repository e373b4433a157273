"""The command line: train, export, evaluate, sample and more, each with a `--help` that suffices."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.kit.data import Pictures
    from models.kit.train import Recipe

_PR_SET_PDEATHSIG = 1
TOO_LARGE = 5

EXAMPLES = """\
examples:
  python -m models train vae-mnist-2d --set training.validation=5000 --out runs/choice
  python -m models train vae-mnist-2d --set training.epochs=60 --out runs/final
  python -m models export runs/final --selection runs/choice
  python -m models evaluate checkpoints/vae-mnist-2d/1/model.safetensors --write
  python -m models sample checkpoints/vae-mnist-2d/1/model.safetensors --operation manifold --count 400
"""


def arguments() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m models",
        description="Train, measure and try the generative models, without the service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    outside = argparse.ArgumentParser(add_help=False)
    outside.add_argument("--extra-models", type=Path, help="a folder of more families, one file each")
    outside.add_argument("--parent", type=int, help="end, as by SIGTERM, when this process does, which started it")
    outside.add_argument("--memory-bytes", type=int, help="most memory that the process may take beyond its start")
    common = argparse.ArgumentParser(add_help=False, parents=[outside])
    common.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …, or auto")
    common.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    common.add_argument("--data-folder", type=Path, default=Path("data"), help="where named data lie (default data/)")

    train = commands.add_parser("train", parents=[common], help="fit a recipe", description=_train.__doc__)
    train.add_argument("recipe", help="a name in models/recipes, or the path of a JSON file")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="change one value of the recipe, e.g. training.epochs=5 or config.latents=2; may be repeated",
    )
    train.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
    train.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="PATH[:PART,…]",
        help="a model.safetensors to begin with, or parts of it, where the family can; of several the later ones count",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in that folder, to the bit")

    train.add_argument("--gpus", type=int, default=1, help="processes to spread over by torchrun, a GPU each if there")

    export = commands.add_parser("export", help="a run as a checkpoint with its card", description=_export.__doc__)
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="default checkpoints/")
    export.add_argument("--version", default="1", help="version of the model (default 1)")
    export.add_argument("--selection", type=Path, help="the run whose validation chose the number of epochs")
    export.add_argument("--note", default="", help="what a reader of the card should know")

    evaluate = commands.add_parser("evaluate", parents=[common], help="measure", description=_evaluate.__doc__)
    evaluate.add_argument("checkpoint", type=Path, help="a model.safetensors")
    evaluate.add_argument("--data", help="by default the test part of what the model was trained on")
    evaluate.add_argument("--count", type=int, help="only the first so many test pictures")
    evaluate.add_argument("--k", type=int, default=5000, help="importance samples a picture (default 5000)")
    evaluate.add_argument(
        "--z-samples", type=int, help="samples that measure a bihm's log Z (default 1000 k, at most 5e6)"
    )
    evaluate.add_argument("--seed", type=int, default=1, help="of the binarization and of the samples (default 1)")
    evaluate.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the decoder's matrix products"
    )
    evaluate.add_argument("--write", action="store_true", help="put the figures into the checkpoint's card")

    sample = commands.add_parser("sample", parents=[common], help="draw a picture", description=_sample.__doc__)
    sample.add_argument("checkpoint", type=Path, help="a model.safetensors")
    sample.add_argument("--operation", default="sample", help="one that needs no picture: sample (default), manifold")
    sample.add_argument("--count", type=int, default=100, help="pictures (default 100)")
    sample.add_argument("--columns", type=int, help="pictures a row (default: as square as can be)")
    sample.add_argument("--seed", type=int, default=0, help="default 0")
    sample.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option; may be repeated")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="default samples.png")
    _service_commands(commands, outside, common)
    return parser


def _service_commands(commands: Any, outside: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """What the service's training worker asks for, each in a process of its own."""
    publish = commands.add_parser(
        "publish", parents=[common], help="export and measure at once", description=_publish.__doc__
    )
    publish.add_argument("run", type=Path, help="folder of the run")
    publish.add_argument("--checkpoints", type=Path, required=True, help="folder of NAME/VERSION/model.safetensors")
    publish.add_argument("--version", required=True, help="version of the model")
    publish.add_argument("--count", type=int, default=1000, help="only the first so many test pictures (default 1000)")
    publish.add_argument("--k", type=int, default=100, help="importance samples a picture (default 100)")
    publish.add_argument("--against", type=Path, help="a checkpoint to measure on the same pictures")
    publish.add_argument("--job", default="", help="what to call the training in the card")

    estimate = commands.add_parser(
        "estimate", parents=[common], help="time and memory of a run", description=_estimate.__doc__
    )
    estimate.add_argument("recipe", help="a name in models/recipes, or the path of a JSON file")
    estimate.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as of train")
    estimate.add_argument("--seconds", type=float, default=3.0, help="how long to time steps for (default 3)")

    check = commands.add_parser(
        "check", parents=[outside], help="whether a file is a model", description=_check.__doc__
    )
    check.add_argument("checkpoint", type=Path, help="a model.safetensors")

    dataset = commands.add_parser(
        "dataset", parents=[common], help="a named set as one NPZ file", description=_dataset.__doc__
    )
    dataset.add_argument("name", choices=("mnist", "fashion-mnist"), help="looked for, and fetched where it can be")
    dataset.add_argument("out", type=Path, help="the file")

    commands.add_parser("devices", parents=[outside], help="how many devices there are", description=_devices.__doc__)
    commands.add_parser("families", parents=[outside], help="options as JSON", description=_families.__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed (said why on stderr), 3 interrupted and resumable, 4 ended by its own loss,
    5 too large for the memory that it may take.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = arguments().parse_args(words)
    if getattr(chosen, "parent", None):
        _bind(chosen.parent)
    if getattr(chosen, "gpus", 1) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _spread(words, chosen.gpus)
    if getattr(chosen, "extra_models", None):
        import models  # noqa: PLC0415

        models.__path__.append(str(chosen.extra_models.resolve()))
    threads = getattr(chosen, "threads", 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch  # noqa: PLC0415 - after the threads are set, and not for --help

    from models.kit import malloc  # noqa: PLC0415

    malloc.keep_freed_memory()
    torch.set_num_threads(threads)
    if getattr(chosen, "device", "") == "auto":
        chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    if getattr(chosen, "device", "") == "cuda" and "LOCAL_RANK" in os.environ:
        chosen.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(chosen.device)
    commands = {
        "train": _train,
        "export": _export,
        "publish": _publish,
        "estimate": _estimate,
        "check": _check,
        "devices": _devices,
        "families": _families,
        "dataset": _dataset,
        "evaluate": _evaluate,
        "sample": _sample,
    }
    from models.kit.size import TooLargeError, lacks_memory, limit_memory  # noqa: PLC0415

    limit = getattr(chosen, "memory_bytes", None)
    if limit and torch.device(getattr(chosen, "device", "cpu")).type == "cpu":
        limit_memory(limit)  # a GPU's driver reserves more addresses than any limit
    try:
        return commands[chosen.command](chosen)
    except (ValueError, MemoryError, RuntimeError) as error:
        if lacks_memory(error):
            most = f": at most {limit >> 20} MiB may be held" if limit else ""
            print(f"error: it ran out of memory{most}; a smaller batch or network needs less", file=sys.stderr)
            return TOO_LARGE
        if not isinstance(error, ValueError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return TOO_LARGE if isinstance(error, TooLargeError) else 1


def changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`values` with each "a.b=c" put in place, c being JSON or else a word; ValueError where there is no "="."""
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: write NAME=VALUE")
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
    """The JSON of a recipe, by name or by path; ValueError lists the names."""
    folder = Path(__file__).parent / "recipes"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ValueError(f"no recipe {name!r}; there are {known}, or give the path of a JSON file")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _train(chosen: argparse.Namespace) -> int:
    """Fit a recipe: prints a line of JSON an epoch; SIGTERM or Ctrl-C leaves a checkpoint to resume from."""
    from models.kit import export, train  # noqa: PLC0415

    recipe = train.Recipe.from_json(changed(recipe_values(chosen.recipe), chosen.set))
    _check_size(recipe, chosen)
    out = chosen.out or Path("runs") / recipe.name
    out.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"
    with _alone(out) if first else nullcontext():
        pictures, held_back = _training_data(recipe, chosen.data_folder)
        if first and not (out / "state.pt").exists():
            told = export.provenance(recipe, pictures, chosen.device, held_back)
            if chosen.start:
                told["start"] = [export.told_of(start) for start in chosen.start]
            (out / export.DESCRIPTION).write_text(json.dumps(told, indent=2) + "\n")

        def report(line: dict[str, Any]) -> None:
            print(json.dumps(line), flush=True)

        ended = train.train(
            recipe,
            pictures.images,
            out,
            resume=chosen.resume,
            device=chosen.device,
            held_back=held_back.images if held_back else None,
            start=export.tensors(chosen.start) if chosen.start else None,
            report=report,
        )
    print(f"{ended.reason} after {ended.epochs} epochs, {ended.seconds:.0f} s: {out}", file=sys.stderr)
    if ended.reason in {"not a number", "diverged"}:
        became = "became no number" if ended.reason == "not a number" else "left for good"
        way = "a smaller learning_rate, grad_clip or warmup_steps may help"
        print(f"error: the loss {became} in epoch {ended.epochs + 1}; {way}", file=sys.stderr)
    return {"interrupted": 3, "not a number": 4, "diverged": 4}.get(ended.reason, 0)


def _check_size(recipe: Recipe, chosen: argparse.Namespace) -> None:
    """Refuse a run that cannot fit into its memory before anything of it is made."""
    from models.kit.size import check_size  # noqa: PLC0415

    if chosen.memory_bytes:
        check_size(recipe, chosen.memory_bytes)


def _training_data(recipe: Recipe, folder: Path) -> tuple[Pictures, Pictures | None]:
    """What a recipe trains on, and what it chooses epochs on where the data hold that apart."""
    from models.kit import data  # noqa: PLC0415

    source = _source(recipe.data, folder)
    apart = (Path(source) / "validation.npy").is_file() and recipe.training.validation
    return data.load(source, "train", folder), data.load(source, "validation", folder) if apart else None


def _source(name: str, folder: Path) -> str:
    """A converted dataset in the folder goes before a set known by name or path."""
    return str(folder / name) if (folder / name / "dataset.json").is_file() else name


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run in the folder `out`; ValueError where another process does, whose id stands in its `lock`."""
    with (out / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process works on the run {out.name}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _bind(parent: int) -> None:
    """Get SIGTERM when the process that started this one dies, however it dies."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()  # torchrun, which is bound itself
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(3)  # it died meanwhile


def _spread(words: Sequence[str], processes: int) -> None:
    """Become torchrun, which starts this command so many times; whom this process is bound to, torchrun is."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "models"]
    os.execv(sys.executable, [sys.executable, *run, *words])  # noqa: S606 - our own program


def _export(chosen: argparse.Namespace) -> int:
    """Write a run's weights and card as CHECKPOINTS/NAME/VERSION/model.safetensors; figures come by `evaluate`."""
    from models.kit.export import export  # noqa: PLC0415

    print(export(chosen.run, chosen.checkpoints, chosen.version, chosen.selection, chosen.note))
    return 0


def _publish(chosen: argparse.Namespace) -> int:
    """Write a run's weights and card with figures and a preview; prints its path and figures as one line of JSON.

    The figures are of the first test pictures, and quick; those of the checkpoint `--against` are of the same ones.
    """
    from models.kit import data  # noqa: PLC0415
    from models.kit.export import publish  # noqa: PLC0415

    def load(name: str, split: str) -> Pictures:
        return data.load(_source(name, chosen.data_folder), split, chosen.data_folder)

    path = chosen.checkpoints, chosen.version
    said = publish(chosen.run, *path, load, chosen.count, chosen.k, chosen.against, chosen.job)
    print(json.dumps(said, ensure_ascii=False))
    return 0


def _estimate(chosen: argparse.Namespace) -> int:
    """Time a few steps of a recipe and print, as one line of JSON, what the whole run would take; nothing is kept."""
    from models.kit.estimate import estimate  # noqa: PLC0415
    from models.kit.train import Recipe  # noqa: PLC0415

    recipe = Recipe.from_json(changed(recipe_values(chosen.recipe), chosen.set))
    _check_size(recipe, chosen)
    pictures, held_back = _training_data(recipe, chosen.data_folder)
    said = estimate(recipe, pictures.images, held_back.images if held_back else None, chosen.device, chosen.seconds)
    print(json.dumps(said))
    return 0


def _check(chosen: argparse.Namespace) -> int:
    """Say whether a file's card names a known family and its weights have the names, shapes and types of that model."""
    from models.kit.card import check  # noqa: PLC0415

    check(chosen.checkpoint)
    return 0


def _dataset(chosen: argparse.Namespace) -> int:
    """Write a named set as an NPZ with the arrays train and test."""
    import numpy as np  # noqa: PLC0415

    from models.kit import data  # noqa: PLC0415

    parts = {part: data.load(chosen.name, part, chosen.data_folder).images.numpy() for part in ("train", "test")}
    with chosen.out.open("wb") as file:
        np.savez(file, train=parts["train"], test=parts["test"])
    return 0


def _devices(_chosen: argparse.Namespace) -> int:
    """Print, as one line of JSON, over how many devices a training can be spread: GPUs, or the one CPU."""
    import torch  # noqa: PLC0415

    print(json.dumps({"devices": max(1, torch.cuda.device_count())}))
    return 0


def _families(_chosen: argparse.Namespace) -> int:
    """Print what each family can be trained with, as JSON: `core/catalog/families.json`."""
    from models.kit.families import described  # noqa: PLC0415

    print(json.dumps(described(), indent=1, ensure_ascii=False))
    return 0


def _evaluate(chosen: argparse.Namespace) -> int:
    """Measure a checkpoint on test pictures and print its figures as JSON lines."""
    from models.kit import card, data  # noqa: PLC0415
    from models.kit.export import test_pictures  # noqa: PLC0415

    model, described = card.load(chosen.checkpoint, chosen.device)
    source = _source(chosen.data or described["provenance"]["data"]["name"], chosen.data_folder)
    pictures = data.load(source, "test", chosen.data_folder)
    images = test_pictures(described, pictures, chosen.seed)[: chosen.count]

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(images)}", end="\n" if done == len(images) else "", file=sys.stderr, flush=True)

    more = {} if chosen.z_samples is None else {"z_samples": chosen.z_samples}
    if more and described["family"] != "bihm":
        raise ValueError(f"--z-samples is of the family bihm, this is {described['family']}")
    described["figures"] = model.evaluate(images, chosen.seed, chosen.k, chosen.precision, report, **more)
    for figure in described["figures"]:
        print(json.dumps(figure, ensure_ascii=False))
    if chosen.write:
        card.save(chosen.checkpoint, model, described)
    return 0


def _sample(chosen: argparse.Namespace) -> int:
    """Draw pictures from a checkpoint onto one PNG sheet; the same seed gives the same picture."""
    from models.kit import card, schema  # noqa: PLC0415
    from models.kit.grid import sheet  # noqa: PLC0415
    from models.kit.operations import options_of  # noqa: PLC0415
    from models.kit.row_streams import RowStreams  # noqa: PLC0415

    model, described = card.load(chosen.checkpoint, chosen.device)
    known = {name: entry for name, entry in described["operations"].items() if not entry["inputs"]}
    if chosen.operation not in known:
        raise ValueError(f"no operation {chosen.operation!r} without pictures; there are {', '.join(known)}")
    options: Any = schema.from_json(options_of(model, chosen.operation), changed({}, chosen.set))
    rows = RowStreams.range(chosen.seed, 0, chosen.count, chosen.device)
    sheet(getattr(model, chosen.operation)(rows, options)["images"], chosen.columns).save(chosen.out, optimize=True)
    print(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
