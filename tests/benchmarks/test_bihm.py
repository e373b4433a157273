"""The benchmark of the bidirectional Helmholtz machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.modules import Importer


def test_the_transcription_has_our_loss_and_gradient(module: Importer) -> None:
    """The literal transcription of Algorithm 1 gives the loss and the gradient of `models.bihm`."""
    benchmark = module("bihm")
    from models import bihm
    from models.kit.row_streams import RowStreams

    config = bihm.Config(height=4, width=5, hidden=(7, 4), samples=6)
    model = bihm.Model(config)
    model.initialise(RowStreams.range(1, 0, 1))
    rows = RowStreams.range(2, 0, 9)
    images = rows.bernoulli(torch.full((9, 20), 0.4)).view(9, 1, 4, 5)
    found = []
    for loss in (
        model.loss(images, rows),
        benchmark.transcription(model, images.flatten(1), rows.uniform_int16(11, 0, 6, bihm.HIDDEN)),
    ):
        model.zero_grad()
        loss.mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        found.append((loss.detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_its_page_can_be_written(module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stored measurements appear on the page."""
    benchmark = module("bihm")
    monkeypatch.setattr(benchmark, "RESULT", tmp_path / "bihm.json")
    measured = {"seed": 2, "minus_2_log_z": 2.6, "standard_error": 0.05, "largest": 0.001}
    carded = {"card": {"minus_2_log_z": 2.5, "standard_error": 0.05}, "card_detail": "as measured"}
    benchmark.keep("partition", {"samples": 5_000_000, **measured, **carded})
    page = benchmark.report()
    assert "−2 log Z = 2.600 ± 0.050 nats, largest weight 0.100 % of all" in page
    assert "partition: 20" in page
