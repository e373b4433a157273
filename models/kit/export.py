"""Export the model of a run as a checkpoint, and measure the metrics ("figures") for its card."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models.kit import card, data
from models.kit.codes import describe_activity
from models.kit.figures import Figures, figure
from models.kit.preview import preview
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.shapes import ByteImages, Images, Tensor
from models.kit.train import weights

PROVENANCE_FILE = "provenance.json"
_SHOWN = 100  # images of the training set for a preview
EVALUATION_SEED = 1  # seed of binarization and importance samples


def provenance(
    recipe: Recipe, pictures: data.ImageSet, device: str = "cpu", held_back: data.ImageSet | None = None
) -> dict[str, Any]:
    """Return the `provenance` of a model card: recipe, hardware, commit, torch version and data.

    `pictures` are the training images and `held_back` separate validation images; if `held_back` is
    None, validation uses the last of `pictures`. The data has its licence if that is known. The
    result contains neither a path nor a host name.
    """
    validation = recipe.training.validation
    kind = recipe.training.binarization
    images = pictures.images[: recipe.training.pictures or None]
    all_images = images if held_back is None else torch.cat([images, held_back.images[:validation]])
    sha256 = {"sha256": data.static_binarization(all_images)[1]} if kind == "static" else {}
    return {
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
        "hardware": hardware(device),
        "commit": commit(),
        "torch": torch.__version__,
        "data": {
            "name": pictures.name,
            "sha256": pictures.sha256,
            "count": len(all_images) - validation,
            "validation": validation,
            **({"license": pictures.license} if pictures.license else {}),
        },
        "binarization": {"kind": kind, **sha256},
    }


def hardware(device: str = "cpu") -> str:
    """Return a description of a device, e.g. "2-core CPU (AMD EPYC), 1 thread" or "1 GPU (…)"."""
    if torch.device(device).type == "cuda":
        return f"1 GPU ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    threads = torch.get_num_threads()
    return f"{os.cpu_count()}-core CPU ({name}), {threads} thread{'s' if threads > 1 else ''}"


def export(out: Path, checkpoints: Path, version: str = "1", selection: Path | None = None, note: str = "") -> Path:
    """Write the model of the run in `out` as a checkpoint without metrics; return its path.

    The path is `checkpoints/NAME/VERSION/model.safetensors`. `selection` is the folder of an
    earlier run, by whose validation loss the number of epochs was chosen, or None; the model card
    describes this earlier run. `note` is a remark for the card. Raises ValueError if the run in
    `out` has no checkpoint.
    """
    if not (out / "state.pt").exists():
        raise ValueError(f"{out.name} holds no run: there is no state.pt")
    tensors, recipe, counters = weights(out)
    module = card.family(recipe.family)
    model = module.Model(recipe.config)
    model.load_state_dict(tensors)
    origin: dict[str, Any] = json.loads((out / PROVENANCE_FILE).read_text())
    origin["recipe"] = recipe.to_json()  # epochs and decay may have changed since the run started
    origin |= {"epochs": counters["best_epoch"] or counters["epoch"], "seconds": round(counters["seconds"], 1)}
    if selection is not None:
        origin["selection"] = _describe_selection(selection)
    if note:
        origin["note"] = note
    path = checkpoints / recipe.name / version / "model.safetensors"
    config = recipe.to_json()["config"]
    described = {
        "format": card.FORMAT,
        "name": recipe.name,
        "version": version,
        "family": recipe.family,
        "summary": recipe.summary,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": config,
        "image": {key: config[key] for key in ("channels", "height", "width")},
        "operations": model.operations(),
        "figures": [],
        "provenance": origin,
        "license": "MIT",
    }
    card.save(path, model, described)
    return path


def combine(
    sources: Sequence[str],
    out: Path,
    data_folder: Path,
    *,
    mean: bool = False,
    factors: Sequence[float] = (),
    note: str = "",
) -> None:
    """Write a checkpoint without metrics at `out`, made of the weights of several checkpoints.

    Each of `sources` is a checkpoint or some of its parts, as for `load_start_weights`. If several
    sources have a weight of the same name, the weight of the last source is used; with `mean` the
    mean of all; with `factors`, one per source, the sum of all, each times its source's factor. The
    model card is that of the first source; its provenance then lists all sources, and a `note`
    replaces its remark. A model that cannot draw samples gets a preview, as in `refresh`. If the
    model stores quantiles of energies, they are computed again on its training images, from
    `data_folder`. Raises ValueError if the weights do not fit the model of the first source, or if
    the number of factors is wrong.
    """
    if factors and len(factors) != len(sources):
        raise ValueError(f"{len(factors)} factors for {len(sources)} sources: give one for each")
    first, _ = _split_start(sources[0])
    model, described = card.load(first)
    loaded = [load_start_weights([source]) for source in sources]
    tensors = {name: value for weights_of in loaded for name, value in weights_of.items()}
    if mean or factors:
        for name, value in tensors.items():
            holders = [number for number, one in enumerate(loaded) if name in one]
            if len(holders) > 1 and value.is_floating_point():
                shares = [1.0 / len(holders) if mean else factors[number] for number in holders]
                parts = [share * loaded[n][name].double() for share, n in zip(shares, holders, strict=True)]
                tensors[name] = torch.stack(parts).sum(0).to(value.dtype)
    try:
        model.load_state_dict({**model.state_dict(), **tensors})
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the model of {first.name}: {error}") from error
    if hasattr(model, "store_quantiles"):
        pictures = data.load(described["provenance"]["data"]["name"], "train", data_folder).images
        model.store_quantiles(preprocess_as_trained(described, part, EVALUATION_SEED) for part in pictures.split(500))
    described_sources = [describe_start(source) for source in sources]
    if factors:
        described_sources = [one | {"factor": factor} for one, factor in zip(described_sources, factors, strict=True)]
    how = {"mean_of" if mean else "combined": described_sources}
    described["provenance"] |= how | ({"note": note} if note else {})
    described["figures"] = []
    source = described["provenance"]["data"]["name"]
    card.save(out, model, described, _preview_without_samples(model, described, source, data_folder))


def publish(
    out: Path,
    checkpoints: Path,
    version: str,
    data_folder: Path,
    count: int,
    k: int,
    against: Path | None = None,
    job: str = "",
) -> dict[str, Any]:
    """Write the model of the run in `out` as a checkpoint with metrics and a preview.

    Returns its `path` and its metrics, `figures`, which are measured on the first `count` test
    images; without a test split there are none. `k` is the number of importance samples per image,
    or of generated images for an EBGAN. `data_folder` has the data sets. If `against` is a
    checkpoint, the result also has `against`: that checkpoint's metrics on the same images with the
    same random numbers, or an empty list if its family or image shape differs. `job` is the id of
    the training, for the card.
    """
    path = export(out, checkpoints, version)
    model, described = card.load(path)
    if job:
        described["provenance"]["job"] = job
    source = described["provenance"]["data"]["name"]
    try:
        pictures = data.load(source, "test", data_folder).images[:count]
    except ValueError:  # there is no test split
        pictures = torch.empty(0)
    described["figures"] = figures(model, described, pictures, k)
    shown = pictures if len(pictures) else data.load(source, "train", data_folder).images[:_SHOWN]
    add_code_activity(model, described, shown)
    card.save(path, model, described, preview(model, shown, described["provenance"]["seed"]))
    result = {"path": str(path), "figures": described["figures"]}
    if against is not None:
        other, other_card = card.load(against)
        same = all(other_card[field] == described[field] for field in ("family", "image"))
        result["against"] = figures(other, described, pictures, k) if same else []
    return result


def refresh(path: Path, data_folder: Path, count: int, source: str = "") -> None:
    """Add to a checkpoint of an earlier release what its card and preview lack; the weights stay.

    The additions are the operations that the model's family has now; the activity of the latent
    codes on the first `count` test images of the data set `source`, by default the one that the
    model was trained on; and, for a model that cannot draw samples and has no preview, a preview
    made of the data set's last training images. `data_folder` has the data sets; if the data set is
    missing there, only the operations are added.
    """
    model, described = card.load(path)
    described["operations"] = model.operations()
    source = source or described["provenance"]["data"]["name"]
    shown = card.read_preview(path)
    with suppress(ValueError):
        if hasattr(model, "code_activity"):
            add_code_activity(model, described, data.load(source, "test", data_folder).images[:count])
    shown = shown or _preview_without_samples(model, described, source, data_folder)
    card.save(path, model, described, shown)


def _preview_without_samples(model: Any, described: dict[str, Any], source: str, data_folder: Path) -> bytes | None:
    """Return a preview of the last training images of the data set `source`, for a model that
    cannot draw samples.

    Returns None if the model can draw samples, or if the data set is missing in `data_folder`.
    """
    if "sample" in described["operations"]:
        return None
    with suppress(ValueError):
        images = data.load(source, "train", data_folder).images[-_SHOWN:]
        return preview(model, images, described["provenance"]["seed"])
    return None


def add_code_activity(model: Any, described: dict[str, Any], pictures: ByteImages) -> None:
    """Measure which values of a latent code matter most; store them as `codes` of a model card.

    They are measured on the test images `pictures`; `described` is the model card. For a family
    that has no method `code_activity`, the card stays unchanged.
    """
    codes = describe_activity(model, preprocess_as_trained(described, pictures, EVALUATION_SEED))
    if codes is not None:
        described["codes"] = codes


def figures(model: Any, described: dict[str, Any], pictures: ByteImages, k: int) -> Figures:
    """Measure a model on the test images `pictures`; return the metrics for its model card.

    The card is `described`. Each metric has `name`, `value`, `unit`, `better` and `detail`. `k` is
    the number of importance samples per image, or of generated images for an EBGAN. The
    metrics are those of the model's method `evaluate`; without one, the mean of its `loss`. The
    list is empty if the model has neither method, or for fewer than two images.
    """
    if len(pictures) < 2:
        return []
    images = preprocess_as_trained(described, pictures, EVALUATION_SEED)
    if hasattr(model, "evaluate"):
        measured: Figures = model.evaluate(images, EVALUATION_SEED, k)
        return measured
    if not hasattr(model, "loss"):
        return []
    parts = []
    with torch.no_grad():
        for index in torch.split(torch.arange(len(images)), 100):
            rows = RowStreams.of_rows(EVALUATION_SEED, index)
            parts.append(model.loss(images[index], rows, described["provenance"]["recipe"]["training"]["epochs"]))
    value = round(float(torch.cat(parts).double().mean()), 4)
    detail = f"the training loss, mean of {len(images)} test pictures"
    return [figure("loss", value, "1", "lower", detail)]


def preprocess_as_trained(described: dict[str, Any], pictures: ByteImages, seed: int) -> Images:
    """Return the test images `pictures` in 0 … 1, binarized as the training images were.

    The model card `described` says how: by a draw with `seed` ("dynamic"), by the fixed draw for
    test images ("static"), or not at all.
    """
    kind = described["provenance"]["binarization"]["kind"]
    if kind == "dynamic":
        return data.binarize(pictures, RowStreams.range(seed, 0, len(pictures)))
    images = data.static_binarization(pictures, test=True)[0] if kind == "static" else pictures
    return data.grey(images)


def _describe_selection(run: Path) -> dict[str, Any]:
    """Return a description, for a model card, of the run that chose the number of epochs.

    It has the numbers of training and validation images, the epochs tried, the best epoch, the best
    and the last validation loss, and the seconds of the run. `run` is the run's folder.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["validation_loss"])
    origin = json.loads((run / PROVENANCE_FILE).read_text())
    return {
        "count": origin["data"]["count"],
        "validation": origin["data"]["validation"],
        "epochs_tried": lines[-1]["epoch"],
        "best_epoch": best["epoch"],
        "best_validation_loss": best["validation_loss"],
        "last_validation_loss": lines[-1]["validation_loss"],
        "seconds": lines[-1]["seconds"],
    }


