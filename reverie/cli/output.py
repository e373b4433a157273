"""Output of the commands.

Results go to standard output; progress, messages and errors go to standard error.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from reverie.records import Job, Model

_NOT_SHOWN = {"steps", "images", "seconds"}  # counters among an epoch's metrics


class Output:
    """Prints text for people, or, with `as_json`, JSON for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print_line(self, text: str) -> None:
        """Print a line of the result."""
        sys.stdout.write(text + "\n")

    def print_json(self, body: Any) -> None:
        """Print the JSON that the service returned."""
        self.print_line(json.dumps(body, indent=2, ensure_ascii=False))

    def print_table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print aligned columns. No cell is shortened, so that the output can be searched."""
        lines = [list(headings), *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
        for line in lines:
            self.print_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def print_figures(self, model: Model) -> None:
        """Print the metrics in a model's card as a table."""
        rows = [
            [figure["name"], format_number(figure["value"]), figure.get("unit", ""), figure.get("detail", "")]
            for figure in model.figures
        ]
        self.print_table(["FIGURE", "VALUE", "UNIT", "DESCRIPTION"], rows)

    def print_message(self, text: str) -> None:
        """Print a line on standard error."""
        self.stderr.print(text)


class ProgressBar(Progress):
    """A progress bar on a terminal. Elsewhere there is no bar, and each message is a line.

    Below the bar is a line of text, if `set_status_line` has set one.
    """

    def __init__(self, output: Output, title: str) -> None:
        """Prepare a bar with a title; entering the `with` block shows it."""
        columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        console = output.stderr
        self._output, self._status_line = output, ""
        self._place: tuple[str, int | None] | None = None
        super().__init__(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
        self._bar = self.add_task(title, total=1.0)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, then the line below it, shortened to the width of the terminal."""
        yield from super().get_renderables()
        if self._status_line:
            yield Text(self._status_line, no_wrap=True, overflow="ellipsis")

    def set_progress(self, share: float | None = None, title: str | None = None) -> None:
        """Set the share that is done, 0 to 1, or the title; None leaves either as it is."""
        self.update(self._bar, completed=share, description=title)

    def update_from_job(self, job: Job) -> None:
        """Show the job's progress and, below the bar, its place in the queue while it waits."""
        self.set_progress(job.progress)
        waiting = format_waiting(job)
        moved, self._place = (job.status, job.position) != self._place, (job.status, job.position)
        if not self.disable or (waiting and moved):  # without a terminal, a line for each place
            self.set_status_line(waiting)

    def set_status_line(self, text: str) -> None:
        """Replace the line below the bar; without a bar, print the line."""
        if self.disable:
            self.print_message(text)
        else:
            self._status_line = text

    def print_message(self, text: str) -> None:
        """Print a line above the bar."""
        self._output.print_message(text)


def format_waiting(job: Job) -> str:
    """Return why a job waits and for how long, on one line; "" for a job that does not wait."""
    if job.status != "queued":
        return ""
    position = "" if job.position is None else f"position {job.position}"
    start_s = job.estimated_start_s
    start = "" if start_s is None else f"starts in about {format_duration(start_s)}"
    return ", ".join(filter(None, ("queued", position, start, job.waiting_reason)))


def format_duration(seconds: float) -> str:
    """Return a duration in whole seconds, minutes or hours."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return an epoch's metrics on one line, losses first, such as `epoch 3 train_loss 103.2`.

    Counters of steps, images and seconds are left out.
    """
    shown = {
        name: value for name, value in metrics.items() if name not in _NOT_SHOWN and isinstance(value, int | float)
    }
    names = sorted(shown, key=lambda name: (name != "epoch", not name.endswith("_loss")))
    return "  ".join(f"{name} {format_number(shown[name])}" for name in names)


def compact_json(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def format_number(value: float) -> str:
    """Return an integer in full, any other number to five significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def format_size(size_bytes: float) -> str:
    """Return a size in B, kB, MB or GB, to three significant digits."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"
