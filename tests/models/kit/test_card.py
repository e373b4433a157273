"""`models.kit.card` and `models.kit.export`: checkpoints and their cards."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models import __main__ as command
from models import superres
from models.kit import card, data, export
from models.kit.recipe import Recipe

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "checkpoints").glob("*/*/model.safetensors"))
DIGITS = ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz"
PROVENANCE = {"recipe", "seed", "epochs", "seconds", "hardware", "commit", "torch", "data", "binarization"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint made from a tiny recipe by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = {
        "family": "vae",
        "name": "tiny",
        "summary": "two latents, for tests",
        "data": str(DIGITS),
        "config": {"hidden": [16], "latents": 2},
        "training": {"epochs": 9, "batch_size": 200},
    }
    (folder / "tiny.json").write_text(json.dumps(recipe))
    train = ["train", str(folder / "tiny.json"), "--set", "training.epochs=2", "--out", str(folder / "run")]
    choice = ["--set", "training.validation=500", "--out", str(folder / "choice")]
    assert command.main(train) == 0
    assert command.main([*train[:4], *choice]) == 0
    out = ["--checkpoints", str(folder), "--selection", str(folder / "choice"), "--note", "a note"]
    assert command.main(["export", str(folder / "run"), *out]) == 0
    return folder / "tiny" / "1" / "model.safetensors"


def test_the_command_line_makes_a_whole_card(trained: Path) -> None:
    """After train and export the card has every field, the changed recipe, the
    chosen epoch, and no path.
    """
    described = card.read_card(trained)
    assert (described["name"], described["version"], described["family"]) == ("tiny", "1", "vae")
    assert described["image"] == {"channels": 1, "height": 28, "width": 28}
    assert "manifold" in described["operations"]
    provenance = described["provenance"]
    assert set(provenance) >= PROVENANCE
    assert provenance["recipe"]["training"]["epochs"] == provenance["epochs"] == 2
    assert provenance["selection"]["epochs_tried"] == 2
    assert provenance["selection"]["validation"] == 500
    assert provenance["note"] == "a note"


def test_evaluate_writes_figures_into_the_card(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate --write` prints and stores each figure; L_K rises with K; the
    weights do not change.
    """
    before = card.load(trained)[0].state_dict()
    again = ["evaluate", str(trained), "--data", str(DIGITS), "--count", "20", "--k", "100", "--write"]
    assert command.main(again) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert card.read_card(trained)["figures"] == printed
    value = {figure["name"]: figure["value"] for figure in printed}
    assert value["bound"] <= value["bound_10"] <= value["bound_100"] == -value["nll"]
    assert 0 <= value["active_units"] <= 2
    for name, weight in card.load(trained)[0].state_dict().items():
        assert torch.equal(weight, before[name])


def test_static_binarization_is_recognised_by_its_hash(trained: Path) -> None:
    """The provenance of a static run has the SHA-256 of the draw; test images are
    binarized as in training.
    """
    described = card.read_card(trained)
    pictures = data.load(str(DIGITS))
    values = described["provenance"]["recipe"]
    recipe = Recipe.from_json({**values, "training": {**values["training"], "binarization": "static"}})
    binarization = export.provenance(recipe, pictures)["binarization"]
    assert binarization == {"kind": "static", "sha256": data.static_binarization(pictures.images)[1]}
    few = data.ImageSet("few", pictures.images[:5], "")
    assert torch.equal(
        export.preprocess_as_trained({"provenance": {"binarization": binarization}}, few.images, 1),
        data.static_binarization(few.images, test=True)[0] / 255,
    )
    grey = export.preprocess_as_trained({"provenance": {"binarization": {"kind": "none"}}}, few.images, 1)
    assert torch.equal(grey, data.grey(few.images))


def test_sample_is_reproducible(trained: Path, tmp_path: Path) -> None:
    """One seed gives one image file; the manifold needs no seed; an invalid option
    exits with status 1.
    """
    draw = ["sample", str(trained), "--count", "6", "--columns", "3", "--set", "output=draws", "--out"]
    assert command.main([*draw, str(tmp_path / "a.png"), "--seed", "5"]) == 0
    assert command.main([*draw, str(tmp_path / "b.png"), "--seed", "5"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (84, 56)
    grid = ["sample", str(trained), "--operation", "manifold", "--set", "size=3", "--count", "9"]
    assert command.main([*grid, "--out", str(tmp_path / "m.png")]) == 0
    assert command.main(["sample", str(trained), "--set", "temperature=9"]) == 1
    assert command.main(["sample", str(trained), "--operation", "encode"]) == 1


def test_combine_takes_parts_or_the_mean_of_checkpoints(trained: Path, tmp_path: Path) -> None:
    """Later parts take precedence; `--mean` averages; the card lists the sources; other networks
    are rejected.
    """
    model, described = card.load(trained)
    other = tmp_path / "other.safetensors"
    moved = {name: value + 1.0 for name, value in model.state_dict().items()}
    model.load_state_dict(moved)
    card.save(other, model, described)
    part = next(iter(moved)).partition(".")[0]
    out = tmp_path / "out.safetensors"
    assert command.main(["combine", str(out), str(trained), f"{other}:{part}", "--note", "joined"]) == 0
    before, after = load_file(trained), load_file(out)
    for name, value in after.items():
        torch.testing.assert_close(value, before[name] + (1.0 if name.partition(".")[0] == part else 0.0))
    provenance = card.read_card(out)["provenance"]
    assert [source["parts"] for source in provenance["combined"]] == [[], [part]]
    assert (provenance["note"], card.read_card(out)["figures"]) == ("joined", [])
    assert command.main(["combine", str(out), str(trained), str(other), "--mean"]) == 0
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, before[name] + 0.5)
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "strange.safetensors", {"card": json.dumps(described)})
    assert command.main(["combine", str(out), str(trained), str(tmp_path / "strange.safetensors")]) == 1


