"""Print the output of commands: results, progress and messages.

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
    """Prints results as text for people or, with `as_json`, as JSON for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print_line(self, text: str) -> None:
        """Print a line of a result on standard output."""
        sys.stdout.write(text + "\n")

    def print_json(self, body: Any) -> None:
        """Print `body`, the JSON of a response, with indentation on standard output."""
        self.print_line(json.dumps(body, indent=2, ensure_ascii=False))

    def print_table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table with aligned columns on standard output.

        No cell is shortened, so that the output can be searched.
        """
        lines = [list(headings), *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
        for line in lines:
            self.print_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def print_figures(self, model: Model) -> None:
        """Print the metrics in a model card, as a table."""
        rows = [
            [figure["name"], format_number(figure["value"]), figure.get("unit", ""), figure.get("detail", "")]
            for figure in model.figures
        ]
        self.print_table(["FIGURE", "VALUE", "UNIT", "DESCRIPTION"], rows)

    def print_message(self, text: str) -> None:
        """Print a line for people on standard error."""
        self.stderr.print(text)


class ProgressBar(Progress):
    """A progress bar on standard error, with a line of text below it, the status line.

    If standard error is no terminal, there is no bar, and each new status line or message is
    printed as a line.
    """

    def __init__(self, output: Output, title: str) -> None:
        """Prepare a bar with the text `title`; the bar appears at the start of its `with` block."""
        columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        console = output.stderr
        self._output, self._status_line = output, ""
        self._place: tuple[str, int | None] | None = None
        super().__init__(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
        self._bar = self.add_task(title, total=1.0)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and then the status line, which is cut at the width of the terminal."""
        yield from super().get_renderables()
        if self._status_line:
            yield Text(self._status_line, no_wrap=True, overflow="ellipsis")

    def set_progress(self, share: float | None = None, title: str | None = None) -> None:
        """Set the finished share, from 0 to 1, and the title of the bar.

        An argument that is None leaves its part of the bar as it is.
        """
        self.update(self._bar, completed=share, description=title)

    def update_from_job(self, job: Job) -> None:
        """Show a job's progress in the bar and, while it is queued, a status line.

        The line has the job's position and expected start. Without a terminal it is printed when
        the position changes.
        """
        self.set_progress(job.progress)
        waiting = format_waiting(job)
        moved, self._place = (job.status, job.position) != self._place, (job.status, job.position)
        if not self.disable or (waiting and moved):  # without a terminal, a line for each place
            self.set_status_line(waiting)

    def set_status_line(self, text: str) -> None:
        """Replace the status line below the bar; without a terminal, print `text` as a line."""
        if self.disable:
            self.print_message(text)
        else:
            self._status_line = text

    def print_message(self, text: str) -> None:
        """Print a line above the bar; the line stays there."""
        self._output.print_message(text)


def format_waiting(job: Job) -> str:
    """Return a line with the position and expected start of a queued job, and why it waits.

    The line is "" for a job that is not queued.
    """
    if job.status != "queued":
        return ""
    position = "" if job.position is None else f"position {job.position}"
    start_s = job.estimated_start_s
    start = "" if start_s is None else f"starts in about {format_duration(start_s)}"
    return ", ".join(filter(None, ("queued", position, start, job.waiting_reason)))


def format_duration(seconds: float) -> str:
    """Return a duration as text, rounded to whole seconds, minutes or hours."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the metrics of an epoch as one line, such as `epoch 3 train_loss 103.2`.

    Losses come first. The numbers of steps, images and seconds are left out.
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
    """Return a number as text: an integer in full, any other with five significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def format_size(size_bytes: float) -> str:
    """Return a size as text in B, kB, MB or GB (powers of 1000), with three significant digits."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"
