"""Run a command on a model without the service: train, export, evaluate, sample and more."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import kit

_PR_SET_PDEATHSIG = 1

EXAMPLES = """\
examples:
  python -m models train vae-mnist-2d --set training.validation=5000 --out runs/choice
  python -m models train vae-mnist-2d --set training.epochs=60 --out runs/final
  python -m models export runs/final --selection runs/choice
  python -m models evaluate checkpoints/vae-mnist-2d/1/model.safetensors --write
  python -m models sample checkpoints/vae-mnist-2d/1/model.safetensors --operation manifold --count 400
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser of `python -m models`, with all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m models",
        description="Train, evaluate and try the generative models, without the service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    base = argparse.ArgumentParser(add_help=False)
    base.add_argument("--extra-models", type=Path, help="a folder of more families")
    base.add_argument("--parent", type=int, help="process id of the parent: stop, as by SIGTERM, when it dies")
    base.add_argument("--memory-bytes", type=int, help="most memory that the process may allocate after its start")
    common = argparse.ArgumentParser(add_help=False, parents=[base])
    common.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …, or auto")
    common.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    common.add_argument("--data-folder", type=Path, default=Path("data"), help="where data sets are (default data/)")
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", help="a name in models/recipes, or the path of a JSON file")
    set_help = "change one value of the recipe, e.g. training.epochs=5 or config.latents=2; may be repeated"
    recipe.add_argument("--set", action="append", default=[], metavar="A.B=C", help=set_help)

    train = _add_command(subparsers, "train", "train a recipe; prints one line of JSON per epoch", recipe, common)
    train.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
    start_help = "initial weights: a model.safetensors, or some of its parts; if repeated, later ones take precedence"
    train.add_argument("--start", action="append", default=[], metavar="PATH[:PART,…]", help=start_help)
    train.add_argument("--resume", action="store_true", help="continue the run in that folder, bit-identically")
    train.add_argument("--gpus", type=int, default=1, help="number of processes, by torchrun; a GPU each if there are")

    export = _add_command(subparsers, "export", "write a run as a checkpoint with its card, without figures")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="default checkpoints/")
    export.add_argument("--version", default="1", help="version of the model (default 1)")
    export.add_argument("--selection", type=Path, help="the run whose validation chose the number of epochs")
    export.add_argument("--note", default="", help="a remark for the card")

    evaluate = _add_command(subparsers, "evaluate", "evaluate a checkpoint; prints figures as JSON lines", common)
    evaluate.add_argument("checkpoint", type=Path, help="a model.safetensors")
    evaluate.add_argument("--data", help="data set (default: the one that the model was trained on)")
    evaluate.add_argument("--count", type=int, help="use only the first COUNT test images")
    evaluate.add_argument("--k", type=int, default=5000, help="importance samples per image (default 5000)")
    z_samples_help = "samples for log Z of a bihm (default 1000 per importance sample, at most 5e6)"
    evaluate.add_argument("--z-samples", type=int, help=z_samples_help)
    evaluate.add_argument("--seed", type=int, default=1, help="of binarization and importance samples (default 1)")
    evaluate.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the decoder's matrix products"
    )
    evaluate.add_argument("--write", action="store_true", help="write the figures into the checkpoint's card")

    refresh = _add_command(subparsers, "refresh", "write what the cards of an earlier release lack into them", common)
    refresh.add_argument("checkpoint", type=Path, nargs="+", help="a model.safetensors")
    refresh.add_argument("--data", help="data set (default: the one that the model was trained on)")
    refresh.add_argument("--count", type=int, default=1000, help="use only the first COUNT test images (default 1000)")

    sample = _add_command(subparsers, "sample", "draw samples onto a PNG", common)
    sample.add_argument("checkpoint", type=Path, help="a model.safetensors")
    sample.add_argument("--operation", default="sample", help="an operation without input images (default sample)")
    sample.add_argument("--count", type=int, default=100, help="number of images (default 100)")
    sample.add_argument("--columns", type=int, help="images per row (default: as square as possible)")
    sample.add_argument("--seed", type=int, default=0, help="default 0; the same seed gives the same images")
    sample.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option; may be repeated")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="default samples.png")
    _add_service_commands(subparsers, base, common, recipe)
    return parser


