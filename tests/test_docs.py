"""The documentation agrees with the code."""

import re
from pathlib import Path

from benchmarks.table import combined, listed, written
from core.catalog.operations import OPERATIONS
from core.settings import PREFIX, Settings


def test_table_of_models_follows_the_cards(root: Path) -> None:
    """The README's table has the figures of the shipped checkpoints (`python benchmarks/table.py
    --write`).
    """
    readme = (root / "README.md").read_text()
    assert written(readme) == readme


def test_table_counts_each_combined_training_once() -> None:
    """Trainings within means count, but neither the model's own one nor those that it started from."""
    own, started, other, short = (
        {"sha256": name, "epochs": epochs, "seconds": seconds, "commit": "c"}
        for name, epochs, seconds in (("own", 2, 9.0), ("start", 5, 8.0), ("other", 7, 6.0), ("short", 0, 5.0))
    )
    mean = {"sha256": "mean", "epochs": 7, "seconds": 6.0, "commit": "c", "mean_of": [other, short, started]}
    provenance = {"commit": "c", "seconds": 9.0, "start": [started], "combined": [own, mean, other]}
    assert combined(provenance) == [7, 0]
    assert listed([7, 0]) == "7 epochs, 1 of less than one"


def test_readme_is_short_and_links_are_valid(root: Path) -> None:
    """The README has at most 80 lines, and every linked file exists."""
    readme = (root / "README.md").read_text()
    assert len(readme.splitlines()) <= 80
    for page in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]:
        prose = re.sub(r"(?s)```.*?```", "", page.read_text())
        for link in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_setting_is_listed(root: Path) -> None:
    """docs/settings.md has each variable with its default and description."""
    page = (root / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        description = " ".join(str(field.description).split())
        assert f"| `{PREFIX}{name.upper()}` | `{field.default}` | {description} |" in page


def test_every_decision_is_dated_and_newest_first(root: Path) -> None:
    """docs/decisions.md is in order, and each record has a context, a decision and consequences."""
    records = (root / "docs" / "decisions.md").read_text().split("\n## ")[1:]
    dates = [re.findall(r"^\*(\d{4}-\d\d-\d\d)\*$", record, re.MULTILINE) for record in records]
    assert all(len(found) == 1 for found in dates)
    assert records
    assert dates == sorted(dates, reverse=True)
    for record in records:
        assert re.findall(r"^- \*\*(\w+)\.\*\*", record, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_links_to_headings_are_valid(root: Path) -> None:
    """Each `page.md#heading`, in pages and in the code, names a heading of that page.

    A page's links are relative to it, those in the code to the repository.
    """
    code = [path for part in ("api", "core", "workers", "models", "reverie") for path in (root / part).rglob("*.py")]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    folders = dict.fromkeys(code, root) | {path: path.parent for path in pages}
    links = [
        ((folder / page).resolve(), heading)
        for path, folder in folders.items()
        for page, heading in re.findall(r"([\w./-]*\w\.md)#([\w-]+)", path.read_text())
    ]
    assert links
    known = {path: headings(path.read_text()) for path in {page for page, _ in links}}
    assert [f"{page}#{heading}" for page, heading in links if heading not in known[page]] == []


def test_architecture_names_exist_in_the_code(root: Path) -> None:
    """Each file, folder, class and method that the architecture page names exists."""
    page = (root / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([^`\s]+)`", page))
    paths = {name for name in named if re.fullmatch(r"(api|core|workers|models|reverie)/[\w/.]*", name)}
    assert [path for path in paths if not (root / path).exists()] == []
    code = "\n".join(
        file.read_text() for part in ("api", "core", "workers", "models") for file in (root / part).rglob("*.py")
    )
    identifiers = {name for name in named if re.fullmatch(r"[A-Z][A-Za-z]+(\.\w+)?|_?[a-z]+_\w+", name)}
    names = {part for name in identifiers for part in name.split(".")}
    assert len(names) > 20
    names -= {file.stem for part in ("api", "core", "workers") for file in (root / part).rglob("*.py")}
    assert [name for name in sorted(names) if not re.search(rf"(class|def) {name}\b", code)] == []


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_commands_that_save_a_file_fail_visibly(root: Path) -> None:
    """Each `curl … -o` fails on errors; one that may become a job waits, and prints status and
    content type.
    """
    operations = {operation.path for operation in OPERATIONS}
    commands = []
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        commands += re.findall(r"(?m)^(?:\$ )?(curl .*? -o .*)$", text)
    assert len(commands) >= 10
    for command in commands:
        assert "--fail-with-body" in command
        path = re.search(r"/v1/(\w+)", command)
        assert path is not None
        if path.group(1) in operations:
            assert "-H 'Prefer: wait=60'" in command
            assert "%{http_code} %{content_type}" in command
