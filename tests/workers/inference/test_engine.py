"""Forward passes: stacking requests, padding to batch sizes, and splitting results, with the
shipped model and a faulty one.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from core.broker.codec import MARGINS, BatchSlice, Outcome
from core.catalog.cards import Card
from core.catalog.registry import ModelVersion, Registry
from core.catalog.versions import Versions
from core.settings import Settings
from models.kit.row_streams import RowStreams
from tests.families.faulty import RAISES, REFUSES
from tests.stack import checkpoints, share_plans
from tests.workers.inference.loading import load_and_measure
from workers.inference import engine
from workers.inference.loaded_model import BatchPlan, LoadedModel
from workers.inference.model_cache import ModelCache, NoRoomError


@pytest.fixture(scope="module")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LoadedModel]]:
    """The shipped two-dimensional VAE and the faulty model, loaded."""
    folder = tmp_path_factory.mktemp("engine")
    families = Path(__file__).parents[2] / "families"
    settings = Settings(checkpoints=checkpoints(folder / "c"), extra_models=families, state=folder)
    share_plans(folder, folder)
    held = ModelCache(settings)
    registry = Registry(settings.checkpoints)
    yield {entry.name: load_and_measure(held, entry) for entry in registry.active()}
    models.__path__.remove(str(families))


def run(loaded_model: LoadedModel, method: str, parts: list[BatchSlice], **options: object) -> list[Outcome]:
    """Run a forward pass of these slices without a time limit; return their outcomes."""
    chosen = {**loaded_model.entry.operations[method].defaults, **options}
    answer = engine.run(loaded_model, method, chosen, parts, None, lambda: True)
    assert isinstance(answer, list)
    return answer


def test_rows_do_not_depend_on_their_batch(model_cache: dict[str, LoadedModel]) -> None:
    """A row's values are equal bit for bit alone and in a batch of any size."""
    vae = model_cache["vae-mnist-2d"]
    images = (np.random.default_rng(0).random((40, 1, 28, 28)) * 255).astype(np.uint8)
    codes = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    inputs: dict[str, np.ndarray] = {"images": images, "codes": codes}
    for method, key in (("sample", "images"), ("decode", "images"), ("encode", "mean"), ("energy", "energies")):
        names = vae.entry.operations[method].operation.inputs
        takes = {name: inputs[name][7:8] for name in names}
        alone = run(vae, method, [BatchSlice("a", 5, 7, 1, takes)])[0].fields
        crowd = [BatchSlice(str(i), 99 + i, 0, 1, {name: inputs[name][i : i + 1] for name in names}) for i in range(33)]
        among = run(vae, method, [*crowd, BatchSlice("a", 5, 7, 1, takes)])[-1].fields
        assert alone is not None
        assert among is not None
        np.testing.assert_array_equal(alone[key], among[key])


def test_every_bucket_gives_a_row_the_same_bits(model_cache: dict[str, LoadedModel]) -> None:
    """Every batch size of the plan, also between powers of two, gives a row the same bits."""
    vae = model_cache["vae-mnist-2d"]
    buckets = vae.plans["sample"].batch_sizes
    assert any(size & (size - 1) for size in buckets)
    (whole,) = run(vae, "sample", [BatchSlice("a", 5, 0, buckets[-1])])
    assert whole.fields is not None
    for size in buckets:
        (some,) = run(vae, "sample", [BatchSlice("a", 5, 0, size)])
        assert some.fields is not None
        np.testing.assert_array_equal(some.fields["images"], whole.fields["images"][:size])


def test_a_pass_is_padded_to_the_next_bucket() -> None:
    """A batch is padded to the next batch size of the plan; one larger than all of them is not
    padded.
    """
    plan = BatchPlan((4, 8, 16, 20), 8)
    assert [plan.padded_size(count) for count in (1, 4, 5, 17, 20, 21)] == [4, 4, 8, 20, 20, 21]


