"""Compare Reverie with LitServe, BentoML, Ray Serve and a bare FastAPI app.

All serve the same model with the same responses.

One run does everything: it creates each peer's environment, finds the peer's best settings in a
short sweep, then measures one server at a time, in interleaved rounds, with the small decoder and
with a heavy one. Responses are decoded and compared with local results. Then it measures bulk work
on Reverie (serving/bulk.py). Linux only: it reads /proc. Needs `wrk` (`apt-get install -y wrk`).
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import bulk, facts, report
from serving.client import wrk_path
from serving.rounds import Bodies, Lengths, rounds
from serving.servers import ALL, PEERS, REVERIE, ROOT, Checkpoint, Server, install, versions
from serving.sweep import ModelOperation, sweep

HEAVY_MS = 20.0
EXPECTED = 100
FULL = Lengths(warm_s=2, cell_s=4, idle_s=4)
QUICK = Lengths(warm_s=1, cell_s=2, idle_s=2)
SWEEP_S = {"small": 2.0, "heavy": 3.0}


def main() -> None:
    """Measure, then write the tables as Markdown and every number as JSON beside them."""
    arguments = parsed()
    wrk_path()
    servers = [server for server in ALL if server.name in arguments.servers]
    for server in servers:
        install(server)
    start, load = time.monotonic(), facts.load_average()
    scratch = Path(tempfile.mkdtemp(prefix="rb-"))
    try:
        models = {kind: measured(kind, servers, arguments, scratch) for kind in arguments.models}
        side = bulk.measure(small(arguments), scratch, quick=arguments.quick) if arguments.bulk else None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {
        "date": facts.now(),
        "commit": facts.commit(),
        "machine": facts.machine(),
        "load_average_at_start": load,
        "seconds": round(time.monotonic() - start),
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "versions": {server.name: versions(server) for server in servers},
        "models": models,
        "bulk": side,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    arguments.out.write_text(report.markdown(result))
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.json').name} after {result['seconds']} s")


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    names = [server.name for server in ALL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one short round, no sweep: dials of --dials or the first ones"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "serve.md", help="the Markdown file")
    parser.add_argument("--rounds", type=int, help="how often every server has its turn (3, or 1 with --quick)")
    parser.add_argument("--dials", type=Path, help="take the peers' dials from this earlier JSON and sweep nothing")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints", help="folder that holds vae-mnist")
    parser.add_argument("--servers", nargs="+", choices=names, default=names, help="measure only these")
    parser.add_argument("--models", nargs="+", choices=["small", "heavy"], default=["small", "heavy"])
    parser.add_argument("--no-bulk", dest="bulk", action="store_false", help="leave out bulk draws and mixed load")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.bulk = arguments.bulk and REVERIE.name in arguments.servers
    return arguments


def measured(kind: str, servers: Sequence[Server], arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run sweep and rounds with one model; return its cost, the chosen settings and every turn."""
    checkpoint = small(arguments) if kind == "small" else heavy(scratch)
    cost = json.loads(generator(checkpoint))
    alone, together = cost["1"]["median"], cost["64"]["median"]
    print(f"{kind}: {checkpoint.name}, one image alone {alone:.2f} ms, 64 together {together:.2f} ms", flush=True)
    expected: Bodies = json.loads(generator(checkpoint, "--bodies", str(EXPECTED)))
    choices = {server.name: chosen(server, kind, checkpoint, arguments, scratch) for server in servers}
    lengths = QUICK if arguments.quick else FULL
    turns = rounds(servers, checkpoint, choices, arguments.rounds, lengths, expected, scratch)
    return {
        "model": checkpoint.name,
        "cost_ms": cost,
        "choices": {name: told(choice) for name, choice in choices.items()},
        "turns": [dataclasses.asdict(turn) for turn in turns],
    }


def chosen(
    server: Server, kind: str, checkpoint: Checkpoint, arguments: argparse.Namespace, scratch: Path
) -> ModelOperation:
    """Return the settings of a server: from an earlier run, from a sweep, or the defaults."""
    if arguments.dials:
        before = json.loads(arguments.dials.read_text())["models"][kind]["choices"][server.name]["dials"]
        return ModelOperation({int(count): dials for count, dials in before.items()})
    if arguments.quick or not server.sweep:
        return ModelOperation(dict.fromkeys((1, 16, 64), server.start))
    return sweep(server, checkpoint, kind == "heavy", scratch, SWEEP_S[kind])


def told(choice: ModelOperation) -> dict[str, Any]:
    """Return the chosen settings as JSON."""
    trials = [dataclasses.asdict(trial) for trial in choice.trials]
    return {"dials": choice.dials, "trials": trials}


def small(arguments: argparse.Namespace) -> Checkpoint:
    """Return the trained decoder that ships; SystemExit if it is missing."""
    checkpoint = Checkpoint(arguments.checkpoints.resolve(), "vae-mnist", "1")
    if not (checkpoint.path / "model.safetensors").is_file():
        raise SystemExit(f"no {checkpoint.name}/{checkpoint.version}/model.safetensors in {arguments.checkpoints}")
    return checkpoint


def heavy(scratch: Path) -> Checkpoint:
    """Write a random decoder, deepened until one image takes at least 20 ms on one thread."""
    checkpoint = Checkpoint(scratch / "heavy", "vae-heavy", "1")
    for layers in range(5, 16):
        widths = ["4096"] * layers
        command = [sys.executable, str(PEERS / "checkpoint.py"), str(checkpoint.folder), checkpoint.name, *widths]
        subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT)}, timeout=300)
        if json.loads(generator(checkpoint))["1"]["least"] >= HEAVY_MS:
            return checkpoint
    raise SystemExit("no decoder of at most 15 layers takes 20 ms on this machine")


def generator(checkpoint: Checkpoint, *words: str) -> str:
    """Return the output of benchmarks/peers/generator.py for a checkpoint, on one thread."""
    environment: Mapping[str, str] = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PEER_CHECKPOINT": str(checkpoint.path),
    }
    command = [sys.executable, str(PEERS / "generator.py"), *words]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=300).stdout


if __name__ == "__main__":
    main()
