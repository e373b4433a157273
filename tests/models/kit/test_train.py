"""`models.kit.train`: training is resumable with bit-identical results.

This file has more than 400 lines because its tests share their recipes and data.
"""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.kit import data
from models.kit import run as run_module
from models.kit.distributed import ProcessGroup
from models.kit.optimizers import build_optimizers
from models.kit.recipe import MAX_BATCH_SIZE, Recipe
from models.kit.row_streams import RowStreams
from models.kit.run import Run
from models.kit.run_folder import RunFolder
from models.kit.train import train, weights
from tests.models.kit.recipes import DIGITS, recipe


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Return four hundred digits."""
    return data.load(str(DIGITS)).images[:400]


def game(training: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Recipe:
    """Return a recipe of a small EBGAN: three epochs of eight steps."""
    return Recipe.from_json(
        {
            "family": "ebgan",
            "name": "game",
            "summary": "for tests",
            "data": str(DIGITS),
            "seed": 7,
            "config": {"latents": 5, "size_g": 20, "size_d": 16, **(config or {})},
            "training": {"epochs": 3, "batch_size": 50, "binarization": "none", **(training or {})},
        }
    )


def lines(out: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run without the time."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read]


def check_equal_weights(first: Path, second: Path) -> None:
    """Check that two runs have the same weights, bit for bit."""
    one, other = weights(first)[0], weights(second)[0]
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize(
    ("training", "config"),
    [({}, {}), ({"optimiser": "adagrad", "learning_rate": 0.02, "precision": "bfloat16"}, {"objective": "importance"})],
)
def test_a_resumed_run_equals_an_undisturbed_one(
    images: torch.Tensor, tmp_path: Path, training: dict[str, Any], config: dict[str, Any]
) -> None:
    """A run that SIGTERM stops in its second epoch resumes to the same bits and metrics."""
    chosen = recipe(training, config)
    assert train(chosen, images, tmp_path / "whole").reason == "finished"

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)

    ended = train(chosen, images, tmp_path / "parts", report=stop)
    assert ended.reason == "interrupted"
    assert ended.epochs == 1
    assert train(chosen, images, tmp_path / "parts", resume=True).reason == "finished"
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, weight in whole[0].items():
        assert torch.equal(weight, parts[0][name]), name
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "parts")]
    for first, second in zip(states[0]["average"], states[1]["average"], strict=True):
        assert torch.equal(first, second)
    for index, state in states[0]["optimiser"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, states[1]["optimiser"]["state"][index][name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_signal_is_not_lost_while_the_processes_agree(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that arrives while the processes exchange their flags stops the run at the next
    step, with a checkpoint.
    """
    any_process = ProcessGroup.any_process
    calls: list[tuple[bool, ...]] = []

    def signal_meanwhile(group: ProcessGroup, *flags: bool) -> tuple[bool, ...]:
        if not calls:
            signal.raise_signal(signal.SIGTERM)
        calls.append(flags)
        return any_process(group, *flags)

    monkeypatch.setattr(ProcessGroup, "any_process", signal_meanwhile)
    assert train(recipe(), images, tmp_path).reason == "interrupted"
    assert calls == [(False, False), (True, True)]
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["checkpoint"]["steps"] == progress["steps"] == 2


