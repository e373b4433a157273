"""Data-parallel training over several processes started by torchrun.

Each process computes its share of every batch; gradients, losses and requests to stop are summed
over all processes. A process that torchrun did not start is the only one, and every method then
does nothing. An image's random numbers depend on the image alone, so it does not matter which
process gets it; sums are taken in another order than in one process, so the last bits of the
weights differ.
"""

import os
from collections.abc import Sequence

import torch
from torch import distributed, nn

from models.kit.shapes import Float, Int, Tensor


class ProcessGroup:
    """This process among the processes of one training."""

    def __init__(self) -> None:
        """Join the processes of the training, if torchrun started several.

        They communicate by NCCL with one GPU each, otherwise by Gloo.
        """
        self.world_size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        self.rank = int(os.environ.get("RANK", "0")) if self.world_size > 1 else 0
        if self.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def is_single(self) -> bool:
        """Whether this is the only process."""
        return self.world_size == 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files (rank 0)."""
        return self.rank == 0

    def local_share(self, index: Int[Tensor, "B"]) -> Int[Tensor, "b"]:
        """Return the image indices of a batch that this process trains on.

        Raises ValueError if the batch has fewer images than there are processes.
        """
        if self.is_single:
            return index
        if len(index) < self.world_size:
            raise ValueError(f"a batch of {len(index)} images cannot be divided among {self.world_size} processes")
        return index[self.rank :: self.world_size]

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.is_single:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def all_reduce_sums(self, values: Sequence[Float[Tensor, ""]]) -> list[Float[Tensor, ""]]:
        """Return the sum of each value over all processes."""
        if self.is_single:
            return list(values)
        stacked = torch.stack([value.double() for value in values])
        distributed.all_reduce(stacked)
        return list(stacked)

    def any_process(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set in at least one process."""
        if self.is_single:
            return flags
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stacked = torch.tensor(flags, dtype=torch.int32, device=device)
        distributed.all_reduce(stacked, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in stacked)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Overwrite the model's buffers in every process by those of the main process.

        The running statistics of batch normalisation differ between shares of a batch.
        """
        if not self.is_single:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def shut_down(self) -> None:
        """Wait for all processes, then leave the group.

        A process that exits without this call may abort in its threads.
        """
        if not self.is_single and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
