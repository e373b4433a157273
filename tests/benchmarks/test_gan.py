"""The benchmarks of generated digits: scores and anomalies against closed forms, and a short run of
each script.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.modules import Importer

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace MNIST by the few digits of the tests."""
    from models.kit import data

    pictures = data.load(str(DIGITS))
    monkeypatch.setattr(data, "load", lambda *_arguments, **_named: pictures)


@pytest.mark.parametrize("name", ["gan_grid", "gan_margins", "gan_scores", "digits.classifier"])
def test_each_script_explains_itself(
    module: Importer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`--help` lists the commands of the script."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        module(name).main()
    assert "python benchmarks/" in capsys.readouterr().out


def test_scores_of_known_probabilities(module: Importer) -> None:
    """Certain, evenly distributed digits have the scores of the closed forms; a single digit has 0
    for both.
    """
    scores = module("digits.scores")
    even = torch.eye(10, dtype=torch.float64).repeat(30, 1)
    high, low = 1.0 / 1.09, 0.01 / 1.09
    expected = math.log(0.1) - 0.1 * math.log(high) - 0.9 * math.log(low)
    found = scores.scores(even)
    assert found.i_prime == pytest.approx(expected)
    assert found.e_kl == pytest.approx(math.log(10.0))
    assert found.shares == pytest.approx([0.1] * 10)
    assert found.clear == 1.0
    assert scores.scores(torch.cat((even[:30], torch.full((10, 10), 0.1, dtype=torch.float64)))).clear == 0.75
    alone = scores.scores(even[:1].repeat(50, 1))
    assert alone.i_prime == pytest.approx(0.0, abs=1e-12)
    assert alone.e_kl == pytest.approx(0.0, abs=1e-12)
    assert scores.i_prime(even, 1e-3) > expected


def test_standard_errors_are_those_of_many_draws(module: Importer) -> None:
    """Of the scores and of the AUROC: the spread over 200 independent sets of images."""
    scores, anomalies = module("digits.scores"), module("digits.anomalies")
    generator = torch.Generator().manual_seed(1)
    sets = [(torch.randn(400, 10, generator=generator) * 4).double().softmax(1) for _ in range(200)]
    errors = scores.standard_errors(sets[0])
    for name, error in errors.items():
        values = torch.tensor([getattr(scores.scores(p), name) for p in sets])
        assert error == pytest.approx(float(values.std()), rel=0.3), name
    pairs = [(torch.randn(300, generator=generator), 1 + torch.randn(200, generator=generator)) for _ in range(200)]
    spread = float(torch.tensor([anomalies.auroc(*pair) for pair in pairs]).std())
    assert anomalies.auroc_error(*pairs[0]) == pytest.approx(spread, rel=0.3)
    digits, one = pairs[0][0], pairs[0][1][:1]
    share = anomalies.auroc(digits, one)
    assert anomalies.auroc_error(digits, one) == pytest.approx(math.sqrt(share * (1 - share) / 299))


def test_auroc_counts_pairs(module: Importer) -> None:
    """AUROC is the share of pairs in the right order; ties count half."""
    auroc = module("digits.anomalies").auroc
    normal, unusual = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0])
    assert auroc(normal, unusual) == pytest.approx((1.5 + 3) / 6)
    assert auroc(normal, normal) == pytest.approx(0.5)
    assert auroc(normal, normal + 10) == 1.0


def test_anomalies_are_made_of_the_pictures_given(module: Importer) -> None:
    """Halves are of an image and the next one; with enough principal components the residual is
    0.
    """
    anomalies = module("digits.anomalies")
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    joined, stacked = anomalies.joined(images), anomalies.stacked(images)
    assert torch.equal(joined[5, :, :, :2], images[5, :, :, :2])
    assert torch.equal(joined[5, :, :, 2:], images[0, :, :, 2:])
    assert torch.equal(stacked[0, :, :2], images[0, :, :2])
    assert torch.equal(stacked[0, :, 2:], images[1, :, 2:])
    mean, directions = anomalies.principal(images, 5)
    assert float(anomalies.residual(images, mean, directions).max()) < 1e-6
    assert float(anomalies.residual(joined, mean, directions).max()) > 1e-3


def test_the_classifier_that_ships_is_small_and_knows_its_digits(module: Importer) -> None:
    """The classifier has under 2 MB, its probabilities sum to one, and it is confident of most test
    digits.
    """
    classifier = module("digits.classifier")
    from models.kit import data

    assert classifier.WEIGHTS.stat().st_size < 2_000_000
    p = classifier.probabilities(classifier.load(), data.grey(data.load(str(DIGITS)).images))
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64))
    assert float((p.amax(1) > 0.9).double().mean()) > 0.95


def test_the_grid_is_what_its_seed_says(module: Importer) -> None:
    """The grid is reproducible: 32 EBGANs, one per network, and 11 GANs per learning rate."""
    grid = module("gan_grid")
    runs = grid.settings()
    assert runs == grid.settings()
    assert [run["number"] for run in runs] == list(range(65))
    energy_based = {tuple(run[name] for name in grid.NETWORKS) for run in runs if run["side"] == "ebgan"}
    assert len(energy_based) == 32
    for rate in grid.RATES:
        assert sum(run["side"] == "gan" and run["rate"] == rate for run in runs) == 11


@pytest.mark.usefixtures("few")
def test_a_grid_resumes_and_reports(module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Finished runs are not repeated, and the report has every run."""
    grid = module("gan_grid")
    lines = tmp_path / "lines.jsonl"
    for limit in (1, 2):
        grid.fit(lines, 1, limit, 100, 20)
    runs = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [run["number"] for run in runs] == [0, 1]
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    for folder in ("results", "images"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    grid.report(lines, 1)
    assert (tmp_path / "docs" / "results" / "gan-grid.md").read_text().count("| yes |") == sum(
        run["dropout"] > 0 for run in runs
    )
    assert (tmp_path / "docs" / "images" / "gan-grid.png").exists()


@pytest.mark.usefixtures("few")
def test_margins_are_swept_and_reported(module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report has one row and one image per margin."""
    margins = module("gan_margins")
    monkeypatch.setattr(margins, "MARGINS", (4, 8))
    monkeypatch.setattr(margins, "ROOT", tmp_path)
    monkeypatch.setattr(margins, "NETWORKS", {"layers_g": 2, "size_g": 20, "layers_d": 2, "size_d": 10})
    for folder in ("results", "images"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    margins.fit(tmp_path / "runs", 1, 100, 48)
    margins.report(tmp_path / "runs", 1)
    page = (tmp_path / "docs" / "results" / "gan-margins.md").read_text()
    assert "| 4 |" in page
    assert "| 8 |" in page
    assert (tmp_path / "docs" / "images" / "gan-margins.png").exists()


def test_the_verdict_of_a_run(module: Importer) -> None:
    """The verdict names a collapse, missing digits, unclear samples or a good run."""
    verdict = module("gan_margins").verdict
    assert verdict({"shares": [0.04] * 9 + [0.64], "i_prime": 0.4}).startswith("collapsed: 64% are taken for a 9")
    assert verdict({"shares": [0.0, 0.2, *[0.1] * 8], "i_prime": 1.7}) == "drops 0"
    assert verdict({"shares": [0.1] * 10, "i_prime": 1.7}) == "all ten digits"
    assert "unclear" in verdict({"shares": [0.1] * 10, "i_prime": 1.0})
