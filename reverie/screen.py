"""What people see: columns of text and JSON on standard output; progress, messages and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from reverie.records import Job

_COUNTERS = {"steps", "images", "seconds"}


class Screen:
    """Where a command writes, and whether for people or, as JSON, for programs."""

    def __init__(self, *, as_json: bool) -> None:
        """Standard output and standard error as they are now."""
        self.as_json = as_json
        self.said = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def line(self, text: str) -> None:
        """A line of the answer."""
        sys.stdout.write(text + "\n")

    def json(self, body: Any) -> None:
        """The answer as the service gave it."""
        self.line(json.dumps(body, indent=2, ensure_ascii=False))

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns as wide as they need to be, cut by nothing: what is read by people may be searched by programs."""
        lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        for line in lines:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def note(self, text: str) -> None:
        """Something said beside the answer."""
        self.said.print(text)


class _Lines(Progress):
    """A bar with a line below it."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the line as far as it fits."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


class Bar:
    """How far something is: a bar on a terminal; elsewhere only what is said on the way, a line each."""

    def __init__(self, screen: Screen, title: str) -> None:
        """It shows from `with` on."""
        self._screen = screen
        self._progress = _Lines(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=screen.said,
            disable=not screen.said.is_terminal,
        )
        self._task = self._progress.add_task(title, total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def reach(self, share: float | None = None, title: str | None = None) -> None:
        """So much is done, 0…1; or the same as before, under another title."""
        self._progress.update(self._task, completed=share, description=title)

    def watch(self, job: Job) -> None:
        """As far as a job."""
        self.reach(job.progress)

    def below(self, text: str) -> None:
        """What stands below the bar, replaced by the next; a line where there is no bar."""
        if self._progress.disable:
            self._screen.note(text)
        else:
            self._progress.below = text

    def say(self, text: str) -> None:
        """A line that stays."""
        self._screen.note(text)


def metrics(values: Mapping[str, Any]) -> str:
    """An epoch's numbers on a line, what matters most first: `epoch 3  train_loss 103.2  validation_loss 105.1  …`."""
    said = {name: value for name, value in values.items() if name not in _COUNTERS and isinstance(value, int | float)}
    names = sorted(said, key=lambda name: (name != "epoch", not name.endswith("_loss")))
    return "  ".join(f"{name} {number(said[name])}" for name in names)


def number(value: float) -> str:
    """Five digits of it, all of a whole one."""
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
