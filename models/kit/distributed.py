"""Train a model in several processes that torchrun started, each with a share of every batch.

Gradients, losses and requests to stop are combined over all processes. A process that torchrun did
not start is the only one, and nothing is communicated. An image's random numbers depend only on the
image, not on the process that computes it. Sums are taken in another order than in one process, so
the last bits of the weights differ.

The processes may be on several hosts, which need no common folder: only the main process (rank 0)
writes files, and a training that is resumed goes on from the main process's checkpoint.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence

import torch
from torch import distributed, nn

from models.kit.shapes import Float, Int, Tensor


class ProcessGroup:
    """The processes that train one model together; this process is one of them."""

    def __init__(self, device: torch.device) -> None:
        """Join the other processes of the training, if torchrun has started several.

        `device` is the device of the training's tensors, of the same type in all processes. Those
        on GPUs communicate by NCCL, those on CPUs by Gloo, even if there is a GPU.
        """
        self._device = device
        self.world_size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        self.rank = int(os.environ.get("RANK", "0")) if self.world_size > 1 else 0
        if self.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

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
        stacked = torch.tensor(flags, dtype=torch.int32, device=self._device)
        distributed.all_reduce(stacked, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in stacked)

    def of_main(self, value: float) -> float:
        """Return the main process's `value` in every process."""
        if self.is_single:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self._device)
        distributed.broadcast(number, 0)
        return float(number)

    def bytes_of_main(self, content: bytes) -> bytes:
        """Return the main process's `content` in every process."""
        if self.is_single:
            return content
        received = torch.empty(int(self.of_main(len(content))), dtype=torch.uint8, device=self._device)
        if self.is_main:
            received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        distributed.broadcast(received, 0)
        return received.cpu().numpy().tobytes()

    def check_same(self, what: str, contents: Iterable[bytes]) -> None:
        """Raise ValueError in every process if `contents` are not equal in all of them.

        `what` names them in the error message.
        """
        if self.is_single:
            return
        digest = hashlib.sha256()
        for content in contents:
            digest.update(content)
        if self.any_process(self.bytes_of_main(digest.digest()) != digest.digest())[0]:
            raise ValueError(f"{what} differ between the processes of the training; they must be the same on all hosts")

    def broadcast_model(self, model: nn.Module) -> None:
        """Replace the model's weights and buffers in every process by the main process's.

        Each process computes the running statistics of batch normalisation on its own share of a
        batch. The weights are equal, except on processors that round differently.
        """
        if self.is_single:
            return
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast(tensor, 0)

    def shut_down(self) -> None:
        """Wait until all processes call this, then leave the process group.

        A process that exits without this call may abort in one of its threads.
        """
        if not self.is_single and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
