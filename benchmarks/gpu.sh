#!/usr/bin/env bash
# Everything that needs a GPU: checks against the CPU, every recipe at its paper's scale, samples per
# second. Needs torch, numpy, pillow and safetensors, and the data in data/ (see docs/train.md).
# Interrupted trainings resume when the script is started again.
#
#   benchmarks/gpu.sh                     # on cuda, results in runs/gpu
#   OUT=/somewhere benchmarks/gpu.sh
#   DEVICE=cpu DRY=1 benchmarks/gpu.sh    # a few steps of everything on synthetic data, as a test
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda} out=${OUT:-runs/gpu} python=${PYTHON:-python}
dry=(); [ -z "${DRY:-}" ] || dry=(--dry)
mkdir -p "$out"
"$python" benchmarks/gpu.py check --device "$device" "${dry[@]}" | tee "$out/check.jsonl"
"$python" benchmarks/gpu.py speed --device "$device" "${dry[@]}" | tee "$out/speed.jsonl"
"$python" benchmarks/gpu.py train --device "$device" --out "$out" "${dry[@]}" | tee "$out/train.jsonl"
