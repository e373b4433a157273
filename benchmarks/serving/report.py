"""Results as Markdown: a table per model, ratios within one run, and the machine."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COUNTS = ("1", "16", "64")
OURS, BARE = "reverie", "fastapi"
TITLES = {
    "reverie": "Reverie",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "ray": "Ray Serve",
    "fastapi": "bare FastAPI",
}
Json = Mapping[str, Any]


def markdown(result: Json) -> str:
    """Return the whole page."""
    machine = result["machine"]
    lines = [
        "# Serving: Reverie beside its peers",
        "",
        (
            f"Measured {result['date']} on commit `{result['commit']}` in {result['seconds'] / 60:.0f} minutes: "
            f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, {machine['system']}, "
            f"Python {machine['python']}; load average at the start {result['load_average_at_start']:.2f}."
        ),
        "The client, wrk with one thread, shares these cores. Each server runs alone for its turn, "
        f"{result['rounds']} round{'s' if result['rounds'] > 1 else ''}, interleaved; figures are medians over rounds"
        + (" (a quick run: short, and without a sweep)." if result["quick"] else "."),
        "Made by `python benchmarks/serve.py`; all numbers are in the JSON file beside this page.",
        "",
    ]
    for kind, model in result["models"].items():
        lines += _model(kind, _text_keys(model))
    if result["bulk"]:
        lines += _bulk(result["bulk"])
    lines += ["## Versions", "", *_versions(result["versions"]), ""]
    return "\n".join(lines)


def _text_keys(model: Json) -> Json:
    """Return the value with numbers of connections, which are dictionary keys,
    as text, as in JSON.
    """
    turns = [{**turn, "loads": {str(count): load for count, load in turn["loads"].items()}} for turn in model["turns"]]
    choices = {
        name: {**choice, "dials": {str(count): dials for count, dials in choice["dials"].items()}}
        for name, choice in model["choices"].items()
    }
    return {**model, "turns": turns, "choices": choices}


def _model(kind: str, model: Json) -> list[str]:
    cost = {rows: value["median"] for rows, value in model["cost_ms"].items()}
    title = "Small decoder" if kind == "small" else "Heavy decoder"
    names = list(model["choices"])
    lines = [
        f"## {title}: `{model['model']}`",
        "",
        (
            f"One pass on one thread, picture encoded: {cost['1']:.2f} ms for one image, "
            f"{cost['16']:.2f} ms for 16, {cost['64']:.2f} ms for 64."
        ),
        "",
        "| server | " + " | ".join(f"req/s at {count}" for count in COUNTS) + " | p50 / p99 ms at 1 | at 16 | at 64 |",
        "| --- |" + " ---: |" * 6,
    ]
    for name in names:
        served = [_number(_median(model, name, count, "requests_per_s"), 0) for count in COUNTS]
        waited = [
            f"{_number(_median(model, name, count, 'p50_ms'), 1)} / {_number(_median(model, name, count, 'p99_ms'), 1)}"
            for count in COUNTS
        ]
        lines.append(f"| {TITLES[name]} | " + " | ".join(served + waited) + " |")
    lines += ["", *_ratios(model), "", *_costs(model, names), "", *_dials(model, names), ""]
    return lines


def _ratios(model: Json) -> list[str]:
    """Return the ratios of Reverie's throughput to the best peer's and to bare FastAPI's.

    A ratio is taken in each round; the table has the median and the range.
    """
    peers = [name for name in model["choices"] if name not in {OURS, BARE}]
    if OURS not in model["choices"] or not peers:
        return []
    lines = ["| ours over | figure | at 1 | at 16 | at 64 |", "| --- | --- | ---: | ---: | ---: |"]
    for title, key, best_of in (("requests/s", "requests_per_s", max), ("p50 latency", "p50_ms", min)):
        cells = []
        for count in COUNTS:
            medians = {name: _median(model, name, count, key) for name in peers if _values(model, name, count, key)}
            best = best_of(medians, key=medians.__getitem__, default="")
            cells.append(f"{_ratio(model, best, count, key)} ({TITLES[best]})" if best else "-")
        lines.append(f"| the best peer | {title} | " + " | ".join(cells) + " |")
        if BARE in model["choices"]:
            cells = [_ratio(model, BARE, count, key) for count in COUNTS]
            lines.append(f"| bare FastAPI | {title} | " + " | ".join(cells) + " |")
    return lines


def _ratio(model: Json, other: str, count: str, key: str) -> str:
    ours, theirs = _by_round(model, OURS, count, key), _by_round(model, other, count, key)
    ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
    if not ratios:
        return "-"
    text = f"{statistics.median(ratios):.2f}×"
    return text if len(ratios) == 1 else f"{text} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _costs(model: Json, names: Sequence[str]) -> list[str]:
    """Return the idle cost of each server, and errors in its responses."""
    lines = [
        (
            "| server | idle CPU (cores) | PSS MiB | RSS MiB | processes | start s | not 2xx | socket errors | "
            "bodies checked | to the bit | one grey level off | bad | CPU of others |"
        ),
        "| --- |" + " ---: |" * 12,
    ]
    for name in names:
        turns = [turn for turn in model["turns"] if turn["server"] == name]
        weights = [turn["weight"] for turn in turns if turn["weight"]]
        weight = weights[0] if weights else None
        loads = [load for turn in turns for load in turn["loads"].values()]
        samples = {key: sum(turn["samples"][key] for turn in turns) for key in ("taken", "exact", "near", "bad")}
        cells = [
            f"{weight['idle_cpu']:.3f}" if weight else "-",
            f"{weight['pss_bytes'] / 2**20:.0f}" if weight else "-",
            f"{weight['rss_bytes'] / 2**20:.0f}" if weight else "-",
            str(weight["processes"]) if weight else "-",
            f"{statistics.median(turn['start_s'] for turn in turns):.1f}",
            str(sum(load["non_2xx"] for load in loads)),
            str(sum(load["socket_errors"] for load in loads)),
            *(str(samples[key]) for key in ("taken", "exact", "near", "bad")),
            f"{max(turn['others_cpu'] for turn in turns):.2f}",
        ]
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
        option_errors = {turn["fault"].splitlines()[0] for turn in turns if turn["fault"]}
        option_errors |= {turn["samples"]["first_fault"] for turn in turns if turn["samples"]["first_fault"]}
        lines += [f"| {TITLES[name]} | {fault} |" + " |" * 11 for fault in sorted(option_errors)]
    return lines


def _dials(model: Json, names: Sequence[str]) -> list[str]:
    """Return the settings of each server.

    A peer has the best of its sweep for that number of connections.
    """
    lines = ["Dials, for each number of connections the best of the sweep:", ""]
    for name in names:
        choice = model["choices"][name]
        texts: dict[str, list[str]] = {}
        for count, dials in choice["dials"].items():
            texts.setdefault(", ".join(f"{key} {value}" for key, value in dials.items()), []).append(count)
        told = "; ".join(
            f"{text} (at {', '.join(counts)})" if text else "as it comes" for text, counts in texts.items()
        )
        tried = f" — {len(choice['trials'])} settings tried" if choice["trials"] else ""
        lines.append(f"- {TITLES[name]}: {told}{tried}")
    return lines


def _bulk(found: Json) -> list[str]:
    draw, mixed = found["draw"], found["mixed"]
    return [
        "## Bulk work",
        "",
        (
            f"One request for {draw['count']} samples as NPZ: {draw['reverie_s']:.3f} s. The bare torch loop "
            f"(per-row seeds, uint8, stored NPZ; one thread, its best batch of {draw['best_batch']}): "
            f"{draw['loop_s']:.3f} s, on two threads {draw['loop_two_threads_s']:.3f} s. "
            f"Ratio of throughputs to one thread: {draw['ratio']:.2f} "
            f"[{draw['ratio_low']:.2f}, {draw['ratio_high']:.2f}] over {draw['rounds']} rounds. "
            f"Pixels: {draw['equal_share']:.4%} equal, at most {draw['largest_difference']} grey levels apart."
        ),
        "",
        "| a single sample while | median ms | p99 ms | samples |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['samples']} |"
            for name, row in mixed["latency"].items()
        ),
        "",
        (
            f"The bulk client finished {mixed['likelihoods']} requests of {mixed['images']} likelihoods with "
            f"K = {mixed['k']} and {mixed['draws']} draws of {mixed['draw_count']} meanwhile."
        ),
        "",
    ]


def _versions(versions: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [
        f"- {TITLES[name]}: " + ", ".join(f"{package} {version}" for package, version in sorted(packages.items()))
        for name, packages in versions.items()
    ]


def _by_round(model: Json, name: str, count: str, key: str) -> dict[int, float]:
    return {
        turn["number"]: turn["loads"][count][key]
        for turn in model["turns"]
        if turn["server"] == name and count in turn["loads"]
    }


def _values(model: Json, name: str, count: str, key: str) -> list[float]:
    return list(_by_round(model, name, count, key).values())


def _median(model: Json, name: str, count: str, key: str) -> float:
    values = _values(model, name, count, key)
    return statistics.median(values) if values else float("nan")


def _number(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"  # noqa: PLR0124  # NaN
