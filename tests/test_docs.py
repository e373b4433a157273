"""The pages say what the code says."""

import re
from pathlib import Path

from benchmarks.table import written
from workers.settings import PREFIX, Settings


def test_table_of_models_follows_the_cards(root: Path) -> None:
    """The README's figures are those of the checkpoints that ship (`python benchmarks/table.py --write`)."""
    readme = (root / "README.md").read_text()
    assert written(readme) == readme


def test_readme_is_short_and_its_links_lead_somewhere(root: Path) -> None:
    """At most 80 lines, and every file it names is there."""
    readme = (root / "README.md").read_text()
    assert len(readme.splitlines()) <= 80
    for page in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_setting_is_listed(root: Path) -> None:
    """docs/settings.md has each variable with its default and description."""
    page = (root / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |" in page


def test_every_decision_is_dated_and_newest_first(root: Path) -> None:
    """docs/decisions.md is in order."""
    dates = re.findall(r"^## (\S+) ·", (root / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert dates
    assert dates == sorted(dates, reverse=True)
