"""Check every shape annotation of `models` with beartype while these tests run."""

from __future__ import annotations

import sys

import torch
from jaxtyping import install_import_hook

loaded = [name for name in sys.modules if name == "models" or name.startswith("models.")]
assert not loaded, f"loaded before the shapes were checked: {loaded}"
# PEP 484's tower: an int passes for a float.
hook = install_import_hook("models", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
torch.set_num_threads(1)
