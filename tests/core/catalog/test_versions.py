"""Active versions, candidates, and numbers of new versions."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from core.catalog.cards import REQUIRED_FIELDS
from core.catalog.rollout import drain_reason, has_loaded, is_loaded, load_error, missing_workers, slow_workers
from core.catalog.versions import VersionRemovedError, Versions


def test_cards_need_what_models_say() -> None:
    """The required fields of a card equal those of `models.kit.card`."""
    from models.kit.card import REQUIRED

    assert REQUIRED_FIELDS == REQUIRED


def test_a_staged_version_serves_once_it_is_activated(tmp_path: Path) -> None:
    """Staging a version keeps the active one; activating it ends the staging; pinning has no effect
    once a version is active.
    """
    versions = Versions(tmp_path / "made")
    assert (versions.pointers(), versions.stamp()) == ({}, 0)
    versions.stage("m", "2")
    stamp = versions.stamp()
    assert versions.pointers() == {"m": {"next": "2"}}
    versions.pin("m", "1")
    assert versions.pointers() == {"m": {"next": "2", "serves": "1"}}
    versions.activate("m", "2")
    assert versions.stamp() != stamp
    versions.pin("m", "1")
    versions.unstage("m", "2")
    assert versions.pointers() == {"m": {"serves": "2"}}


def test_a_deleted_version_does_not_become_active(tmp_path: Path) -> None:
    """Once a version is hidden, it is not made the candidate or active; a shipped version may be."""
    versions = Versions(tmp_path / "made")
    for number in ("1", "2"):
        (tmp_path / "file").write_bytes(b"content")
        versions.publish(tmp_path / "file", "m", number)
    versions.activate("m", "2")
    versions.hide("m", ["1"])
    for _ in ("hidden", "deleted"):
        for act in (versions.stage, versions.activate):
            with pytest.raises(VersionRemovedError, match="m@1 was deleted"):
                act("m", "1")
        assert versions.pointers() == {"m": {"serves": "2"}}
        versions.discard("m", ["1"])
    versions.stage("shipped", "1")
    assert versions.pointers()["shipped"] == {"next": "1"}


def test_each_caller_gets_a_number_of_its_own(tmp_path: Path) -> None:
    """Concurrent reservations get different numbers above all known ones."""
    versions = Versions(tmp_path)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(versions.reserve("m", ["4"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, found)) == list(range(5, 13))


def test_versions_do_not_change(tmp_path: Path) -> None:
    """Publishing over a version fails and leaves no file behind."""
    versions = Versions(tmp_path / "made")
    for content in (b"first", b"second"):
        (tmp_path / "file").write_bytes(content)
        if content == b"first":
            versions.publish(tmp_path / "file", "m", "1")
            continue
        with pytest.raises(FileExistsError):
            versions.publish(tmp_path / "file", "m", "1")
    assert [path.read_bytes() for path in versions.path("m", "1").parent.iterdir()] == [b"first"]


def test_a_version_is_loaded_when_all_who_serve_have_spoken() -> None:
    """A version counts as loaded once every ready worker has loaded it or reported an error;
    loading workers do not count.
    """
    held = {"state": "ready", "capacity": {"m@2": {}}, "refused": {}}
    other = {"state": "ready", "capacity": {}, "refused": {}}
    failing = {"state": "ready", "capacity": {}, "refused": {"m@2": "damaged"}}
    assert not is_loaded({}, "m@2")  # nobody has loaded anything
    assert is_loaded({"a": held, "b": {**other, "state": "loading"}}, "m@2")
    assert not is_loaded({"a": held, "b": other}, "m@2")
    assert is_loaded({"a": held, "b": failing}, "m@2")
    assert (load_error({"a": held, "b": failing}, "m@2"), load_error({"a": held}, "m@2")) == ("damaged", "")


def test_workers_that_may_not_load_a_version_do_not_count() -> None:
    """A worker whose `REVERIE_MODELS` leaves a model out is not waited for; if all do, the reason
    says so.
    """
    held = {"state": "ready", "capacity": {"m@2": {}}, "models": ["m*"]}
    other = {"state": "ready", "capacity": {}, "models": ["n"]}
    assert is_loaded({"a": held, "b": other}, "m@2")
    assert not is_loaded({"b": other}, "m@2")
    assert "REVERIE_MODELS" in missing_workers({"b": other}, "m@2")


def test_slow_workers_are_named() -> None:
    """The reason names the ready workers that have not loaded the version; starting ones do not
    count.
    """
    held = {"state": "ready", "capacity": {"m@2": {}}}
    slow = {"state": "ready", "capacity": {}}
    heartbeats = {"a": held, "b": slow, "c": {**slow, "state": "loading"}}
    assert slow_workers(heartbeats, "m@2") == ["b"]
    assert has_loaded(heartbeats, "m@2")
    assert drain_reason(heartbeats, "m@2", 60) == (
        "1 of 2 inference workers had not loaded m@2 after 60 s and is stopped: b"
    )


def test_cleanup_keeps_versions(tmp_path: Path) -> None:
    """Partial files and empty folders are removed, unless a version was written into them
    meanwhile.
    """
    versions = Versions(tmp_path)
    half = f".{'a' * 32}"
    for name in ("m/1/model.safetensors", f"m/1/{half}", f"m/2/{half}", f"n/1/{half}", "o/1/other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    left = versions.leftovers(lambda model: model == "awaited")
    assert set(left) == {tmp_path / "m" / "1" / half, tmp_path / "m" / "2", tmp_path / "n"}
    (tmp_path / "n" / "1" / "model.safetensors").write_bytes(b"x")
    for path in left:
        versions.remove(path)
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {"m/1/model.safetensors", "n/1/model.safetensors", "o/1/other"}
    assert not (tmp_path / "m" / "2").exists()
    assert versions.leftovers(lambda model: True) == []
