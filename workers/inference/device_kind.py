"""Name the kind of device on which a worker computes.

The bits of a result depend on the processor, on torch and its libraries, and on the number of
threads. Workers whose kinds have the same name give the same bits for the same seed.
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
    """Return the name of a device's kind, such as `cpu-AVX512-2threads-torch2.9.1-1a2b3c4d`.

    `threads` is the setting: 0 means that a large model uses all processors of the worker. The last
    part is a hash of everything that distinguishes kinds.
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
