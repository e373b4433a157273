"""Write docs/papers: the formulas of each paper beside the code and the figures, and the paper's.

Command: `python benchmarks/papers.py`.

This script measures nothing. Figures come from the cards of the checkpoints and from docs/results;
code is quoted from the source; the prose is in the templates `benchmarks/paper_pages/*.md`. Run it
after a change of a quoted function or of a result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

from paper_pages import pages  # noqa: E402

FOLDER = ROOT / "docs" / "papers"


def main() -> None:
    """Write all pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for page in (pages.INDEX, *pages.PAGES):
        (FOLDER / f"{page}.md").write_text(pages.write_page(page))
        print(f"docs/papers/{page}.md")


if __name__ == "__main__":
    main()
