"""Name the device kind of a worker: its device, processor, torch version and threads.

The bits of a result depend on the processor, on torch and its libraries, and on the number of
threads. Two workers with the same device kind give the same bits for the same seed.
"""

import hashlib
import json
import os
import re
from importlib.metadata import version

import torch

from workers.inference.plan_store import libraries, processor

_MAX_CHARACTERS = 80  # the width of a column of the job database


def device_kind(device: torch.device, threads: int) -> str:
    """Return the device kind of a worker, such as `cpu-AVX512-2threads-torch2.9.1-1a2b3c4d`.

    The parts are the type of `device`, the name of the GPU or the CPU's instruction set, the
    threads (of a CPU), the version of torch, and a hash of all details of processor, libraries and
    threads. `threads` is the setting; 0 counts as all processors that this process may use.
    """
    described = processor(device)
    if device.type == "cuda":
        name, count = described[0].removeprefix("NVIDIA "), 0
    else:
        name, count = described[2], threads or len(os.sched_getaffinity(0))
    digest = hashlib.sha256(json.dumps([described, libraries(), count]).encode()).hexdigest()[:8]
    torch_version = version("torch").partition("+")[0]
    words = [device.type, name, *([f"{count}thread{'s' * (count > 1)}"] if count else []), f"torch{torch_version}"]
    text = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")
    return f"{text[: _MAX_CHARACTERS - 9]}-{digest}"
