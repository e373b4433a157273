"""The command line: train, export, evaluate and sample, each with a `--help` that suffices."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
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
    train.add_argument("--resume", action="store_true", help="go on with the run in that folder, to the bit")

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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed (said why on stderr), 3 interrupted and resumable."""
    chosen = arguments().parse_args(argv)
    threads = getattr(chosen, "threads", 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch  # noqa: PLC0415 - after the threads are set, and not for --help

    torch.set_num_threads(threads)
    commands = {"train": _train, "export": _export, "evaluate": _evaluate, "sample": _sample}
    try:
        return commands[chosen.command](chosen)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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
    from models.kit import data, export, train  # noqa: PLC0415

    recipe = train.Recipe.from_json(changed(recipe_values(chosen.recipe), chosen.set))
    pictures = data.load(recipe.data, "train", chosen.data_folder)
    out = chosen.out or Path("runs") / recipe.name
    if not (out / "state.pt").exists():
        out.mkdir(parents=True, exist_ok=True)
        told = export.provenance(recipe, pictures, chosen.device)
        (out / export.DESCRIPTION).write_text(json.dumps(told, indent=2) + "\n")

    def report(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    ended = train.train(recipe, pictures.images, out, resume=chosen.resume, device=chosen.device, report=report)
    print(f"{ended.reason} after {ended.epochs} epochs, {ended.seconds:.0f} s: {out}", file=sys.stderr)
    return {"interrupted": 3, "not a number": 1}.get(ended.reason, 0)


def _export(chosen: argparse.Namespace) -> int:
    """Write a run's weights and card as CHECKPOINTS/NAME/VERSION/model.safetensors; figures come by `evaluate`."""
    from models.kit.export import export  # noqa: PLC0415

    print(export(chosen.run, chosen.checkpoints, chosen.version, chosen.selection, chosen.note))
    return 0


def _evaluate(chosen: argparse.Namespace) -> int:
    """Measure a checkpoint on test pictures and print its figures as JSON lines."""
    from models.kit import card, data  # noqa: PLC0415
    from models.kit.export import test_pictures  # noqa: PLC0415

    model, described = card.load(chosen.checkpoint, chosen.device)
    pictures = data.load(chosen.data or described["provenance"]["data"]["name"], "test", chosen.data_folder)
    images = test_pictures(described, pictures, chosen.seed)[: chosen.count]

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(images)}", end="\n" if done == len(images) else "", file=sys.stderr, flush=True)

    described["figures"] = model.evaluate(images, chosen.seed, chosen.k, chosen.precision, report)
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
    from models.kit.rows import Rows  # noqa: PLC0415

    model, described = card.load(chosen.checkpoint, chosen.device)
    known = {name: entry for name, entry in described["operations"].items() if not entry["inputs"]}
    if chosen.operation not in known:
        raise ValueError(f"no operation {chosen.operation!r} without pictures; there are {', '.join(known)}")
    options: Any = schema.from_json(options_of(model, chosen.operation), changed({}, chosen.set))
    rows = Rows.range(chosen.seed, 0, chosen.count, chosen.device)
    sheet(getattr(model, chosen.operation)(rows, options)["images"], chosen.columns).save(chosen.out, optimize=True)
    print(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