def test_combine_makes_a_preview_of_the_new_weights(trained: Path, tmp_path: Path) -> None:
    """A preview of the first source does not show the combined model; a model without samples gets
    its own.
    """
    model, described = card.load(trained)
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    combine = ["combine", str(out), str(source)]
    described["provenance"]["data"]["name"] = str(DIGITS)
    card.save(source, model, described, b"a preview")
    assert command.main(combine) == 0
    assert card.read_preview(out) is None
    del described["operations"]["sample"]
    card.save(source, model, described, b"a preview")
    assert command.main(combine) == 0
    assert (card.read_preview(out) or b"").startswith(b"\x89PNG")


def test_combine_adds_weights_times_factors(trained: Path, tmp_path: Path) -> None:
    """`--factors` adds the weights that several sources have, also of a submodule under another
    name; the card has the factors, and a wrong number of factors is rejected.
    """
    before, out = load_file(trained), tmp_path / "out.safetensors"
    part = next(iter(before)).partition(".")[0]
    renamed = tmp_path / "renamed.safetensors"
    tensors = {name.replace(f"{part}.", "other.", 1): value + 1.0 for name, value in before.items()}
    save_file(tensors, renamed, {"card": json.dumps(card.read_card(trained))})
    sources = [str(trained), f"{renamed}:other={part}", f"{trained}:{part}"]
    assert command.main(["combine", str(out), *sources, "--factors", "1", "0.5", "-0.5"]) == 0
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, before[name] + (0.5 if name.partition(".")[0] == part else 0.0))
    assert [source["factor"] for source in card.read_card(out)["provenance"]["combined"]] == [1.0, 0.5, -0.5]
    assert command.main(["combine", str(out), *sources, "--factors", "1", "0.5"]) == 1


