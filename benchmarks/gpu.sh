#!/usr/bin/env bash
# All that wants a GPU, in one go: checks against the CPU, every recipe at the papers' scale, samples a second.
# Needs torch, numpy, pillow and safetensors, and the data in data/ (see docs/train.md). Trainings that were cut off
# go on where they were when it is started again.
#
#   benchmarks/gpu.sh                     # on cuda, results in runs/gpu
#   OUT=/somewhere benchmarks/gpu.sh
#   DEVICE=cpu DRY=1 benchmarks/gpu.sh    # a few steps of everything on made-up data: does the script itself work?
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda} out=${OUT:-runs/gpu} python=${PYTHON:-python}
dry=(); [ -z "${DRY:-}" ] || dry=(--dry)
mkdir -p "$out"
"$python" benchmarks/gpu.py check --device "$device" "${dry[@]}" | tee "$out/check.jsonl"
"$python" benchmarks/gpu.py speed --device "$device" "${dry[@]}" | tee "$out/speed.jsonl"
"$python" benchmarks/gpu.py train --device "$device" --out "$out" "${dry[@]}" | tee "$out/train.jsonl"
