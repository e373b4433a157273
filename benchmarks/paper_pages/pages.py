"""Read the templates of docs/papers and write the pages.

A template is Markdown with directives in braces, each of which is alone on its line:

    {slides 6, 7}                        the slides that the section is about
    {code FILE SYMBOL}                   a function or class, quoted without its docstring
    {code FILE SYMBOL | START | END}     its lines from the one that contains START to END
    {tests FILE NAME, NAME}              links to the tests that check the section's formulas
    {figures KEY, KEY}                   a table of figures, by their keys in `FIGURES`
    {picture FILE | CAPTION}             a picture of docs/images and what to see in it
    {index slides}                       in README.md: the slides of every paper

`{symbol FILE NAME}` within a line is a link to a function. A formula is between lines `$$`. The
index shows of a section its slides, its first formula, its functions and its first figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paper_pages import bihm_figures, ebgan_figures, sampling_figures, superres_figures, vae_figures
from paper_pages.results import Figure
from paper_pages.slides import SLIDES
from paper_pages.symbols import Symbol, address, find

TEMPLATES = Path(__file__).parent
INDEX = "README"
PAGES: dict[str, Mapping[str, Figure]] = {
    "vae": vae_figures.FIGURES,
    "bihm": bihm_figures.FIGURES,
    "sampling": sampling_figures.FIGURES,
    "ebgan": ebgan_figures.FIGURES,
    "superres": superres_figures.FIGURES,
}
REFERENCES = {"sampling": "exact"}  # what figures are compared with, if not with a paper
DIRECTIVE = re.compile(r"\{(slides|code|tests|figures|picture|index) ([^{}]+)\}")
INLINE = re.compile(r"\{symbol (\S+) (\S+)\}")
SHOWN_FIGURES = 2  # of a section, in the index


@dataclass
class Section:
    """A section of a template, and what the index needs of it.

    `page` is the name of the page, `heading` the section's heading without "#", and `lines` are its
    lines after the heading.
    """

    page: str
    heading: str
    lines: list[str] = field(default_factory=list)

    @property
    def link(self) -> str:
        """The address of the section, from a page in docs/papers."""
        return f"{self.page}.md#{anchor(self.heading)}"

    def directives(self, name: str) -> list[str]:
        """Return the arguments of the directives of one name."""
        found = [DIRECTIVE.fullmatch(line) for line in self.lines]
        return [one[2] for one in found if one is not None and one[1] == name]

    def slides(self) -> list[int]:
        """Return the numbers of the section's slides."""
        return [int(number) for numbers in self.directives("slides") for number in numbers.split(",")]

    def formulas(self) -> list[str]:
        """Return the formulas of the section, each on one line."""
        text = "\n".join(self.lines)
        return [" ".join(formula.split()) for formula in re.findall(r"(?s)^\$\$\n(.*?)\n\$\$$", text, re.MULTILINE)]

    def symbols(self) -> list[Symbol]:
        """Return the functions that the section links to or quotes, each once."""
        quoted = [argument.split(" | ")[0].split() for argument in self.directives("code")]
        linked = INLINE.findall("\n".join(self.lines))
        found = {(file, name): find(file, name) for file, name in [*linked, *quoted]}
        return list(found.values())

    def figures(self) -> list[Figure]:
        """Return the figures of the section's tables."""
        known = PAGES[self.page]
        return [known[key] for keys in self.directives("figures") for key in keys.split(", ")]


def sections(page: str) -> list[Section]:
    """Return the sections of a template; the first is what comes before its first "##"."""
    found: list[Section] = []
    for line in (TEMPLATES / f"{page}.md").read_text().splitlines():
        if re.match(r"#{1,3} ", line):
            found.append(Section(page, line.lstrip("# ")))
        else:
            found[-1].lines.append(line)
    return found


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- Pages -----------------------------------------------------------------------------------------------------------


def write_page(page: str) -> str:
    """Return a page of docs/papers, made from its template."""
    lines: list[str] = []
    for line in (TEMPLATES / f"{page}.md").read_text().splitlines():
        directive = DIRECTIVE.fullmatch(line)
        if directive is None:
            lines.append(INLINE.sub(lambda found: find(found[1], found[2]).link, line))
        else:
            lines += _expand(page, directive[1], directive[2])
    return "\n".join([*lines[:1], "", "<!-- made by benchmarks/papers.py -->", *lines[1:], ""])


def _expand(page: str, name: str, argument: str) -> Iterator[str]:
    if name == "slides":
        numbers = [int(number) for number in argument.split(",")]
        titles = "; ".join(f"{number}, {SLIDES[number]}" for number in numbers)
        yield f"_{'Slide' if len(numbers) == 1 else 'Slides'} {titles}._"
    elif name == "code":
        yield from _quoted(*argument.split(" | "))
    elif name == "tests":
        file, names = argument.split(" ", 1)
        yield f"Checked by {', '.join(find(file, one).link for one in names.split(', '))}."
    elif name == "figures":
        yield from _figure_table([PAGES[page][key] for key in argument.split(", ")], REFERENCES.get(page, "the paper"))
    elif name == "picture":
        file, caption = argument.split(" | ")
        yield from (f"![{caption}](../images/{file})", "", f"_{caption}._")
    else:
        yield from _index()


def _quoted(symbol: str, start: str = "", end: str = "") -> Iterator[str]:
    file, name = symbol.split()
    text, first, last = find(file, name).quote(start, end)
    yield from (f"[`{name}`, {file}]({address(file, first, last)}):", "", "```python", *text.splitlines(), "```")


def _figure_table(figures: list[Figure], reference: str) -> Iterator[str]:
    yield from (f"| figure | here | {reference} | measured by |", "| --- | --- | --- | --- |")
    for figure in figures:
        here, paper = figure.values()
        yield f"| {figure.what} | {here} | {paper} | {figure.origin()} |"


# --- Index -----------------------------------------------------------------------------------------------------------


def _index() -> Iterator[str]:
    """Return a table of slides for each page, and the origins of its figures as footnotes."""
    notes: dict[str, int] = {}  # the number of each origin's footnote
    for page in PAGES:
        found = sections(page)
        yield from (f"## {found[0].heading}", "", f"Page: [{page}.md]({page}.md).", "")
        yield from (
            f"| slide | formula | function | figure here; {REFERENCES.get(page, 'the paper')} |",
            "| --- | --- | --- | --- |",
        )
        placed = [(number, section) for section in found for number in section.slides()]
        for number, section in sorted(placed, key=lambda pair: pair[0]):
            yield f"| {' | '.join(_index_cells(number, section, notes))} |"
        yield ""
    yield from (f"[^{number}]: {origin}" for origin, number in notes.items())


def _index_cells(number: int, section: Section, notes: dict[str, int]) -> Iterator[str]:
    """Return the cells of a slide's row; a new origin of a figure gets the next number in `notes`."""
    yield f"{number}. [{SLIDES[number]}]({section.link})"
    formulas = section.formulas()
    yield f"${formulas[0]}$" if formulas else "—"
    yield "<br>".join(symbol.link for symbol in section.symbols()) or "—"
    lines = []
    for figure in section.figures()[:SHOWN_FIGURES]:
        here, paper = figure.values()
        note = notes.setdefault(figure.origin(), len(notes) + 1)
        lines.append(f"{figure.what}: **{here}**{'' if paper == '—' else f'; {paper}'}[^{note}]")
    pictures = [argument.split(" | ")[0] for argument in section.directives("picture")]
    lines += [f"[picture](../images/{file})" for file in pictures]
    yield "<br>".join(lines) or "—"
