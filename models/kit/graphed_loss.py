"""Compute the losses of a batch and their gradients by one CUDA graph.

A step of a small network launches thousands of kernels; the replay of a graph is one launch.
"""

from collections.abc import Callable

import torch
from torch import nn

from models.kit.shapes import Float, Int, Tensor

WARM_UP_STEPS = 3  # before the capture, as torch.cuda.graph asks for: libraries choose and load their kernels

MIN_STEPS = 20  # an epoch of fewer steps is not worth the capture

Losses = Callable[[Int[Tensor, "B"], Int[Tensor, "B"]], Float[Tensor, "B"]]


# See docs/decisions.md#on-a-gpu-the-loss-and-its-gradients-are-a-cuda-graph
class GraphedLoss:
    """A CUDA graph of the losses of batches of one size, and of the gradients of their mean.

    `losses(index, rows)` returns the loss of each image (B,). Its arguments are tensors on the
    device: the indices of the images, and the numbers of their random rows. It must do the same
    work for every batch and never wait for the device. The graph is captured with the images
    `index`, and replayed for other images. A replay uses the present weights, and overwrites the
    gradients of the previous replay.
    """

    def __init__(self, losses: Losses, parameters: list[nn.Parameter], index: Int[Tensor, "B"]) -> None:
        self._parameters = parameters
        self._index, self._rows = index.clone(), index.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._compute(losses)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._total = self._compute(losses)
        self._gradients = [parameter.grad for parameter in parameters]

    def _compute(self, losses: Losses) -> Float[Tensor, ""]:
        """Run the losses and their backward pass once; return the sum of the losses."""
        for parameter in self._parameters:
            parameter.grad = None
        values = losses(self._index, self._rows)
        values.mean().backward(inputs=self._parameters)
        return values.detach().sum()

    def __call__(self, index: Int[Tensor, "B"], rows: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Set the gradients of a batch's mean loss; return the sum of its losses, a scalar tensor.

        `index` has the indices of the batch's images, `rows` the numbers of their random rows.
        """
        self._index.copy_(index)
        self._rows.copy_(rows)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._total.clone()


class EpochGraph:
    """The CUDA graph of the present epoch, captured at the epoch's first batch.

    `losses` may depend on the epoch, so each epoch needs a graph of its own.
    """

    def __init__(self, losses: Losses, parameters: list[nn.Parameter]) -> None:
        self._losses, self._parameters = losses, parameters
        self._graph: GraphedLoss | None = None
        self._epoch = -1

    def of(self, epoch: int, index: Int[Tensor, "B"]) -> GraphedLoss:
        """Return the CUDA graph for `epoch`, which serves all batches of the epoch.

        The first call of an epoch captures the graph, because `losses` may change between epochs.
        The capture runs on the images with the indices `index`; later calls ignore `index`.
        """
        if self._graph is None or self._epoch != epoch:
            self._graph = None  # frees its memory before the next capture
            self._graph, self._epoch = GraphedLoss(self._losses, self._parameters, index), epoch
        return self._graph
