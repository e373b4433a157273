"""What commands print, on a terminal and elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from reverie.cli.output import (
    Output,
    ProgressBar,
    format_duration,
    format_metrics,
    format_number,
    format_size,
    format_waiting,
)
from reverie.records import Job


def progress_output(*, terminal: bool) -> str:
    """Return what a progress bar writes."""
    output, written = Output(as_json=False), io.StringIO()
    output.stderr = Console(file=written, force_terminal=terminal, width=60, soft_wrap=True, highlight=False)
    with ProgressBar(output, "training digits") as bar:
        bar.set_progress(0.25)
        bar.set_status_line("epoch 1  train_loss 348.3  and much else that does not fit into one line")
        bar.print_message("a checkpoint was written")
        bar.set_progress(title="training digits running")
        bar.set_status_line("epoch 2  train_loss 213.3")
        bar.set_progress(0.5)
    return written.getvalue()


def test_a_terminal_shows_a_bar_and_a_status_line() -> None:
    """On a terminal long lines are cut, and messages stay above the bar."""
    output = progress_output(terminal=True)
    last = output.rpartition("training digits running")[2]
    assert "━" in last
    assert "50%" in last
    assert "epoch 2  train_loss 213.3" in last
    assert "a checkpoint was written" in output


def test_without_a_terminal_each_line_is_written_once() -> None:
    """Without a terminal there is no bar and no control character, for logs."""
    output = progress_output(terminal=False).splitlines()
    assert [line[:20] for line in output] == ["epoch 1  train_loss ", "a checkpoint was wri", "epoch 2  train_loss "]
    assert output[0].endswith("one line")


def _job(**fields: Any) -> Job:
    return Job({"status": "queued", "progress": 0.0, **fields})


def test_a_waiting_job_shows_its_place() -> None:
    """A queued job shows position, estimated start and reason, as far as they are known; a running
    job shows none.
    """
    job = _job(position=3, estimated_start_s=100.0, waiting_reason="2 other jobs will be started first")
    assert format_waiting(job) == "queued, position 3, starts in about 2 min, 2 other jobs will be started first"
    assert format_waiting(_job()) == "queued"
    assert format_waiting(_job(status="running", position=3)) == ""
    assert [format_duration(seconds) for seconds in (0.4, 59, 600, 7200)] == ["0 s", "59 s", "10 min", "2 h"]


def test_without_a_terminal_each_place_is_a_line() -> None:
    """Without a terminal the position is written only when it changes."""
    output, written = Output(as_json=False), io.StringIO()
    output.stderr = Console(file=written, width=60, soft_wrap=True)
    with ProgressBar(output, "samples") as bar:
        for start_s, position in ((9.0, 2), (8.0, 2), (7.0, 1)):
            bar.update_from_job(_job(position=position, estimated_start_s=start_s))
        bar.update_from_job(_job(status="running"))
    assert written.getvalue().splitlines() == [
        "queued, position 2, starts in about 9 s",
        "queued, position 1, starts in about 7 s",
    ]


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """The columns of a table are aligned, and nothing is cut."""
    Output(as_json=False).print_table(["NAME", "N"], [["a" * 200, 1], ["b", 22]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip()[200:].split() for line in lines] == [["N"], ["1"], ["22"]]
    assert lines[1].startswith("a" * 200)


def test_numbers_are_short() -> None:
    """Numbers have five significant digits, integers all of theirs; losses come first."""
    assert [format_number(0.1234567), format_number(123456)] == ["0.12346", "123456"]
    assert [format_size(999), format_size(1_234_567), format_size(5e9)] == ["999 B", "1.23 MB", "5 GB"]
    line = {"steps": 9, "rate": 0.5, "epoch": 1, "validation_loss": 2.0, "train_loss": 1.0, "note": "x", "seconds": 3.0}
    assert format_metrics(line) == "epoch 1  validation_loss 2  train_loss 1  rate 0.5"