def _add_service_commands(subparsers: Any, base: Any, common: Any, recipe: Any) -> None:
    """Add to `subparsers` the commands that the training worker runs in child processes.

    `base`, `common` and `recipe` are parsers whose options a command inherits: `base` has the
    options of every command, `common` also device, threads and data folder, and `recipe` the choice
    of a recipe.
    """
    publish = _add_command(subparsers, "publish", "export a run with figures and a preview", common)
    publish.add_argument("run", type=Path, help="folder of the run")
    publish.add_argument("--checkpoints", type=Path, required=True, help="folder of NAME/VERSION/model.safetensors")
    publish.add_argument("--version", required=True, help="version of the model")
    publish.add_argument("--count", type=int, default=1000, help="use only the first COUNT test images (default 1000)")
    publish.add_argument("--k", type=int, default=100, help="importance samples per image (default 100)")
    publish.add_argument("--against", type=Path, help="a checkpoint to evaluate on the same images")
    publish.add_argument("--job", default="", help="id of the training, for the card")

    combine = _add_command(subparsers, "combine", "make a checkpoint of the weights of several", common)
    combine.add_argument("out", type=Path, help="the file to write")
    source_help = "a model.safetensors, or some of its parts; the first has the card, later weights take precedence"
    combine.add_argument("source", nargs="+", metavar="PATH[:PART,…]", help=source_help)
    how = combine.add_mutually_exclusive_group()
    how.add_argument("--mean", action="store_true", help="take the mean of weights of one name")
    how.add_argument(
        "--factors", type=float, nargs="+", default=[], help="take their sum, each times the factor of its source"
    )
    combine.add_argument("--note", default="", help="a remark for the card")

    estimate = _add_command(
        subparsers, "estimate", "estimate time and memory of a run from a few steps", recipe, common
    )
    estimate.add_argument("--seconds", type=float, default=3.0, help="how long to time steps (default 3)")

    check = _add_command(subparsers, "check", "check a file's weights and operations against its card", base)
    check.add_argument("checkpoint", type=Path, help="a model.safetensors")

    dataset = _add_command(
        subparsers, "dataset", "write a named data set as NPZ, with the arrays train and test", common
    )
    dataset.add_argument("name", choices=("mnist", "fashion-mnist"), help="downloaded if possible")
    dataset.add_argument("out", type=Path, help="the file")

    _add_command(subparsers, "devices", "print how many devices a training can use: the GPUs, or one CPU", base)
    _add_command(subparsers, "families", "print the training options of the families as JSON", base)


def _add_command(subparsers: Any, name: str, summary: str, *parents: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, parents=parents, help=summary, description=summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default this process's); return the exit status.

    The status is 0 for success; 1 for an error, whose reason is on stderr; 3 for an interrupted
    training, which can be resumed; 4 for a training whose loss became NaN or diverged; and 5 for
    too little memory.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    defaults = argparse.Namespace(device="cpu", threads=1, gpus=1, extra_models=None, parent=None, memory_bytes=None)
    arguments = build_parser().parse_args(words, defaults)
    if arguments.parent:
        _stop_with_parent(arguments.parent)
    if arguments.gpus > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _exec_torchrun(words, arguments.gpus)
    if arguments.extra_models:
        import models  # noqa: PLC0415

        models.__path__.append(str(arguments.extra_models.resolve()))
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    import torch  # noqa: PLC0415 - after the threads are set, and not for --help

    from models.kit import commands, memory  # noqa: PLC0415

    memory.keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device == "cuda" and "LOCAL_RANK" in os.environ:
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(arguments.device)
    limit = arguments.memory_bytes
    if limit and torch.device(arguments.device).type == "cpu":
        memory.limit_memory(limit)  # a GPU's driver reserves more address space than any limit
    try:
        return commands.COMMANDS[arguments.command](arguments) or 0
    except (ValueError, MemoryError, RuntimeError) as error:
        if memory.is_out_of_memory(error):
            allowed = f": at most {limit >> 20} MiB may be held" if limit else ""
            print(f"error: it ran out of memory{allowed}; a smaller batch or network needs less", file=sys.stderr)
            return kit.TOO_LARGE
        if not isinstance(error, ValueError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return kit.TOO_LARGE if isinstance(error, memory.TooLargeError) else 1


def _stop_with_parent(parent: int) -> None:
    """Make the kernel send SIGTERM to this process when its parent process dies.

    `parent` is the parent's process id. If the parent has died already, the process exits with
    status 3.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()  # torchrun, which is bound to its own parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(kit.INTERRUPTED)  # the parent died before the call


def _exec_torchrun(words: Sequence[str], processes: int) -> None:
    """Replace this process by torchrun, which runs the command `words` in `processes` processes."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "models"]
    os.execv(sys.executable, [sys.executable, *run, *words])  # noqa: S606 - our own program


if __name__ == "__main__":
    sys.exit(main())
