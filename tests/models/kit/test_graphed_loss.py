"""`models.kit.graphed_loss`: a graph is captured once per epoch, and trains as separate steps
do.
"""

from pathlib import Path

import pytest
import torch

from models.kit import graphed_loss
from models.kit.graphed_loss import GraphedLoss, Losses
from models.kit.recipe import Recipe
from models.kit.run import Run


class Recomputed(GraphedLoss):
    """Stands for a CUDA graph without a GPU: it computes the losses anew at each replay."""

    captures = 0

    def __init__(self, losses: Losses, parameters: list[torch.nn.Parameter], index: torch.Tensor) -> None:
        assert len(index) == 10
        Recomputed.captures += 1
        self._losses, self._parameters = losses, parameters

    def __call__(self, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Set the gradients of the mean loss of a batch; return the sum of its losses."""
        self._index, self._rows = index, rows
        return self._compute(self._losses)


@pytest.mark.parametrize(
    ("family", "config"),
    [("vae", {"latents": 2, "samples": 3, "single_sample_epochs": 1}), ("bihm", {"late_samples": 20, "late_from": 1})],
)
def test_graphed_steps_equal_separate_steps(
    family: str, config: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights are equal to the bit; each epoch has its own graph; a smaller last batch has none."""
    monkeypatch.setattr(graphed_loss, "GraphedLoss", Recomputed)
    monkeypatch.setattr(Recomputed, "captures", 0)
    drawn = torch.rand((235, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    images = (drawn * 255).to(torch.uint8)
    recipe = Recipe.from_json(
        {"family": family, "name": "graphed", "summary": "for tests", "data": "none", "seed": 1}
        | {"config": {"height": 6, "width": 6, "hidden": [8], **config}, "training": {"epochs": 3, "batch_size": 10}}
    )
    weights = []
    for graphed in (False, True):
        run = Run(recipe, images, tmp_path)
        if graphed:
            monkeypatch.setattr(run, "_uses_graph", lambda size: size == 10)
        run.fit()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert torch.equal(*weights)
    assert Recomputed.captures == 3
