"""Read and write the files in the folder of a training.

They are `recipe.json`; `metrics.jsonl`, with one line per epoch; `progress.json`, at most a second
old while the training runs; `preview.png` and, of some epochs, `previews/EPOCH.png`; and
`state.pt`, the checkpoint from which it resumes.
"""

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from models.kit.optimizers import epochs_at_constant_rate
from models.kit.recipe import Recipe

MAX_PREVIEWS = 64  # previews of epochs that are kept


class RunFolder:
    """Reads and writes the files in the folder `path` of a training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: bytes) -> None:
        """Write `content` to the file `name` in the folder, atomically."""
        file = self.path / name
        part = file.with_name(f".{file.name}.part")
        part.write_bytes(content)
        part.replace(file)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append the metrics of one epoch to `metrics.jsonl`, as one line of JSON."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_preview(self, epoch: int, picture: bytes) -> None:
        """Write the PNG `picture` as the newest preview and as the preview of `epoch`.

        `epoch` is the number of finished epochs. If there are more than `MAX_PREVIEWS` previews by
        epoch, the one is removed whose neighbours are nearest to each other; so the others stay
        about evenly spaced, and the first and the last are kept.
        """
        self.write("preview.png", picture)
        (self.path / "previews").mkdir(exist_ok=True)
        self.write(f"previews/{epoch}.png", picture)
        epochs = sorted(int(file.stem) for file in self._previews())
        if len(epochs) > MAX_PREVIEWS:
            least = min(range(1, len(epochs) - 1), key=lambda index: epochs[index + 1] - epochs[index - 1])
            (self.path / f"previews/{epochs[least]}.png").unlink(missing_ok=True)

    def _previews(self) -> list[Path]:
        """Return the files of the previews by epoch, in the order of the epochs."""
        return [file for file in (self.path / "previews").glob("*.png") if file.stem.isdecimal()]

    def drop_metrics_after(self, epoch: int) -> None:
        """Delete the metrics and previews of epochs after `epoch`, and damaged lines of metrics.

        A resumed training repeats the epochs after its checkpoint and writes their metrics again.
        """
        for file in self._previews():
            if int(file.stem) > epoch:
                file.unlink(missing_ok=True)
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self.write(path.name, "".join(line + "\n" for line in lines if _epoch_of(line) <= epoch).encode())

    def save_state(self, state: dict[str, Any], previous: str) -> None:
        """Write the checkpoint `state.pt` atomically and durably.

        Raises ValueError if it cannot be written, for example on a full disk; the previous
        checkpoint is then kept. The error message ends with `previous`, which describes the
        previous checkpoint.
        """
        part = self.path / "state.pt.part"
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path / "state.pt")  # noqa: PTH105
        except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
            part.unlink(missing_ok=True)
            step = state["steps"]
            raise ValueError(f"the checkpoint of step {step} could not be written ({error}); {previous}") from error

    def load_state(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Return the content of the checkpoint `state.pt`, with its tensors on `device`."""
        state: dict[str, Any] = torch.load(self.path / "state.pt", map_location=device, weights_only=True)
        return state

    def read_state(self) -> bytes:
        """Return the bytes of the checkpoint `state.pt`."""
        return (self.path / "state.pt").read_bytes()

    def check_recipe(self, state: dict[str, Any], recipe: Recipe) -> None:
        """Raise ValueError if the training of the checkpoint `state` cannot go on with `recipe`.

        The training began with the recipe in `state`, and `recipe` must be equal to it. Only
        `save_every_s` may always differ. The number of epochs and the decay of the learning rate
        may differ if, by both recipes, the rate is constant in all epochs begun so far.
        """
        # a field that did not exist when the training began has its default
        original = Recipe.from_json(json.loads(state["recipe"]))
        epochs_begun = int(state["epoch"]) + bool(state["step"])
        may_differ = {"save_every_s"}
        constant = min(epochs_at_constant_rate(original.training), epochs_at_constant_rate(recipe.training))
        if epochs_begun <= constant:
            may_differ |= {"epochs", "decay", "drop_from", "drop_to"}
        if _without(original.to_json(), may_differ) != _without(recipe.to_json(), may_differ):
            raise ValueError(
                "the run was started by another recipe; only training.epochs and the decay of a learning rate that has"
                " been constant so far may change"
            )


def decode_state(content: bytes, device: torch.device | str) -> dict[str, Any]:
    """Return the content of a checkpoint from its file's bytes, with its tensors on `device`."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


def print_progress(epoch: int, epochs: int, share: float, loss: float) -> None:
    """Draw a progress bar with the mean loss of the epoch on stderr, if that is a terminal.

    `share` is the finished fraction of the epoch `epoch`, which is counted from 0.
    """
    if sys.stderr.isatty():
        bar = "█" * round(24 * share) + "·" * (24 - round(24 * share))
        text = f"\repoch {epoch + 1}/{epochs} {bar} loss {loss:9.3f} nats"
        sys.stderr.write(text + ("\n" if share == 1 else ""))
        sys.stderr.flush()


def _epoch_of(line: str) -> float:
    """Return the epoch that a line of `metrics.jsonl` is about; infinity if the line is damaged."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _without(recipe: dict[str, Any], fields: set[str]) -> dict[str, Any]:
    """Return a recipe's JSON without the fields of its object `training` that `fields` names."""
    return {**recipe, "training": {name: value for name, value in recipe["training"].items() if name not in fields}}
