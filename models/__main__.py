"""Command line of the models without the service: train, export, evaluate, sample and more; see `--help`."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.kit import commands

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
    """Return the parser of all commands and their options."""
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

    train = _add_command(subparsers, "train", commands.train, "train a recipe", common)
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
        help="initial weights: a model.safetensors, or some of its parts; if repeated, later ones take precedence",
    )
    train.add_argument("--resume", action="store_true", help="continue the run in that folder, bit-identically")
    train.add_argument("--gpus", type=int, default=1, help="number of processes, by torchrun; a GPU each if there are")

    export = _add_command(subparsers, "export", commands.export, "write a run as a checkpoint with its card")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="default checkpoints/")
    export.add_argument("--version", default="1", help="version of the model (default 1)")
    export.add_argument("--selection", type=Path, help="the run whose validation chose the number of epochs")
    export.add_argument("--note", default="", help="a remark for the card")

    evaluate = _add_command(subparsers, "evaluate", commands.evaluate, "evaluate a checkpoint", common)
    evaluate.add_argument("checkpoint", type=Path, help="a model.safetensors")
    evaluate.add_argument("--data", help="data set (default: the one that the model was trained on)")
    evaluate.add_argument("--count", type=int, help="use only the first COUNT test images")
    evaluate.add_argument("--k", type=int, default=5000, help="importance samples per image (default 5000)")
    evaluate.add_argument(
        "--z-samples", type=int, help="samples for log Z of a bihm (default 1000 per importance sample, at most 5e6)"
    )
    evaluate.add_argument("--seed", type=int, default=1, help="of binarization and importance samples (default 1)")
    evaluate.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the decoder's matrix products"
    )
    evaluate.add_argument("--write", action="store_true", help="write the figures into the checkpoint's card")

    sample = _add_command(subparsers, "sample", commands.sample, "draw samples onto a PNG", common)
    sample.add_argument("checkpoint", type=Path, help="a model.safetensors")
    sample.add_argument("--operation", default="sample", help="an operation without input images (default sample)")
    sample.add_argument("--count", type=int, default=100, help="number of images (default 100)")
    sample.add_argument("--columns", type=int, help="images per row (default: as square as possible)")
    sample.add_argument("--seed", type=int, default=0, help="default 0")
    sample.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option; may be repeated")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="default samples.png")
    _add_service_commands(subparsers, base, common)
    return parser


def _add_service_commands(subparsers: Any, base: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands that the service's training worker runs, each in a process of its own."""
    publish = _add_command(subparsers, "publish", commands.publish, "export and evaluate a run", common)
    publish.add_argument("run", type=Path, help="folder of the run")
    publish.add_argument("--checkpoints", type=Path, required=True, help="folder of NAME/VERSION/model.safetensors")
    publish.add_argument("--version", required=True, help="version of the model")
    publish.add_argument("--count", type=int, default=1000, help="use only the first COUNT test images (default 1000)")
    publish.add_argument("--k", type=int, default=100, help="importance samples per image (default 100)")
    publish.add_argument("--against", type=Path, help="a checkpoint to evaluate on the same images")
    publish.add_argument("--job", default="", help="id of the training, for the card")

    estimate = _add_command(subparsers, "estimate", commands.estimate, "time and memory of a run", common)
    estimate.add_argument("recipe", help="a name in models/recipes, or the path of a JSON file")
    estimate.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as of train")
    estimate.add_argument("--seconds", type=float, default=3.0, help="how long to time steps (default 3)")

    check = _add_command(subparsers, "check", commands.check, "check that a file is a model", base)
    check.add_argument("checkpoint", type=Path, help="a model.safetensors")

    dataset = _add_command(subparsers, "dataset", commands.dataset, "write a named data set as NPZ", common)
    dataset.add_argument("name", choices=("mnist", "fashion-mnist"), help="downloaded if possible")
    dataset.add_argument("out", type=Path, help="the file")

    _add_command(subparsers, "devices", commands.devices, "number of devices", base)
    _add_command(subparsers, "families", commands.families, "training options of the families as JSON", base)


def _add_command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Add a command that calls `run`, described by its docstring."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, parents=list(parents), help=summary, description=run.__doc__
    )
    parser.set_defaults(run_command=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: success; 1: failed, with the reason on stderr; 3: interrupted, can be resumed; 4: the training's loss became NaN
    or diverged; 5: not enough memory.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words)
    if getattr(arguments, "parent", None):
        _stop_with_parent(arguments.parent)
    if getattr(arguments, "gpus", 1) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _exec_torchrun(words, arguments.gpus)
    if getattr(arguments, "extra_models", None):
        import models  # noqa: PLC0415

        models.__path__.append(str(arguments.extra_models.resolve()))
    threads = getattr(arguments, "threads", 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch  # noqa: PLC0415 - after the threads are set, and not for --help

    from models.kit import malloc  # noqa: PLC0415
    from models.kit.size import TooLargeError, is_out_of_memory, limit_memory  # noqa: PLC0415

    malloc.keep_freed_memory()
    torch.set_num_threads(threads)
    if getattr(arguments, "device", "") == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if getattr(arguments, "device", "") == "cuda" and "LOCAL_RANK" in os.environ:
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(arguments.device)
    limit = getattr(arguments, "memory_bytes", None)
    if limit and torch.device(getattr(arguments, "device", "cpu")).type == "cpu":
        limit_memory(limit)  # a GPU's driver reserves more address space than any limit
    try:
        command: Callable[[argparse.Namespace], int] = arguments.run_command
        return command(arguments)
    except (ValueError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            allowed = f": at most {limit >> 20} MiB may be held" if limit else ""
            print(f"error: it ran out of memory{allowed}; a smaller batch or network needs less", file=sys.stderr)
            return commands.TOO_LARGE
        if not isinstance(error, ValueError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return commands.TOO_LARGE if isinstance(error, TooLargeError) else 1


def _stop_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent process dies, for whatever reason."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()  # torchrun, which is bound to its own parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(commands.INTERRUPTED)  # it died before the call


def _exec_torchrun(words: Sequence[str], processes: int) -> None:
    """Replace this process by torchrun, which starts the same command in `processes` processes."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "models"]
    os.execv(sys.executable, [sys.executable, *run, *words])  # noqa: S606 - our own program


if __name__ == "__main__":
    sys.exit(main())
