"""API keys: the key file, the command that edits it, and its reload by a running service."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api import auth
from api.auth import ANONYMOUS, Caller, KeyFile, KeyRecord, Keys, digest_of, parse_keys
from api.keys_command import main
from tests.api.callers import key_file, key_line


def caller_of(keys: Keys, key: str) -> Caller:
    """Return the caller with a key, which must be valid."""
    caller = keys.caller(f"Bearer {key}".encode())
    assert caller
    return caller


def test_without_a_file_everybody_is_let_in() -> None:
    """Without a key file every caller is anonymous and has all roles."""
    assert Keys(None).caller(b"") is Keys(None).caller(b"Bearer x") is ANONYMOUS
    assert not Keys(None).used


def test_a_key_names_its_caller(tmp_path: Path) -> None:
    """A key is looked up by its hash; a missing, unknown or malformed one has no caller."""
    keys = Keys(key_file(tmp_path, "# who may call", "", key_line("ann"), key_line("bob")))
    assert caller_of(keys, "ann-key").name == "ann"
    bob = keys.caller(b"bearer  bob-key ")
    assert bob
    assert bob.name == "bob"
    digest = digest_of("ann-key").encode()
    for wrong in (b"", b"Bearer", b"Bearer ", b"Bearer c", b"Basic ann-key", b"ann-key", digest, b"\xff \xff"):
        assert keys.caller(wrong) is None
    assert Keys(key_file(tmp_path)).caller(b"Bearer ") is None


@pytest.mark.parametrize(
    ("roles", "granted"),
    [
        ((), {"read", "run", "train"}),
        (("",), {"read", "run", "train"}),
        (("read",), {"read"}),
        (("run",), {"read", "run"}),
        (("train",), {"read", "train"}),
        (("admin",), {"read", "run", "train", "admin"}),
        ((" run , train ",), {"read", "run", "train"}),
    ],
)
def test_roles_of_a_key(tmp_path: Path, roles: tuple[str, ...], granted: set[str]) -> None:
    """Without roles a key has all but `admin`; `run` and `train` include `read`, and `admin`
    includes all.
    """
    caller = caller_of(Keys(key_file(tmp_path, key_line("ann", *roles))), "ann-key")
    assert caller.roles == granted


@pytest.mark.parametrize(
    "line",
    [
        *("ann", "ann:", ":" + "0" * 64, "ann:abc", f"ann:{'G' * 64}", "ann:secret:x", f"ann:{'0' * 64}:boss"),
        *(f"a b:{'0' * 64}", f"ann:{'0' * 64}:run::", f"ann:{'0' * 64}:run:expires=soon", f"ann:{'0' * 64}::jobs=1"),
        f"ann:{'0' * 64}:run:trainings=-1",
    ],
)
def test_a_line_of_another_shape_is_refused(tmp_path: Path, line: str) -> None:
    """The error of a malformed line has its number but none of its words, which may be secret."""
    with pytest.raises(ValueError, match=r"^line 2 of the key file ") as raised:
        Keys(key_file(tmp_path, "", line))
    assert "secret" not in str(raised.value)
    assert "boss" not in str(raised.value)


def test_a_record_survives_the_file() -> None:
    """Formatting and parsing a record gives the same record."""
    record = KeyRecord("ann", "0" * 64, frozenset({"read", "run"}), 1_800_000_000.0, {"trainings": 2})
    assert KeyRecord.parse(record.format()) == record
    assert parse_keys(f"# a comment\n\n{record.format()}\n") == [record]


def test_an_expired_key_is_unknown(tmp_path: Path) -> None:
    """A key is rejected from the second of its expiry, without a reload."""
    keys = Keys(key_file(tmp_path, key_line("ann", "", "expires=20200101T000000Z"), key_line("bob")))
    assert keys.caller(b"Bearer ann-key") is None
    file = tmp_path / "soon"
    until = time.time() + 1.2
    file.write_text(KeyRecord("ann", digest_of("ann-key"), expires_at=until).format())
    keys = Keys(file)
    assert keys.caller(b"Bearer ann-key") is not None
    time.sleep(1.3)
    assert keys.caller(b"Bearer ann-key") is None


def test_keys_are_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A changed or replaced file is loaded; an invalid or missing one keeps the previous keys and
    is logged.
    """
    monkeypatch.setattr(auth, "_CHECK_S", 0.0)
    file = key_file(tmp_path, key_line("ann"))
    keys = Keys(file)
    file.write_text(key_line("bob") + "\n")
    assert keys.caller(b"Bearer ann-key") is None
    assert keys.caller(b"Bearer bob-key") is not None
    KeyFile(file).add(KeyRecord("ann", digest_of("ann-key")))
    assert keys.caller(b"Bearer ann-key") is not None
    file.write_text("nonsense\n")
    assert keys.caller(b"Bearer ann-key") is not None
    assert "key file not reloaded" in caplog.text
    file.unlink()
    assert keys.caller(b"Bearer bob-key") is not None


