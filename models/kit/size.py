"""How much memory a run takes at least, by its recipe alone, and a limit on what this process may take."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from models.kit.card import family
from models.kit.recipe import Recipe

OPTIMIZER_STATES = {"adam": 2, "adagrad": 1, "sgd": 0}
"""Numbers that an optimiser keeps for each weight."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "could not create a memory object")
"""What torch and its libraries say in a RuntimeError where the system gives no more memory."""


class TooLargeError(ValueError):
    """A model or a run that takes more memory than it may."""


def min_bytes(recipe: Recipe) -> int:
    """The memory of weights, gradients, optimiser states and averages; no weight is made to find out.

    Activations, pictures and what torch itself holds come on top. ValueError where the config makes no model.
    """
    with torch.device("meta"):
        model = family(recipe.family).Model(recipe.config)
    training = recipe.training
    kinds = training.player_optimisers or (training.optimiser,)
    copies = 2 + min(OPTIMIZER_STATES[kind] for kind in kinds) + (training.average > 0.0)
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * weights


def check_size(recipe: Recipe, limit_bytes: int) -> None:
    """Raise TooLargeError where a run is sure to take more memory than it may."""
    least = min_bytes(recipe)
    if least > limit_bytes:
        raise TooLargeError(
            f"training it takes at least {least >> 20} MiB of memory for its weights; at most {limit_bytes >> 20} MiB "
            "may be: a smaller network needs less"
        )


def limit_memory(size_bytes: int) -> None:
    """Let this process and its children take so many bytes beyond what this one has now, each by itself.

    What the limit refuses becomes a MemoryError, or a RuntimeError of torch's allocator. Files that are mapped do not
    count.
    """
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("VmData:")[2].split()[0]) << 10
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held + size_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory for what was asked."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )
