"""One training spread over processes, each with its share of every batch: sums of gradients, losses and wishes to stop.

Torchrun starts the processes and names them in the environment; a process that it has not started is alone, and then
nothing here does anything. Pictures draw their numbers by themselves, so the share of a picture does not matter; sums
are taken in another order than in one process, so bits do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import distributed, nn

from models.kit.shapes import Float, Int, Tensor


class Spread:
    """This process among those of a training."""

    def __init__(self) -> None:
        """Join the others where there are any: by NCCL with a GPU each, else by Gloo."""
        self.world = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        self.rank = int(os.environ.get("RANK", "0")) if self.world > 1 else 0
        if self.world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, index: Int[Tensor, "B"]) -> Int[Tensor, "b"]:
        """This process's pictures of a batch. ValueError where there is none for some process."""
        if self.alone:
            return index
        if len(index) < self.world:
            raise ValueError(f"a batch of {len(index)} pictures cannot be spread over {self.world} processes")
        return index[self.rank :: self.world]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self.alone:
            return
        there = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in there])
        distributed.all_reduce(flat)
        first = 0
        for gradient in there:
            gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
            first += gradient.numel()

    def added(self, values: Sequence[Float[Tensor, ""]]) -> list[Tensor]:
        """The sum over all processes of each value."""
        if self.alone:
            return list(values)
        together = torch.stack([value.double() for value in values])
        distributed.all_reduce(together)
        return list(together)

    def any_of(self, *wishes: bool) -> tuple[bool, ...]:
        """For each wish, whether any process has it."""
        if self.alone:
            return wishes
        device = "cuda" if torch.cuda.is_available() else "cpu"
        together = torch.tensor(wishes, dtype=torch.int32, device=device)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return tuple(bool(wish) for wish in together)

    def agree(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: running statistics differ between shares."""
        if not self.alone:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def leave(self) -> None:
        """Part from the others once all are here: a process that just ends may be aborted by its threads."""
        if not self.alone and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
