"""The pages of the papers contain only quoted code, measured figures and the templates' prose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.modules import Importer

MACROS = frozenset(  # what the formulas use, all of them in GitHub's MathJax
    re.findall(
        r"\w+",
        """
        Enc Dec Phi Pi Psi Rightarrow Theta Vert approx arg ast cdot epsilon frac gamma ge gt hat in infty int lVert
        lambda ldots le left log lt mathbb mathrm max mid min mu nabla ne odot omega partial phi propto psi qquad quad
        rVert right sigma sim sqrt star sum text theta tilde varphi vert
        """,
    )
)


@pytest.fixture
def pages(module: Importer) -> ModuleType:
    """The module that writes the pages."""
    module("papers")
    found: ModuleType = module("paper_pages.pages")
    return found


def all_pages(pages: ModuleType) -> list[str]:
    """The names of all pages, the index among them."""
    return [pages.INDEX, *pages.PAGES]


def test_pages_are_what_the_generator_writes(pages: ModuleType, root: Path) -> None:
    """Each page follows from the source and the results. If this fails, run
    `python benchmarks/papers.py`.
    """
    written = {page: pages.write_page(page) for page in all_pages(pages)}
    assert {path.stem for path in (root / "docs" / "papers").iterdir()} == set(written)
    for page, text in written.items():
        assert (root / "docs" / "papers" / f"{page}.md").read_text() == text


def test_every_slide_has_its_place(pages: ModuleType, root: Path) -> None:
    """Each slide is in one section; the index names a formula or function and a figure for it."""
    slides = [number for page in all_pages(pages) for section in pages.sections(page) for number in section.slides()]
    assert sorted(slides) == list(pages.SLIDES) == list(range(1, len(pages.SLIDES) + 1))
    index = (root / "docs" / "papers" / "README.md").read_text()
    rows = {
        int(row[1]): row for row in re.finditer(r"(?m)^\| (\d+)\. \[(.+)\]\((.+)\) \| (.+) \| (.+) \| (.+) \|$", index)
    }
    assert sorted(rows) == list(pages.SLIDES)[1:]  # the first is the outline, which is the index itself
    for number, row in rows.items():
        assert row[2] == pages.SLIDES[number]
        assert "#L" in row[5]
        assert row[6] != "—"


def test_quoted_code_is_in_the_linked_lines(pages: ModuleType, root: Path) -> None:
    """The lines of each quotation are in the source, in their order, where the link above leads."""
    quotations = 0
    for page in pages.PAGES:
        text = (root / "docs" / "papers" / f"{page}.md").read_text()
        for link in re.finditer(
            r"(?ms)\]\(\.\./\.\./([\w/]+\.py)#L(\d+)(?:-L(\d+))?\):\n\n```python\n(.*?)\n```$", text
        ):
            first, last = int(link[2]), int(link[3] or link[2])
            source = iter([line.strip() for line in (root / link[1]).read_text().splitlines()[first - 1 : last]])
            assert all(line.strip() in source for line in link[4].splitlines())
            quotations += 1
    assert quotations > 50


def test_links_lead_to_their_functions(pages: ModuleType, root: Path) -> None:
    """A link with only a function's name leads to its definition."""
    links = [
        (link[1].split(".")[-1], link[2], int(link[3]))
        for page in all_pages(pages)
        for link in re.finditer(
            r"\[`([\w.]+)`\]\(\.\./\.\./([\w/]+\.py)#L(\d+)", (root / "docs" / "papers" / f"{page}.md").read_text()
        )
    ]
    assert len(links) > 50
    for name, file, line in links:
        assert re.match(rf"\s*(def|class) {name}\b", (root / file).read_text().splitlines()[line - 1])


def test_relative_links_lead_somewhere(pages: ModuleType, root: Path) -> None:
    """Every linked file and picture exists, and every linked heading is on its page."""
    for page in all_pages(pages):
        path = root / "docs" / "papers" / f"{page}.md"
        prose = re.sub(r"(?s)```.*?```", "", path.read_text())
        for link in re.findall(r"\]\(([^)\s:]+)\)", prose):
            file, _, heading = link.partition("#")
            target = path.parent / file
            assert target.exists(), link
            if heading and target.suffix == ".md":
                assert heading in {pages.anchor(section.heading) for section in pages.sections(target.stem)}


def test_formulas_survive_markdown(pages: ModuleType, root: Path) -> None:
    """Formulas use known macros, and no characters that a Markdown parser might interpret.

    These are stars, bars, angle brackets, backslashes before punctuation, and underscores after it.
    """
    formulas = [formula for page in pages.PAGES for section in pages.sections(page) for formula in section.formulas()]
    assert len(formulas) > 40
    for formula in formulas:
        assert formula.count("{") == formula.count("}")
        assert set(re.findall(r"\\([A-Za-z]+)", formula)) <= MACROS
        assert not re.search(r"[*|<>$`]|\\[^A-Za-z]|(?<![A-Za-z0-9])_|\]\(", formula), formula
    for page in all_pages(pages):
        text = (root / "docs" / "papers" / f"{page}.md").read_text()
        assert text.count("$$") == 2 * len(re.findall(r"(?m)^\$\$\n[^$]+\n\$\$$", text))


def test_every_figure_is_shown_with_a_command_of_the_repository(pages: ModuleType, root: Path) -> None:
    """Each figure that is defined is on its page; a measured one names a script that exists."""
    for page, figures in pages.PAGES.items():
        shown = [figure for section in pages.sections(page) for figure in section.figures()]
        assert {figure.what for figure in figures.values()} == {figure.what for figure in shown}
        for figure in shown:
            if figure.source is not None:
                script = figure.source.read_command().split()[1]
                assert script == "-m" or (root / script).is_file()
            else:
                assert figure.values()[0] == "not measured"
                assert figure.reason


def test_without_results_the_pages_say_so(
    pages: ModuleType, module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Figures of missing files are "not measured"; figures of cards stay."""
    monkeypatch.setattr(module("paper_pages.results"), "RESULTS", tmp_path)
    text = pages.write_page("bihm")
    assert re.search(r"log p\*, 10,000 test digits, K = 1000 \| −8\d\.\d\d ± 0\.\d+ nats \|", text)
    assert re.search(r"transcription of algorithm 1 \| not measured \| — \| not in docs/results \|", text)


def test_a_result_of_an_earlier_checkpoint_is_marked(
    module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A figure that was measured before the present version was made says so."""
    results = module("paper_pages.results")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    made = results.read_card("vae-mnist")["created_at"].replace("T", " ")
    for date, marked in (("2020-01-01 00:00 UTC", True), (f"9{made[1:]}", False)):
        part = {"date": date, "machine": {"cores": 2, "cpu": "a CPU"}, "commit": "abc"}
        (tmp_path / "some.json").write_text(json.dumps(part))
        origin = results.json_source("some", "python x.py", model="vae-mnist").read_origin()
        assert ("before the present one" in origin) == marked


def test_an_excerpt_must_be_unique(module: Importer) -> None:
    """A name, a first line or a last line that is not in the source, or in it twice, is an error."""
    symbols = module("paper_pages.symbols")
    with pytest.raises(ValueError, match=r"has no Model\.nothing"):
        symbols.find("models/vae.py", "Model.nothing")
    symbol = symbols.find("models/vae.py", "Model.loss")
    assert symbol.quote("x = images.flatten(1)") == ("x = images.flatten(1)", *2 * symbol.quote("x = images")[1:2])
    for start, end in (("objective ==", "z ="), ("nothing", ""), ("x = images", "nothing")):
        with pytest.raises(ValueError, match="contain"):
            symbol.quote(start, end)
