"""Store the measured batch sizes of each operation of a network (its batch plan) in files.

A file is found by a hash of what the batch sizes depend on: the network (family, configuration and
image shape, not the weights), the operation, the number of threads, the length of a time slice, the
processor or GPU, the version and build of torch, and the rules of the measurement.
"""

import hashlib
import json
import logging
import platform
from functools import cache
from pathlib import Path

import torch

from core.files import write_durably
from workers.inference.batch_planner import RULES
from workers.inference.loaded_model import BatchPlan, LoadedModel

log = logging.getLogger(__name__)

# What distinguishes processors for the libraries of torch, in the names of /proc/cpuinfo on x86 and
# ARM: which kernels they use, and in which blocks.
_CPU_FIELDS = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags"),
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
    )
)


# See docs/decisions.md#a-batch-plan-belongs-to-the-network-and-not-to-its-weights
class PlanStore:
    """A folder of measured batch sizes (batch plans), one file for each operation of a network."""

    def __init__(self, folder: Path, time_slice_s: float) -> None:
        """Use a folder, which may not exist yet.

        `time_slice_s` is the time in seconds that a worker gives to one batch before it receives
        the next message. The batch sizes depend on it.
        """
        self._folder, self._time_slice_s = folder, time_slice_s

    def load(self, model: LoadedModel, method: str) -> BatchPlan | None:
        """Return the stored batch sizes of a model's operation; None if there are none.

        Only batch sizes that were measured on an equal processor, with the same torch, are
        returned.
        """
        try:
            stored = json.loads(self._file(model, method).read_text())
            return BatchPlan(tuple(stored["batch_sizes"]), stored["slice_rows"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("batch plan not read", extra={"model": model.entry.ref, "reason": str(error)})
            return None

    def save(self, model: LoadedModel, method: str, plan: BatchPlan) -> None:
        """Write the batch sizes of an operation to a file; if that fails, only log a warning."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(self._file(model, method), json.dumps(vars(plan)))
        except OSError as error:  # the next start measures again
            log.warning("batch plan not stored", extra={"model": model.entry.ref, "reason": str(error)})

    def _file(self, model: LoadedModel, method: str) -> Path:
        """Return the path of an operation's file, named by the hash of what its plan depends on."""
        card = model.entry.card
        network = [card.family, card.config, card.image, method, model.threads]
        depends = [RULES, network, self._time_slice_s, processor(model.device), libraries()]
        return self._folder / f"{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]}.json"


@cache
def processor(device: torch.device) -> list[str]:
    """Return a description of a device's processor, equal on all machines that have it."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    fields = [line.partition(":") for line in first.splitlines()]
    described = [f"{name.strip()}: {value.strip()}" for name, _, value in fields if name.strip() in _CPU_FIELDS]
    return [device.type, platform.machine(), torch.backends.cpu.get_cpu_capability(), *described]


@cache
def libraries() -> list[str]:
    """Return the versions of torch and of the libraries that it was built with."""
    return [torch.__version__, torch.__config__.show()]
