"""Read what was measured: cards of checkpoints, JSON files and tables of docs/results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.kit import card

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
EVALUATE = "python -m models evaluate checkpoints/{}/1/model.safetensors"


@dataclass(frozen=True)
class Source:
    """Where a figure comes from: functions that return the command that measures it, and when it
    did.

    `read_origin` returns date, machine and other circumstances as one phrase.
    """

    read_command: Callable[[], str]
    read_origin: Callable[[], str]


# --- Cards -----------------------------------------------------------------------------------------------------------


def read_card(name: str) -> dict[str, Any]:
    """Return the card of version 1 of a shipped model; raise KeyError if there is none."""
    path = ROOT / "checkpoints" / name / "1" / "model.safetensors"
    if not path.exists():
        raise KeyError(name)
    return card.read_card(path)


def card_figure(name: str, figure: str) -> dict[str, Any]:
    """Return a figure of a card: value, unit and detail; raise KeyError if there is none."""
    for found in read_card(name)["figures"]:
        if found["name"] == figure:
            return dict(found)
    raise KeyError(figure)


def card_value(name: str, figure: str, *, sign: float = 1.0, digits: int = 2) -> str:
    """Return a figure of a card, times `sign`, with its standard error (if it is known) and unit."""
    found = card_figure(name, figure)
    error = re.search(r"(?:s\.e\.|standard error) ([\d.]*\d)", found["detail"])
    value = number(sign * found["value"], digits)
    unit = "" if found["unit"] in {"1", "count"} else f" {found['unit']}"
    return value + (f" ± {float(error[1]):.2g}" if error else "") + unit


def card_source(name: str, read_options: Callable[[], str] = str) -> Source:
    """Return the source of the figures that a card has.

    `read_options` returns the options with which they were measured.
    """

    def read_origin() -> str:
        described = read_card(name)
        return f"card of {described['created_at'][:10]}, trained on {described['provenance']['hardware']}"

    def read_command() -> str:
        return f"{EVALUATE.format(name)} {read_options()}".strip()

    return Source(read_command, read_origin)


# --- JSON files ------------------------------------------------------------------------------------------------------


def read_json(name: str, part: str = "") -> Any:
    """Return docs/results/NAME.json, or one part of it; raise KeyError if there is none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise KeyError(name)
    found = json.loads(path.read_text())
    return found[part] if part else found


def json_source(name: str, command: str, part: str = "", *, model: str = "") -> Source:
    """Return the source of figures in docs/results/NAME.json, or in one part of it.

    If the file is older than the card of `model`, the source says that it is of an earlier version.
    """

    def read_origin() -> str:
        found = read_json(name, part)
        day, machine = found["date"][:10], found["machine"]
        commit = f", commit {found['commit']}" if "commit" in found else ""
        origin = f"{day}, {machine['cores']} cores of {machine['cpu']}{commit}"
        earlier = model and found["date"].replace(" ", "T") < read_card(model)["created_at"]
        return origin + (f"; **of the version of `{model}` before the present one**" if earlier else "")

    return Source(lambda: command, read_origin)


# --- Tables of pages that have no JSON -------------------------------------------------------------------------------


def cell(page: str, row: str, column: str, under: str = "") -> str:
    """Return a cell of a table in docs/results/PAGE.md; raise KeyError if there is none.

    The row is the first whose cells begin with `row` (cells joined by " | "), after the first line
    that contains `under`; the column has the heading `column`.
    """
    text = _page(page)
    if under not in text:
        raise KeyError(under)
    heads: list[str] = []
    for line in text[text.index(under) :].splitlines():
        cells = [part.strip() for part in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif " | ".join(cells).startswith(row) and column in heads:
            return cells[heads.index(column)]
    raise KeyError(f"{page}: {row}, {column}")


def match(page: str, pattern: str) -> re.Match[str]:
    """Return the first match of a pattern in docs/results/PAGE.md; raise KeyError if there is none."""
    found = re.search(pattern, _page(page))
    if found is None:
        raise KeyError(f"{page}: {pattern}")
    return found


def page_source(name: str, command: str) -> Source:
    """Return the source of figures in docs/results/NAME.md, whose last lines say how they were
    made.
    """

    def read_origin() -> str:
        day = match(name, r"Date: (\d{4}-\d\d-\d\d)")[1]
        machine = match(name, r"Machine: ([^.;]+?)(?:, shared with other work)?[.;]")[1]
        commits = match(name, r"Commit: ([\da-f, +]+)")[1].rstrip(". ")
        return f"{day}, {machine}, commit {commits}"

    return Source(lambda: command, read_origin)


def _page(name: str) -> str:
    path = RESULTS / f"{name}.md"
    if not path.exists():
        raise KeyError(name)
    return path.read_text()


# --- Numbers ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 2) -> str:
    """Return a number with a fixed number of digits after the point and a minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def percent(share: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return f"{100.0 * share:.{digits}f} %"


# --- Figures ---------------------------------------------------------------------------------------------------------

NOT_MEASURED = "not measured"
Text = str | Callable[[], str]


@dataclass(frozen=True)
class Figure:
    """A row of a page's table: what is measured, our value, the paper's value, and the source.

    `here` is None for a figure of the paper that was not measured; `reason` says why.
    """

    what: str
    here: Callable[[], str] | None
    paper: Text = "—"
    source: Source | None = None
    reason: str = ""

    def values(self) -> tuple[str, str]:
        """Return our value and the paper's; "not measured" for a value that is not stored."""
        return self._read(self.here or NOT_MEASURED), self._read(self.paper)

    def origin(self) -> str:
        """Return the command that measures the figure with date and machine, or why there is none."""
        if self.source is None or self.values()[0] == NOT_MEASURED:
            return self.reason or "not in docs/results"
        return f"`{self.source.read_command()}`: {self.source.read_origin()}"

    @staticmethod
    def _read(text: Text) -> str:
        if isinstance(text, str):
            return text
        try:
            return text()
        except KeyError:
            return NOT_MEASURED