@pytest.mark.parametrize(
    ("training", "config"),
    [
        ({"average": 0.9, "precision": "bfloat16"}, {"pulling_away": 0.1, "dropout": 0.5}),
        ({"player_optimisers": ["sgd", "adam"], "player_rates": [0.1, 0.001], "grad_clip": 1.0}, {"objective": "gan"}),
    ],
)
def test_a_resumed_adversarial_run_equals_an_undisturbed_one(
    images: torch.Tensor, tmp_path: Path, training: dict[str, Any], config: dict[str, Any]
) -> None:
    """A resumed EBGAN ends with the same weights, statistics, quantiles and metrics."""
    chosen = game(training, config)
    assert train(chosen, images, tmp_path / "whole").reason == "finished"

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    assert train(chosen, images, tmp_path / "parts", report=stop).reason == "interrupted"
    assert train(chosen, images, tmp_path / "parts", resume=True).reason == "finished"
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert float(whole[0]["quantiles"].max()) > 0
    for name, weight in whole[0].items():
        assert torch.equal(weight, parts[0][name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert {"loss_discriminator", "loss_generator", "d_real", "d_fake"} <= set(lines(tmp_path / "whole")[0])
    ended = game({**training, "epochs": 4}, config)
    for run in ("whole", "longer"):
        train(ended, images, tmp_path / run, resume=True)
    check_equal_weights(tmp_path / "whole", tmp_path / "longer")


def test_an_optimizer_step_changes_its_module_only(images: torch.Tensor, tmp_path: Path) -> None:
    """The discriminator's step leaves the generator's weights unchanged, and vice versa."""
    run = Run(game({"player_rates": [0.01, 0.02]}), images, tmp_path)
    rows = RowStreams.range(7, 0, 50)
    for step in run.training_steps(images[:50], rows, 0):
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        run.apply_step(step, 50)
        for name, parameter in run.model.named_parameters():
            moved = float((parameter - before[name]).detach().abs().max())
            rate = 0.01 if name.startswith("discriminator") else 0.02
            if name.startswith(step.module):
                assert moved == pytest.approx(rate, rel=1e-2), name  # Adam's first step is the rate itself
            else:
                assert moved == 0, name


def test_a_low_precision_generator_step_uses_the_updated_discriminator(images: torch.Tensor, tmp_path: Path) -> None:
    """Each step uses the current weights although autocast caches the weights it has cast."""
    run = Run(game({"precision": "bfloat16", "player_rates": [5.0, 1e-9]}), images, tmp_path)
    rows = RowStreams.range(7, 0, 50)
    steps = list(run.training_steps(images[:50], rows, 0))
    played = [step.losses for step in run.training_steps(images[:50], rows, 0) if run.apply_step(step, 50) is not None]
    assert torch.equal(played[0], steps[0].losses)
    assert not torch.equal(played[1], steps[1].losses)


def test_optimizers_match_the_modules(images: torch.Tensor, tmp_path: Path) -> None:
    """There is one optimizer and learning rate per module; an adversarial family rejects a
    validation loss.
    """
    for wrong in ({"player_rates": [0.1]}, {"player_optimisers": ["adam"] * 3}):
        with pytest.raises(ValueError, match="one for each of discriminator, generator"):
            Run(game(wrong), images, tmp_path)
    with pytest.raises(ValueError, match="one for each of the model"):
        Run(recipe({"player_rates": [0.1, 0.1]}), images, tmp_path)
    with pytest.raises(ValueError, match="validation must be 0"):
        Run(game({"validation": 100}), images, tmp_path)


def test_a_killed_run_repeats_the_epochs_after_its_checkpoint(images: torch.Tensor, tmp_path: Path) -> None:
    """Metrics after the last checkpoint are written again, so each epoch occurs once."""
    chosen = recipe({"save_every_s": 1000.0})
    train(recipe({"epochs": 1, "save_every_s": 1000.0}), images, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_loss": 0.0}\n{"epo')
    train(chosen, images, tmp_path / "run", resume=True)
    train(chosen, images, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("steps", [1, 4, 9, 13])
def test_a_run_killed_within_an_epoch_goes_on_from_there(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Wherever the process dies after a checkpoint, the final weights are equal."""
    chosen = recipe({"save_every_s": 0.0})
    advance, done = Run.train_step, []

    def dying(run: Run, index: torch.Tensor) -> torch.Tensor:
        done.append(run.steps)
        if len(done) > steps:
            raise KeyboardInterrupt
        return advance(run, index)

    monkeypatch.setattr(Run, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, images, tmp_path / "parts")
    monkeypatch.undo()
    progress = json.loads((tmp_path / "parts" / "progress.json").read_text())
    assert progress["checkpoint"]["steps"] == steps
    assert (progress["epoch"], progress["step"]) == divmod(steps, 6)
    assert train(chosen, images, tmp_path / "parts", resume=True).reason == "finished"
    train(recipe({"save_every_s": 1000.0}), images, tmp_path / "whole")
    check_equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "progress.json").read_text())["steps"] == 18


@pytest.mark.parametrize("binarization", ["dynamic", "static"])
def test_pictures_held_back_may_lie_apart(images: torch.Tensor, tmp_path: Path, binarization: str) -> None:
    """Separate validation images give the same weights and metrics as the same images at
    the end of the data.
    """
    chosen = recipe({"binarization": binarization})
    train(chosen, images, tmp_path / "together")
    train(chosen, images[:300], tmp_path / "apart", held_back=images[300:])
    assert lines(tmp_path / "together") == lines(tmp_path / "apart")
    check_equal_weights(tmp_path / "together", tmp_path / "apart")
    with pytest.raises(ValueError, match="only 50 images are held back"):
        train(chosen, images, tmp_path / "few", held_back=images[:50])


def test_a_run_outlives_a_new_field_of_its_recipe(images: torch.Tensor, tmp_path: Path) -> None:
    """A stored recipe without a newer field is equal to one with that field at its default."""
    train(recipe({"epochs": 1}), images, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    saved = json.loads(state["recipe"])
    del saved["training"]["grad_clip"], saved["config"]["single_sample_epochs"]
    torch.save({**state, "recipe": json.dumps(saved)}, tmp_path / "run" / "state.pt")
    with pytest.raises(ValueError, match="another recipe"):
        train(recipe({"epochs": 2, "grad_clip": 1.0}), images, tmp_path / "run", resume=True)
    assert train(recipe({"epochs": 2}), images, tmp_path / "run", resume=True).reason == "finished"


def test_a_preview_shows_and_changes_nothing(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`preview.png` is an image, and writing it after every epoch does not change the weights."""
    monkeypatch.setattr(run_module, "PREVIEW_EVERY_S", 0.0)
    train(game(), images, tmp_path / "shown")
    epochs = sorted(int(file.stem) for file in (tmp_path / "shown" / "previews").iterdir())
    assert epochs == list(range(1, epochs[-1] + 1))
    with Image.open(tmp_path / "shown" / "preview.png") as picture:
        assert picture.size == (8 * 29 - 1, 8 * 29 - 1)
        assert len(set(picture.get_flattened_data())) > 2
    monkeypatch.setattr(Run, "write_preview", lambda _run: None)
    train(game(), images, tmp_path / "hidden")
    check_equal_weights(tmp_path / "shown", tmp_path / "hidden")


def test_previews_of_epochs_are_kept_evenly(tmp_path: Path) -> None:
    """Of many epochs 64 are kept, the first and the last among them; a resumed run drops later
    ones.
    """
    folder = RunFolder(tmp_path)

    def kept() -> list[int]:
        return sorted(int(file.stem) for file in (tmp_path / "previews").iterdir())

    for epoch in range(1, 1001):
        folder.write_preview(epoch, b"%d" % epoch)
        if epoch <= 64:
            assert kept() == list(range(1, epoch + 1))
    assert len(kept()) == 64
    assert (kept()[0], kept()[-1]) == (1, 1000)
    gaps = [later - earlier for earlier, later in pairwise(kept())]
    assert max(gaps) <= 32  # twice the gap of even ones
    assert (tmp_path / "preview.png").read_bytes() == (tmp_path / "previews" / "1000.png").read_bytes() == b"1000"
    folder.drop_metrics_after(500)
    assert max(kept()) <= 500


def test_a_full_disk_leaves_the_last_checkpoint(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that does not fit on the disk ends the run; the previous one stays intact."""
    train(recipe({"epochs": 1}), images, tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"step 12 .* No space left on device\); that of step 6 is kept"):
        train(recipe({"epochs": 2}), images, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part"))


def test_training_lowers_the_loss(images: torch.Tensor, tmp_path: Path) -> None:
    """Thirty epochs bring the validation loss well below the first one's."""
    train(recipe({"epochs": 30, "learning_rate": 0.005}), images, tmp_path / "run")
    read = lines(tmp_path / "run")
    assert read[-1]["validation_loss"] < read[0]["validation_loss"] - 100


def test_it_stops_early_and_keeps_the_best(images: torch.Tensor, tmp_path: Path) -> None:
    """Training stops after `patience` epochs without improvement and exports the best epoch."""
    chosen = recipe({"epochs": 200, "learning_rate": 0.05, "patience": 3, "average": 0.0})
    ended = train(chosen, images, tmp_path / "run")
    assert ended.reason == "early stop"
    read = lines(tmp_path / "run")
    best = min(read, key=lambda line: line["validation_loss"])["epoch"]
    tensors, _, counters = weights(tmp_path / "run")
    assert counters["best_epoch"] == best == ended.epochs - 3
    run = Run(chosen, images, tmp_path)
    run.model.load_state_dict(tensors)
    assert run.validate() == pytest.approx(read[best - 1]["validation_loss"], abs=1e-3)


def overfitting_recipe() -> Recipe:
    """Return a recipe of a small BiHM whose prior begins at a validation loss 1 % above the best."""
    config = {"hidden": [6, 4], "samples": 2, "prior": 50.0, "overfitting": 0.01}
    training = {"epochs": 6, "batch_size": 50, "validation": 100, "average": 0.9, "save_every_s": 0.0}
    values = {"family": "bihm", "name": "a", "summary": "", "data": "", "config": config, "training": training}
    return Recipe.from_json(values)


def scripted_validation(run: Run) -> float:
    """Return a validation loss that is lowest after epoch 2, and 2 % higher from epoch 4 on."""
    return {1: 10.0, 2: 9.0, 3: 9.05}.get(run.epoch, 9.2)


def test_a_training_that_overfits_begins_anew_with_a_prior(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the loss is 1 % higher than that of the best epoch, the training returns to its initial
    weights.
    """
    monkeypatch.setattr(Run, "validate", scripted_validation)
    monkeypatch.setattr(Run, "write_preview", lambda _run: None)  # it changes no weights, and a BiHM's takes long
    run = Run(overfitting_recipe(), images, tmp_path)
    initial = copy.deepcopy(run.model.state_dict())
    states: list[tuple[bool, bool]] = []

    def note(_line: dict[str, Any]) -> None:
        at_start = all(torch.equal(initial[name], value) for name, value in run.model.state_dict().items())
        states.append((run.prior_active, at_start))

    run.fit(note)
    assert states == [(False, False)] * 3 + [(True, True)] + [(True, False)] * 2
    assert run.best_epoch == 2


@pytest.mark.parametrize("killed_after", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_a_training_with_a_later_prior_resumes(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    """A training that is killed before or after its prior begins reaches the weights of one that is
    not.
    """
    monkeypatch.setattr(Run, "validate", scripted_validation)
    monkeypatch.setattr(Run, "write_preview", lambda _run: None)  # it changes no weights, and a BiHM's takes long
    train(overfitting_recipe(), images, tmp_path / "whole")

    def kill(line: dict[str, Any]) -> None:
        if line["epoch"] == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(overfitting_recipe(), images, tmp_path / "killed", report=kill)
    train(overfitting_recipe(), images, tmp_path / "killed", resume=True)
    whole, killed = (RunFolder(tmp_path / name).load_state() for name in ("whole", "killed"))
    assert whole["prior_active"]
    assert killed["prior_active"]
    for name, value in whole["model"].items():
        assert torch.equal(killed["model"][name], value)


def test_a_loss_that_is_no_number_ends_the_run(images: torch.Tensor, tmp_path: Path) -> None:
    """A diverging training stops with a reason and writes no checkpoint."""
    chosen = recipe({"learning_rate": 10.0, "epochs": 50, "save_every_s": 1e4}, {"likelihood": "gaussian"})
    assert train(chosen, images, tmp_path / "run").reason in {"not a number", "diverged"}
    assert not (tmp_path / "run" / "state.pt").exists()


def test_the_last_checkpoint_of_a_diverging_run_is_finite(images: torch.Tensor, tmp_path: Path) -> None:
    """With a checkpoint after every step, the last one has finite weights."""
    chosen = recipe({"learning_rate": 10.0, "epochs": 50, "save_every_s": 0.0}, {"likelihood": "gaussian"})
    assert train(chosen, images, tmp_path / "run").reason in {"not a number", "diverged"}
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in state["model"].values())


def test_options_of_the_optimiser_do_what_they_say(images: torch.Tensor, tmp_path: Path) -> None:
    """Warm-up starts at a low rate, clipping and the prior change the step, and the average changes
    slowly.
    """
    index = torch.arange(50)

    def stepped(**training: Any) -> list[torch.Tensor]:
        run = Run(recipe(training), images, tmp_path)
        run.train_step(index)
        return [parameter.detach().clone() for parameter in run.model.parameters()]

    run = Run(recipe({"warmup_steps": 10}), images, tmp_path)
    assert run.learning_rate() == pytest.approx(1e-4)
    plain = stepped(optimiser="adagrad", epsilon=1.0)
    for changed in ({"grad_clip": 1e-3}, {"weight_prior": True}):
        other = stepped(optimiser="adagrad", epsilon=1.0, **changed)
        assert any(not torch.equal(a, b) for a, b in zip(plain, other, strict=True)), changed
    for parameter, average in zip(run.model.parameters(), run.averaged_model.parameters(), strict=True):
        assert torch.equal(parameter, average)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train_step(index)
    for parameter, average, old in zip(run.model.parameters(), run.averaged_model.parameters(), before, strict=True):
        assert not torch.equal(average, parameter)
        torch.testing.assert_close(average, old + (1 - 2 / 11) * (parameter - old))


def test_a_run_is_not_overwritten_nor_changed(images: torch.Tensor, tmp_path: Path) -> None:
    """A folder with a run needs `resume` and the same recipe, except for the epochs."""
    train(recipe({"epochs": 1}), images, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe(), images, tmp_path / "run")
    with pytest.raises(ValueError, match="another recipe"):
        train(recipe({"learning_rate": 0.1}), images, tmp_path / "run", resume=True)
    assert train(recipe({"epochs": 2}), images, tmp_path / "run", resume=True).epochs == 2


def test_a_constant_rate_may_yet_decay(images: torch.Tensor, tmp_path: Path) -> None:
    """A run with a constant rate can be resumed with a decay; one whose rate has changed cannot."""
    whole = {"epochs": 4, "decay": "linear", "drop_from": 2}
    train(recipe(whole), images, tmp_path / "whole")
    train(recipe({"epochs": 2}), images, tmp_path / "run")
    with pytest.raises(ValueError, match="another recipe"):
        train(recipe({**whole, "drop_from": 1}), images, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="another recipe"):
        train(recipe({"epochs": 4, "decay": "cosine"}), images, tmp_path / "run", resume=True)
    train(recipe(whole), images, tmp_path / "run", resume=True)
    check_equal_weights(tmp_path / "whole", tmp_path / "run")
    with pytest.raises(ValueError, match="another recipe"):
        train(recipe({**whole, "epochs": 5}), images, tmp_path / "run", resume=True)


def test_a_linear_decay_ends_at_zero(images: torch.Tensor, tmp_path: Path) -> None:
    """The rate is constant until `drop_from`, then falls linearly to zero after the last step."""
    run = Run(recipe({"epochs": 4, "decay": "linear", "drop_from": 2, "learning_rate": 0.01}), images, tmp_path)
    an_epoch = math.ceil(run.count / run.training.batch_size)
    found = []
    for step in range(4 * an_epoch + 1):
        run.steps, run.epoch = step, step // an_epoch
        found.append(run.learning_rate())
    assert found[: 2 * an_epoch + 1] == pytest.approx([0.01] * (2 * an_epoch + 1))
    assert found[3 * an_epoch] == pytest.approx(0.005)
    assert found[-1] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "nothing"}, "no family 'nothing'"),
        ({"other": 1}, "has no field 'other'"),
        ({"data": None}, "data must be a string"),
        ({"seed": -1}, "seed must be"),
        ({"config": {"latents": 0}}, "latents must lie in"),
        ({"training": {"precision": "float8"}}, "precision must be one of"),
    ],
)
def test_a_wrong_recipe_is_rejected_with_the_reason(change: dict[str, Any], message: str) -> None:
    """An invalid recipe raises ValueError with the name of the field."""
    with pytest.raises(ValueError, match=message):
        Recipe.from_json({**recipe().to_json(), **change})


def test_a_recipe_needs_its_name() -> None:
    """A recipe without a name is rejected, and so is a validation set as large as the data."""
    values = recipe().to_json()
    del values["name"]
    with pytest.raises(ValueError, match="needs 'name'"):
        Recipe.from_json(values)
    with pytest.raises(ValueError, match="leaves nothing of 20"):
        Run(recipe(), torch.zeros(20, 1, 28, 28, dtype=torch.uint8), Path())


def test_adagrad_needs_no_fused_kernel_of_the_device() -> None:
    """Adagrad can be built for weights on a device for which torch has no fused kernel of it."""
    weights = torch.nn.Parameter(torch.zeros(2, device="meta"))
    build_optimizers({"": [weights]}, recipe({"optimiser": "adagrad"}).training, 1)


def test_steps_set_the_number_of_epochs() -> None:
    """`training.steps` gives the fewest epochs with so many steps; without it, `epochs` counts."""
    chosen = recipe({"steps": 1000, "epochs": 7, "batch_size": 20})
    assert [chosen.fitted(images).training.epochs for images in (2000, 1999, 10**9)] == [10, 11, 1]
    assert chosen.fitted(2000).training.steps == 0
    plain = recipe({"epochs": 7})
    assert plain.fitted(2000) == plain


def test_the_batch_size_grows_with_the_data() -> None:
    """With `min_epochs`, a batch has more images if so many steps were fewer epochs without it."""
    chosen = recipe({"steps": 1000, "min_epochs": 10, "batch_size": 20})
    fitted = [chosen.fitted(images).training for images in (1000, 2000, 4001)]
    assert [(one.batch_size, one.epochs) for one in fitted] == [(20, 20), (20, 10), (41, 11)]
    assert fitted[0].min_epochs == 0
    assert chosen.fitted(10**9).training.batch_size == MAX_BATCH_SIZE


@pytest.mark.slow
def test_a_compiled_loss_is_the_loss(images: torch.Tensor, tmp_path: Path) -> None:
    """`training.compile` gives the same losses up to rounding; adversarial families reject it."""
    losses = []
    for name, compiled in (("compiled", True), ("plain", False)):
        chosen = recipe({"compile": compiled, "epochs": 2, "validation": 0, "batch_size": 200}).to_json()
        (tmp_path / f"{name}.json").write_text(json.dumps(chosen))
        # in a process of its own, where shapes are not checked, because the compiler cannot trace
        # the checks
        command = [sys.executable, "-m", "models", "train", str(tmp_path / f"{name}.json"), "--out"]
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
        losses.append([line["train_loss"] for line in lines(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="compile must be false"):
        Run(game({"compile": True}), images, tmp_path)


@pytest.mark.slow
def test_a_training_spreads_over_processes(images: torch.Tensor, tmp_path: Path) -> None:
    """Two processes reach the weights of one up to rounding, and can be resumed."""
    chosen = recipe({"epochs": 2, "optimiser": "sgd", "learning_rate": 0.001}).to_json()
    (tmp_path / "recipe.json").write_text(json.dumps(chosen))
    train(Recipe.from_json(chosen), data.load(str(DIGITS)).images, tmp_path / "one")
    for epochs in (1, 2):
        command = [sys.executable, "-m", "models", "train", str(tmp_path / "recipe.json"), "--gpus", "2", "--resume"]
        command += ["--out", str(tmp_path / "two"), "--set", f"training.epochs={epochs}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["epoch"] for line in two] == [1, 2]
    assert two[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-4)
    first, second = weights(tmp_path / "one")[0], weights(tmp_path / "two")[0]
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], atol=1e-5), name
