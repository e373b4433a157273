"""The registry reads models from cards, without torch."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from core.catalog import registry as under_test
from core.catalog.checkpoint_file import read_card
from core.catalog.registry import Registry, read_version
from core.catalog.validation import InvalidOptionsError
from core.catalog.versions import FILE, Versions

OPTIONS = {
    "type": "object",
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 64, "default": 20},
        "heat": {"type": ["number", "null"], "default": None},
        "way": {"type": "string", "enum": ["up", "down"], "default": "up"},
    },
    "additionalProperties": False,
}
CARD = {"image": {"channels": 1, "height": 4, "width": 5}, "operations": {"sample": {"options": OPTIONS}}}


def _save(folder: Path, name: str, version: str, card: Any = CARD) -> Path:
    path = folder / name / version / FILE
    path.parent.mkdir(parents=True)
    header = json.dumps({"__metadata__": {"card": json.dumps(card)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_a_name_resolves_to_its_newest_version(tmp_path: Path) -> None:
    """Version 10 is newer than 9; name@version selects a version."""
    for version in ("9", "10", "1"):
        _save(tmp_path, "m", version)
    models = Registry(tmp_path)
    found = models.find("m")
    assert found is not None
    assert (found.ref, found.image) == ("m@10", (1, 4, 5))
    pinned = models.find("m@9")
    assert pinned is not None
    assert pinned.version == "9"
    assert models.versions("m") == ["1", "9", "10"]
    assert [entry.ref for entry in models.active()] == ["m@10"]
    assert models.find("m@2") is None
    assert models.find("n") is None
    assert models.versions("n") == []


def test_a_new_model_is_found_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up an unknown name scans the folder again, at most every `_RESCAN_S` seconds."""
    models = Registry(tmp_path)
    _save(tmp_path, "m", "1")
    assert models.find("m") is None  # the folder was read a moment ago
    monkeypatch.setattr(under_test, "_RESCAN_S", 0.0)
    assert models.find("m") is not None


def test_a_model_deleted_during_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan finds the other models if the folder of one model is deleted meanwhile."""
    folder = tmp_path / "models"
    for name in ("a", "b", "c"):
        _save(folder, name, "1")
    scandir = os.scandir

    def deleting(path: Any = ".") -> Any:
        if str(path) == str(folder / "b"):
            (folder / "b").rename(tmp_path / "deleted")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deleting)
    assert [entry.ref for entry in Registry(folder).active()] == ["a@1", "c@1"]
    assert (tmp_path / "deleted").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 4,
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 50) + b"{",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    ],
)
def test_a_damaged_file_is_left_out(tmp_path: Path, data: bytes) -> None:
    """A damaged file is skipped, and the other models are served."""
    _save(tmp_path, "good", "1")
    bad = tmp_path / "bad" / "1" / FILE
    bad.parent.mkdir(parents=True)
    bad.write_bytes(data)
    assert [entry.name for entry in Registry(tmp_path).active()] == ["good"]
    with pytest.raises(ValueError, match=r"."):
        read_version(bad)


@pytest.mark.parametrize(
    "card",
    [
        {},
        [],
        {"image": {"channels": 1, "height": 4, "width": 5}},
        {**CARD, "image": {"channels": 2, "height": 4, "width": 5}},
        {**CARD, "image": {"channels": 1, "height": 0, "width": 5}},
        {**CARD, "operations": {"sample": {}}},
        {**CARD, "operations": {"sample": {"options": {"type": "nonsense"}}}},
    ],
)
def test_a_card_that_lacks_something_is_no_model(tmp_path: Path, card: Any) -> None:
    """A card without a required field is rejected with the model's name."""
    path = _save(tmp_path, "m", "1", card)
    with pytest.raises(ValueError, match="m@1"):
        read_version(path)
    assert Registry(tmp_path).active() == []


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All fields of a card are kept; unknown operations are ignored."""
    card = {**CARD, "operations": {**CARD["operations"], "dream": {}}}  # type: ignore[dict-item]
    path = _save(tmp_path, "m", "1", card)
    assert read_card(path).json == card
    assert list(read_version(path).operations) == ["sample"]


def test_options_are_checked_and_completed(tmp_path: Path) -> None:
    """Omitted options get their defaults, and 8.0 becomes the integer 8."""
    choice = read_version(_save(tmp_path, "m", "1")).operations["sample"]
    assert choice.options({}) == {"size": 20, "heat": None, "way": "up"}
    given = choice.options({"size": 8.0, "heat": 0.5})
    assert given == {"size": 8, "heat": 0.5, "way": "up"}
    assert type(given["size"]) is int


@pytest.mark.parametrize(
    ("given", "field", "word"),
    [
        ({"size": 0}, "options.size", "1"),
        ({"size": 65}, "options.size", "64"),
        ({"size": 8.5}, "options.size", "integer"),
        ({"size": True}, "options.size", "integer"),
        ({"heat": "x" * 10_000}, "options.heat", "x"),
        ({"way": "left"}, "options.way", "down"),
        ({"cold": 1}, "options.cold", "size, heat, way"),
        ({"y" * 1000: 1}, "options." + "y" * 60, "size, heat, way"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, given: dict[str, Any], field: str, word: str) -> None:
    """An invalid option is rejected with its name and what is allowed."""
    choice = read_version(_save(tmp_path, "m", "1")).operations["sample"]
    with pytest.raises(InvalidOptionsError) as caught:
        choice.options(given)
    (error,) = caught.value.errors
    assert error["field"] == field
    assert word in error["detail"]
    assert len(str(caught.value)) < 500


def test_the_version_that_was_set_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An activated version is active; otherwise the newest one is."""
    monkeypatch.setattr(under_test, "_CHECK_S", 0.0)
    shipped, made = tmp_path / "shipped", tmp_path / "made"
    _save(shipped, "m", "1")
    models = Registry(shipped, made)
    assert models.candidates() == []
    versions = Versions(made)
    versions.pin("m", "1")
    _save(made, "m", "2")
    _save(made, "n", "1")
    versions.stage("m", "2")
    assert [entry.ref for entry in models.active()] == ["m@1", "n@1"]
    assert [entry.ref for entry in models.candidates()] == ["m@2"]
    versions.activate("m", "2")
    found = models.find("m")
    assert found is not None
    assert (found.version, models.versions("m"), models.candidates()) == ("2", ["1", "2"], [])
    versions.activate("m", "7")  # a version that this machine does not have
    assert [entry.ref for entry in models.active()] == ["m@2", "n@1"]


def test_shipped_versions_take_precedence(tmp_path: Path) -> None:
    """If both folders have a version, the shipped file is used."""
    path = _save(tmp_path / "shipped", "m", "1")
    _save(tmp_path / "made", "m", "1")
    found = Registry(tmp_path / "shipped", tmp_path / "made").find("m@1")
    assert found is not None
    assert found.path == path
