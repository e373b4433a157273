"""Compute the least memory that a training needs, limit a process's memory, and tune malloc."""

import ctypes
import resource
from pathlib import Path

import torch

from models.kit.card import family
from models.kit.recipe import Recipe

OPTIMIZER_STATES = {"adam": 2, "adagrad": 1, "sgd": 0}  # numbers that an optimizer stores per weight

# Messages of a RuntimeError by which torch and its libraries report a failed allocation.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "could not create a memory object")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES = 32 * 2**20, 64 * 2**20


class TooLargeError(ValueError):
    """Raised if a training needs more memory than it may use."""


def min_bytes(recipe: Recipe) -> int:
    """Return a lower bound of the memory that a recipe's training needs, in bytes.

    The bound counts weights, gradients, optimizer state and averaged weights, but not activations,
    images and torch itself. The memory is not allocated. Raises ValueError if the config is
    invalid.
    """
    with torch.device("meta"):
        model = family(recipe.family).Model(recipe.config)
    training = recipe.training
    kinds = training.player_optimisers or (training.optimiser,)
    copies = 2 + min(OPTIMIZER_STATES[kind] for kind in kinds) + (training.average > 0.0)
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * weights


def check_size(recipe: Recipe, limit_bytes: int) -> None:
    """Raise TooLargeError if the weights of a recipe's training need more than `limit_bytes`.

    Gradients, optimizer state and averaged weights are included.
    """
    needed = min_bytes(recipe)
    if needed > limit_bytes:
        raise TooLargeError(
            f"training it takes at least {needed >> 20} MiB of memory for its weights; at most {limit_bytes >> 20} MiB "
            "may be: a smaller network needs less"
        )


# See docs/decisions.md#proc-is-read-directly-in-models-and-benchmarks-not-with-psutil
def limit_memory(size_bytes: int) -> None:
    """Limit the memory of this process, and of each of its children, to `size_bytes` more than now.

    An allocation above the limit raises MemoryError, or RuntimeError in torch's allocator.
    Memory-mapped files do not count.
    """
    status = Path("/proc/self/status").read_text()
    limit = (int(status.partition("VmData:")[2].split()[0]) << 10) + size_bytes
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if hard_limit != resource.RLIM_INFINITY:
        limit = min(limit, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard_limit))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that memory could not be allocated."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
    )


def keep_freed_memory() -> None:
    """Make glibc's malloc keep up to 64 MiB of freed memory; do nothing with other C libraries.

    By default glibc returns a freed tensor of a few megabytes to the kernel, and requests the
    memory again in the next step. The kernel then zeroes every page, which takes a tenth of the
    time of a convolution.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)  # the largest value that glibc accepts
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