def test_more_rows_than_a_pass_takes(model_cache: dict[str, LoadedModel]) -> None:
    """A slice larger than the largest batch size runs in several passes and gives the same rows."""
    vae = model_cache["vae-mnist-2d"]
    rows = vae.plans["sample"].largest + 5
    (whole,) = run(vae, "sample", [BatchSlice("a", 5, 0, rows)])
    (tail,) = run(vae, "sample", [BatchSlice("a", 5, rows - 3, 3)])
    assert whole.fields is not None
    assert tail.fields is not None
    assert whole.fields["images"].shape == (rows, 1, 28, 28)
    np.testing.assert_array_equal(whole.fields["images"][-3:], tail.fields["images"])


def test_a_bucket_is_tried_on_several_rows(model_cache: dict[str, LoadedModel]) -> None:
    """Batch sizes at which a few rows differ in their last bits are not in the plan."""
    tiny = model_cache["tiny"]
    assert tiny.plans["energy"].batch_sizes[0] == 4
    image = np.full((1, 1, 8, 8), 77, np.uint8)
    alone = run(tiny, "energy", [BatchSlice("a", 5, 5, 1, {"images": image})])[0].fields
    among = run(tiny, "energy", [BatchSlice(str(i), 9, 5, 1, {"images": image}) for i in range(9)])[3].fields
    assert alone is not None
    assert among is not None
    np.testing.assert_array_equal(alone["energies"], among["energies"])


@pytest.mark.parametrize(("seed", "status"), [(RAISES, 500), (REFUSES, 422)])
def test_a_bad_part_fails_alone(model_cache: dict[str, LoadedModel], seed: int, status: int) -> None:
    """Of 32 slices, only the one that makes the model raise fails, with the model's message."""
    parts = [BatchSlice(str(i), 1000 + i if i != 20 else seed, 0, 1) for i in range(32)]
    outcomes = run(model_cache["faulty"], "sample", parts)
    bad = [outcome.problem for outcome in outcomes if outcome.problem]
    assert len(bad) == 1
    assert outcomes[20].problem is bad[0]
    assert bad[0]["status"] == status
    assert f"seed {seed}" in bad[0]["detail"]


def test_a_long_run_stops_at_its_slice_and_goes_on(model_cache: dict[str, LoadedModel]) -> None:
    """An operation interrupted after each time slice gives the same numbers as one run."""
    vae = model_cache["vae-mnist-2d"]
    image = (np.random.default_rng(1).random((2, 1, 28, 28)) > 0.5).astype(np.uint8) * 255
    parts = [BatchSlice("a", 5, 0, 1, {"images": image[:1]}), BatchSlice("b", 6, 0, 1, {"images": image[1:]})]
    options = {**vae.entry.operations["log_likelihood"].defaults, "k": 3000}
    whole = engine.run(vae, "log_likelihood", options, parts, None, lambda: True)
    state, slices = None, 0
    while True:
        answer = engine.run(vae, "log_likelihood", options, parts, state, lambda: False)
        if not isinstance(answer, engine.SliceResult):
            break
        state, slices = answer.state, slices + 1
        assert 0 < answer.done < 1
        assert len(answer.of(parts, 1)[next(iter(state))]) == 1
    assert slices > 1
    assert isinstance(whole, list)
    for one, other in zip(whole, answer, strict=True):
        assert one.fields is not None
        assert other.fields is not None
        np.testing.assert_array_equal(one.fields["log_p"], other.fields["log_p"])


def test_memory_budget_unloads_the_oldest(tmp_path: Path) -> None:
    """With a memory budget for one model, loading a second one unloads the first, unless it is
    pinned.
    """
    folder = checkpoints(tmp_path / "c")
    share_plans(tmp_path, tmp_path)
    size = (folder / "vae-mnist-2d" / "1" / "model.safetensors").stat().st_size
    families = Path(__file__).parents[2] / "families"
    budget = max(size, 1 << 20)
    held = ModelCache(Settings(checkpoints=folder, extra_models=families, state=tmp_path, memory_budget_bytes=budget))
    entries = {entry.name: entry for entry in Registry(folder).active()}
    held.get(entries["faulty"], "sample")
    held.get(entries["vae-mnist-2d"], "sample")
    assert list(held.capacity()) in (["vae-mnist-2d@1"], ["faulty@1", "vae-mnist-2d@1"])
    pinned = Settings(
        checkpoints=folder, extra_models=families, state=tmp_path, memory_budget_bytes=budget, pinned_models="vae-*"
    )
    held = ModelCache(pinned)
    large = replace(entries["vae-mnist-2d"], version="2")
    held.get(entries["vae-mnist-2d"], "sample")
    with pytest.raises(NoRoomError, match="beside its pinned models"):
        held.get(replace(large, name="other"), "sample")
    assert list(held.capacity()) == ["vae-mnist-2d@1"]
    models.__path__.remove(str(families))