def test_mistakes_on_the_command_line_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown recipe is rejected with the list of recipes, a --set without
    a value with a hint.
    """
    assert command.main(["train", "nothing"]) == 1
    assert "vae-mnist, vae-mnist-2d, vae-mnist-k5, or give the path" in capsys.readouterr().err
    assert command.main(["train", "vae-mnist", "--set", "seed"]) == 1
    assert "write NAME=VALUE" in capsys.readouterr().err


def test_a_card_is_read_without_torch(trained: Path) -> None:
    """Reading a card does not import torch."""
    code = (
        "import sys; from pathlib import Path; from models.kit.card import read_card;"
        f"read_card(Path({str(trained)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"\xff" * 64, "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "without a card"),
        (struct.pack("<Q", 9) + b"{broken", "without a card"),
        (struct.pack("<Q", 37) + b'{"__metadata__":{"card":"{}"}}       ', "of another format"),
        (struct.pack("<Q", 47) + b'{"__metadata__":{"card":"{\\"format\\":1}"}}     ', "lacks name"),
    ],
)
def test_a_file_without_a_card_is_rejected(payload: bytes, message: str, tmp_path: Path) -> None:
    """A file without a valid card raises ValueError, which says what the file lacks."""
    (tmp_path / "x.safetensors").write_bytes(payload)
    with pytest.raises(ValueError, match=message):
        card.read_card(tmp_path / "x.safetensors")


def test_weights_that_do_not_fit_are_rejected(trained: Path, tmp_path: Path) -> None:
    """A card is rejected if its config contradicts the shapes of the weights, or
    if it lacks a field.
    """
    model, described = card.load(trained)
    wrong = {**described, "config": {**described["config"], "latents": 3}}
    card.save(tmp_path / "model.safetensors", model, wrong)
    with pytest.raises(ValueError, match="do not fit its card"):
        card.load(tmp_path / "model.safetensors")
    del described["license"]
    with pytest.raises(ValueError, match="lacks license"):
        card.save(tmp_path / "model.safetensors", model, described)


def test_a_card_without_any_size_is_valid(tmp_path: Path) -> None:
    """A card of an earlier release, whose tiles have one size, fits a model that takes any."""
    model = superres.Model(superres.Config(features=4, blocks=1))
    operations = json.loads(json.dumps(model.operations()))
    assert operations["upscale"].pop("any_size") is True
    described = {
        **dict.fromkeys(card.REQUIRED, ""),
        "format": card.FORMAT,
        "family": "superres",
        "config": {"features": 4, "blocks": 1},
        "image": {"channels": 3, "height": 128, "width": 128},
        "operations": operations,
        "figures": [],
        "provenance": {},
    }
    card.save(tmp_path / "model.safetensors", model, described)
    card.check(tmp_path / "model.safetensors")
    operations["upscale"]["margin"] = 3
    card.save(tmp_path / "model.safetensors", model, described)
    with pytest.raises(ValueError, match="lists other operations"):
        card.check(tmp_path / "model.safetensors")


def test_a_card_of_an_earlier_release_is_refreshed(trained: Path, tmp_path: Path) -> None:
    """A card without `decode` is valid, others that lack an operation are not. `refresh` adds it
    and the activity of the codes, and keeps weights and preview.
    """
    model, described = card.load(trained)
    assert "codes" not in described  # `export` has no images to measure them on
    old = {
        **described,
        "operations": {name: spec for name, spec in described["operations"].items() if name != "decode"},
    }
    path = tmp_path / "model.safetensors"
    card.save(path, model, old, b"a preview")
    card.check(path)
    assert command.main(["refresh", str(path), "--data", str(DIGITS), "--count", "50"]) == 0
    again, refreshed = card.load(path)
    assert refreshed == {**described, "codes": refreshed["codes"]}
    assert {entry["index"] for entry in refreshed["codes"]["active"]} == {0, 1}
    assert refreshed["codes"]["measure"].endswith("over 50 pictures")
    assert card.read_preview(path) == b"a preview"
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    del old["operations"]["encode"]
    card.save(path, model, old)
    with pytest.raises(ValueError, match="lists other operations"):
        card.check(path)


def test_checkpoints_ship() -> None:
    """Both VAE checkpoints are in the repository."""
    assert {path.parents[1].name for path in SHIPPED} >= {"vae-mnist", "vae-mnist-2d"}


SIZES = {"mnist": 60000, "mushrooms": 2500, "dna": 2000, "photographs": 24000}
FIGURES = {
    "vae": {"nll", "bound", "active_units"},
    "bihm": {"log_p_star", "log_p", "minus_2_log_z", "effective_sample_size_star"},
    # a GAN ships after a classifier has looked at its samples: the losses of the two networks do
    # not show a collapse
    "ebgan": {"energy", "sample_energy", "pulling_away", "i_prime", "e_kl"},
    "superres": {"psnr_mse", "psnr_statistics", "vgg_statistics"},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[1].name)
def test_a_shipped_card_states_the_licence_of_its_data(path: Path) -> None:
    """The card has the licence of the data beside the one of the weights."""
    described = card.read_card(path)
    source = described["provenance"]["data"]
    assert source["license"] == data.LICENSES[source["name"]]
    assert described["license"] == "MIT"


def test_provenance_has_the_licence_of_data_known_by_name(trained: Path) -> None:
    """The licence of other data is not known: the provenance has none."""
    source = card.read_card(trained)["provenance"]
    assert "license" not in source["data"]
    assert set(data.LICENSES) == set(data.NAMED)
    pictures = data.ImageSet("dna", data.load(str(DIGITS)).images, "", data.LICENSES["dna"])
    again = export.provenance(Recipe.from_json(source["recipe"]), pictures)["data"]
    assert again["license"] == data.LICENSES["dna"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[1].name)
def test_a_shipped_card_is_complete(path: Path) -> None:
    """A shipped card loads, has the model's operations, figures with units, and a complete
    provenance without paths.
    """
    model, described = card.load(path)
    assert described["name"] == path.parents[1].name
    assert described["version"] == path.parent.name
    assert described["operations"] == model.operations()
    if "decode" in described["operations"]:
        assert described["codes"]["active"]
        assert described["codes"]["measure"]
    provenance = described["provenance"]
    assert set(provenance) >= PROVENANCE
    assert len(provenance["data"]["sha256"]) == 64
    source, chosen = provenance["data"], provenance.get("selection", {"count": 0, "validation": 0})
    trained = (
        provenance["recipe"]["training"].get("pictures") or SIZES[source["name"]]
    )  # a recipe may use the first images only
    assert source["count"] + source["validation"] == min(trained, SIZES[source["name"]])
    assert chosen["count"] + chosen["validation"] in (0, SIZES[source["name"]])
    assert len(provenance["commit"].rstrip("+")) == 40  # a plus marks a tree with changes
    for entry in described["figures"]:
        assert set(entry) == {"name", "value", "unit", "better", "detail"}
    assert FIGURES[described["family"]] <= {entry["name"] for entry in described["figures"]}
    assert not re.search(r'"[^" ]*/[^" ]*/[^" ]*"', json.dumps(described)), "a card names no path"
