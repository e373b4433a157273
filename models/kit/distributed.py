"""Train a model in several processes that torchrun started, each with a share of every batch.

Gradients, losses and requests to stop are combined over all processes. A process that torchrun did
not start is the only one, and nothing is communicated. An image's random numbers depend only on the
image, not on the process that computes it. Sums are taken in another order than in one process, so
the last bits of the weights differ.
"""

import os
from collections.abc import Sequence

import torch
from torch import distributed, nn

from models.kit.shapes import Float, Int, Tensor


class ProcessGroup:
    """The processes that train one model together; this process is one of them."""

    def __init__(self) -> None:
        """Join the other processes of the training, if torchrun has started several.

        Processes with GPUs communicate by NCCL, others by Gloo.
        """
        self.world_size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        self.rank = int(os.environ.get("RANK", "0")) if self.world_size > 1 else 0
        if self.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def is_single(self) -> bool:
        """Whether this is the only process of the training."""
        return self.world_size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process (rank 0) that writes the files of the run."""
        return self.rank == 0

    def local_share(self, index: Int[Tensor, "B"]) -> Int[Tensor, "b"]:
        """Return this process's share of `index`, the indices of the images in a batch.

        Raises ValueError if the batch has fewer images than there are processes.
        """
        if self.is_single:
            return index
        if len(index) < self.world_size:
            raise ValueError(f"a batch of {len(index)} images cannot be divided among {self.world_size} processes")
        return index[self.rank :: self.world_size]

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter, if it has one, by the sum over all processes."""
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
        """Return, for each flag, whether it is True in at least one process."""
        if self.is_single:
            return flags
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stacked = torch.tensor(flags, dtype=torch.int32, device=device)
        distributed.all_reduce(stacked, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in stacked)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Replace the model's buffers in every process by the main process's buffers.

        Otherwise the running statistics of batch normalisation would differ: each process computes
        them on its own share of a batch.
        """
        if not self.is_single:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def shut_down(self) -> None:
        """Wait until all processes call this, then leave the process group.

        A process that exits without this call may abort in one of its threads.
        """
        if not self.is_single and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