def test_replaced_versions_of_a_pinned_model_are_unloaded(tmp_path: Path) -> None:
    """With a memory budget for two versions, the candidate of a pinned model takes the place of the
    version that was replaced; the active version stays, although it was used least recently.
    """
    name, made = "vae-mnist-2d", Versions(tmp_path / "made")
    shipped = Path(__file__).parents[3] / "checkpoints" / name / "1" / "model.safetensors"
    for version in "123":
        made.path(name, version).parent.mkdir(parents=True)
        made.path(name, version).symlink_to(shipped)
    made.activate(name, "2")
    share_plans(tmp_path, tmp_path)
    registry = Registry(tmp_path / "none", made)
    one, two, three = (registry.find(f"{name}@{version}") for version in "123")
    assert one is not None
    assert two is not None
    assert three is not None
    size = ModelCache(Settings(state=tmp_path)).get(one, "sample").size_bytes
    settings = Settings(state=tmp_path, memory_budget_bytes=2 * size, pinned_models="vae-*")
    held = ModelCache(settings, is_current=registry.is_current)
    held.get(two, "sample")
    held.get(one, "sample")
    made.stage(name, "3")
    registry.scan()
    held.get(three, "sample")
    assert list(held.capacity()) == [f"{name}@2", f"{name}@3"]


class Tiler:
    """A model whose tiles may have any size: the result is the tile without its margins."""

    def upscale(
        self, images: torch.Tensor, rows: RowStreams, options: object, margins: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Return the tiles without their margins."""
        assert len(rows) == 1, "tiles run one by one"
        down, across = margins
        return {"images": images[:, :, down : images.shape[2] - down, across : images.shape[3] - across]}


def test_tiles_of_any_size_have_their_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice's tiles are cut by its own margins, also if slices of other sizes are in the
    batch.
    """
    operations = {"upscale": {"any_size": True, "margin": 2, "options": {}}}
    described = Card.from_json({"image": {"channels": 3, "height": 8, "width": 8}, "operations": operations})
    entry = ModelVersion("tiler", "1", described, Path())
    monkeypatch.setattr(LoadedModel, "options", lambda *_: None)
    loaded = LoadedModel.__new__(LoadedModel)
    loaded.entry, loaded.model, loaded.device, loaded.threads = entry, Tiler(), torch.device("cpu"), 1
    loaded.plans, loaded._advance = {"upscale": BatchPlan((1,), 1)}, lambda: None
    random = np.random.default_rng(0)
    slices = []
    for number, (height, width, margins) in enumerate([(6, 9, (0, 2)), (8, 8, (2, 2)), (8, 8, (0, 0))]):
        tile = random.integers(0, 256, (1, 3, height, width), np.uint8)
        items = {"images": tile, MARGINS: np.array([margins], np.int64)}
        slices.append(BatchSlice(str(number), 1, 0, 1, items))
    outcomes = engine.run(loaded, "upscale", {}, slices, None, lambda: True)
    assert isinstance(outcomes, list)
    expected = [
        slices[0].items["images"][..., 2:-2],
        slices[1].items["images"][..., 2:-2, 2:-2],
        slices[2].items["images"],
    ]
    for outcome, pixels in zip(outcomes, expected, strict=True):
        assert outcome.fields is not None, outcome.problem
        np.testing.assert_array_equal(outcome.fields["images"], pixels)
