"""The page of all figures contains only what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks.modules import Importer


def test_every_line_can_be_read_or_says_that_it_was_not_measured(
    module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without results each line says that it was not measured, except the figures of cards."""
    papers = module("papers")
    monkeypatch.setattr(papers, "RESULTS", tmp_path)
    lines = [line for line in papers.page() if line.startswith("| ") and "`python" in line]
    assert len(lines) == len(papers.LINES)
    assert re.search(r"\| 8\d\.\d\d nats \|", lines[0])
    assert papers.MISSING in lines[-1]


def test_its_commands_are_there(module: Importer) -> None:
    """Every command on the page names a script of this repository."""
    papers = module("papers")
    for line in papers.LINES:
        script = line[3].split()[1]
        assert script == "-m" or (papers.ROOT / script).is_file()
