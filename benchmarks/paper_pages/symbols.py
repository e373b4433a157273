"""Find functions and classes in the source, quote them and link to their lines."""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TO_ROOT = "../.."  # from docs/papers

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Symbol:
    """A function, method or class: its file, its dotted name, and its first and last line.

    `docstring` has the first and last line of its docstring, or is None.
    """

    file: str
    name: str
    first: int
    last: int
    docstring: tuple[int, int] | None

    @property
    def address(self) -> str:
        """The link from a page in docs/papers to the symbol's lines."""
        return address(self.file, self.first, self.last)

    @property
    def link(self) -> str:
        """The symbol's name as a Markdown link to its lines."""
        return f"[`{self.name}`]({self.address})"

    def quote(self, start: str = "", end: str = "") -> tuple[str, int, int]:
        """Return lines of the symbol's source, and the numbers of the first and last of them.

        Without `start` it is the whole symbol without its docstring. Otherwise it is the part from
        the line that contains `start` to the next line that contains `end` (or only the first line,
        if `end` is empty). Raises ValueError if `start` is in no line or in several, or if no later
        line contains `end`.
        """
        lines = dict(enumerate(_lines(self.file), 1))
        low, high = self.docstring or (0, 0)
        numbers = [n for n in range(self.first, self.last + 1) if not low <= n <= high]
        if start:
            numbers = self._part(numbers, lines, start, end)
        text = textwrap.dedent("\n".join(lines[n] for n in numbers))
        return text.strip("\n"), numbers[0], numbers[-1]

    def _part(self, numbers: list[int], lines: dict[int, str], start: str, end: str) -> list[int]:
        starts = [n for n in numbers if start in lines[n]]
        if len(starts) != 1:
            raise ValueError(f"{len(starts)} lines of {self.name} in {self.file} contain {start!r}, not one")
        ends = [n for n in numbers if n >= starts[0] and (end or start) in lines[n]]
        if not ends:
            raise ValueError(f"no line of {self.name} in {self.file} contains {end!r} after {start!r}")
        return [n for n in numbers if starts[0] <= n <= ends[0]]


def address(file: str, first: int, last: int) -> str:
    """Return the link from a page in docs/papers to lines of a file of the repository."""
    lines = f"L{first}" if first == last else f"L{first}-L{last}"
    return f"{TO_ROOT}/{file}#{lines}"


def find(file: str, name: str) -> Symbol:
    """Return the function or class with a dotted name, such as `Model.loss`, in a file.

    Raises ValueError if there is none.
    """
    body: list[ast.stmt] = ast.parse("\n".join(_lines(file))).body
    found: Definition | None = None
    for part in name.split("."):
        found = next((node for node in body if isinstance(node, Definition) and node.name == part), None)
        if found is None:
            raise ValueError(f"{file} has no {name}")
        body = found.body
    assert found is not None
    return Symbol(file, name, found.lineno, found.end_lineno or found.lineno, _docstring(found))


def _docstring(node: Definition) -> tuple[int, int] | None:
    first = node.body[0]
    if ast.get_docstring(node) is None:
        return None
    return first.lineno, first.end_lineno or first.lineno


@cache
def _lines(file: str) -> tuple[str, ...]:
    return tuple((ROOT / file).read_text().splitlines())
