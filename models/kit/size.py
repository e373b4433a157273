"""Lower bound of a training's memory from its recipe, and a memory limit for this process."""

import resource
from pathlib import Path

import torch

from models.kit.card import family
from models.kit.recipe import Recipe

# Numbers that an optimizer stores per weight.
OPTIMIZER_STATES = {"adam": 2, "adagrad": 1, "sgd": 0}

# Messages of a RuntimeError by which torch and its libraries report a failed allocation.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "could not create a memory object")


class TooLargeError(ValueError):
    """A model or a training that needs more memory than allowed."""


def min_bytes(recipe: Recipe) -> int:
    """Return the bytes of weights, gradients, optimizer state and averages, without allocating them.

    Activations, images and torch itself come on top. ValueError if the config is invalid.
    """
    with torch.device("meta"):
        model = family(recipe.family).Model(recipe.config)
    training = recipe.training
    kinds = training.player_optimisers or (training.optimiser,)
    copies = 2 + min(OPTIMIZER_STATES[kind] for kind in kinds) + (training.average > 0.0)
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * weights


def check_size(recipe: Recipe, limit_bytes: int) -> None:
    """Raise TooLargeError if a training certainly needs more memory than the limit."""
    needed = min_bytes(recipe)
    if needed > limit_bytes:
        raise TooLargeError(
            f"training it takes at least {needed >> 20} MiB of memory for its weights; at most {limit_bytes >> 20} MiB "
            "may be: a smaller network needs less"
        )


def limit_memory(size_bytes: int) -> None:
    """Limit this process and each of its children to `size_bytes` more than this process has now.

    A failed allocation raises MemoryError, or RuntimeError in torch's allocator. Memory-mapped files do not count.
    """
    status = Path("/proc/self/status").read_text()
    current = int(status.partition("VmData:")[2].split()[0]) << 10
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limit = current + size_bytes
    resource.setrlimit(
        resource.RLIMIT_DATA, (limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit), hard_limit)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a failed memory allocation."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
    )