def describe_start(start: str) -> dict[str, Any]:
    """Return a description, for a model card, of the checkpoint from which a training started.

    `start` is PATH or PATH:PART,PART: the checkpoint, and the submodules whose weights were used.
    """
    path, parts = _split_start(start)
    source = card.read_card(path)
    origin = {name: source["provenance"].get(name) for name in ("epochs", "seconds", "commit")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    origin |= {name: source["provenance"][name] for name in ("mean_of", "combined") if name in source["provenance"]}
    return {"name": source["name"], "version": source["version"], "sha256": digest, "parts": parts, **origin}


def load_start_weights(starts: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights in the checkpoints from which a training starts, keyed by name.

    Each of `starts` is PATH or PATH:PART,PART, where a PART is the name of a submodule, or
    NAME=OTHER for the submodule NAME under the name OTHER; with parts, only the weights of these
    submodules are loaded. If two checkpoints have a weight of the same name, the weight of the later
    checkpoint is returned.
    """
    tensors: dict[str, Tensor] = {}
    for start in starts:
        path, parts = _split_start(start)
        new_names = {part.partition("=")[0]: part.rpartition("=")[2] for part in parts}
        for name, value in load_file(path).items():
            part, dot, rest = name.partition(".")
            if not parts or part in new_names:
                tensors[new_names.get(part, part) + dot + rest] = value
    return tensors


def _split_start(start: str) -> tuple[Path, list[str]]:
    """Return the path and the submodules of a start PATH or PATH:PART,PART."""
    path, _, parts = start.partition(":")
    return Path(path), parts.split(",") if parts else []


def commit() -> str:
    """Return the Git commit of the code, with "+" if files of the package `models` are modified.

    Outside a Git repository the result is "unknown".
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