def test_the_file_is_not_looked_at_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is checked for changes at most twice a second."""
    keys = Keys(key_file(tmp_path, key_line("ann")))
    looks = []
    monkeypatch.setattr(Keys, "_reload", lambda self, path: looks.append(path))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        keys.caller(b"Bearer ann-key")
    assert len(looks) == 2


# --- the command ---


def run(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[int, str]:
    """Run `python -m api keys` in this process; return its exit status and output."""
    status = main(["--file", str(file), *words])
    return status, capsys.readouterr().out


def test_a_key_is_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new key is printed once; the file keeps only its hash, has mode 600, and keeps its
    comments.
    """
    file = tmp_path / "keys"
    status, made = run(capsys, file, "add", "ann", "--roles", "read,run", "--limit", "unfinished_jobs=3")
    assert status == 0
    key = made.strip()
    assert len(key) > 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    caller = caller_of(Keys(file), key)
    assert (caller.name, set(caller.roles), dict(caller.limits)) == ("ann", {"read", "run"}, {"unfinished_jobs": 3})
    file.write_text("# keep me\n" + file.read_text())
    run(capsys, file, "add", "bob", "--roles", "admin", "--expires", "90d")
    listed = run(capsys, file, "list")[1]
    assert key not in listed
    assert "read,run" in listed
    assert "unfinished_jobs=3" in listed
    assert run(capsys, file, "revoke", "ann")[0] == 0
    assert Keys(file).caller(f"Bearer {key}".encode()) is None
    assert file.read_text().startswith("# keep me\nbob:")
    assert run(capsys, file, "revoke", "ann")[0] == 1


def test_of_two_keys_one_is_revoked_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Revoking one of two keys of a name by its id keeps the other valid."""
    file = tmp_path / "keys"
    first, second = (run(capsys, file, "add", "ann")[1].strip() for _ in range(2))
    assert run(capsys, file, "revoke", "ann", "--id", digest_of(first)[:12])[0] == 0
    assert Keys(file).caller(f"Bearer {first}".encode()) is None
    assert Keys(file).caller(f"Bearer {second}".encode()) is not None


@pytest.mark.parametrize(
    ("keep", "valid"),
    [(["--keep", "0"], False), (["--keep", "1h"], True), (["--keep", "until-revoked"], True), ([], True)],
)
def test_a_rotated_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: list[str], valid: bool) -> None:
    """The new key has the roles and limits of the old one, which stays valid for the time that
    `--keep` states.
    """
    file = tmp_path / "keys"
    old = run(capsys, file, "add", "ann", "--roles", "run", "--limit", "trainings=1")[1].strip()
    new = run(capsys, file, "rotate", "ann", *keep)[1].strip()
    keys = Keys(file)
    assert (keys.caller(f"Bearer {old}".encode()) is not None) == valid
    caller = caller_of(keys, new)
    assert (set(caller.roles), dict(caller.limits), caller.key_expires_at) == ({"read", "run"}, {"trainings": 1}, None)
    expires_at = KeyFile(file).records()[0].expires_at
    if keep == ["--keep", "until-revoked"]:
        assert expires_at is None
    elif valid:
        assert expires_at
        assert time.time() + 3500 < expires_at < time.time() + 86_500


def test_a_name_without_a_key_cannot_be_rotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rotating an unknown name fails, and an invalid key file is not overwritten."""
    file = tmp_path / "keys"
    assert main(["--file", str(file), "rotate", "ann"]) == 1
    assert "keys add ann" in capsys.readouterr().err
    file.write_text("nonsense\n")
    assert main(["--file", str(file), "add", "ann"]) == 1
    assert file.read_text() == "nonsense\n"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["add", "a b"],
            ["add", "a:b"],
            ["add", ""],
            ["add", "ann", "--roles", "boss"],
            ["add", "ann", "--roles", ""],
        ),
        *(
            ["add", "ann", "--limit", "jobs=1"],
            ["add", "ann", "--expires", "soon"],
            ["rotate", "ann", "--keep", "x"],
            [],
        ),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(tmp_path: Path, words: list[str]) -> None:
    """Invalid arguments exit with status 2, and no file is created."""
    with pytest.raises(SystemExit) as raised:
        main(["--file", str(tmp_path / "keys"), *words])
    assert raised.value.code == 2
    assert not (tmp_path / "keys").exists()


def test_the_command_is_part_of_the_api(tmp_path: Path, root: Path) -> None:
    """`python -m api keys` edits the file of REVERIE_API_KEYS."""
    file = tmp_path / "folder" / "keys"
    environment = {**os.environ, "REVERIE_API_KEYS": str(file)}
    command = [sys.executable, "-m", "api", "keys", "add", "ann"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert caller_of(Keys(file), done.stdout.strip()).name == "ann"
