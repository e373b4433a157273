"""Settings are checked once, when a program starts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from core.settings import Settings


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting stops the start, and the error lists the settings."""
    monkeypatch.setenv("REVERIE_PROT", "1")
    with pytest.raises(ValidationError, match=r"REVERIE_PROT.*REVERIE_PORT"):
        Settings()


@pytest.mark.parametrize(("name", "value"), [("PORT", "0"), ("SYNC_TIMEOUT_S", "-1"), ("JOB_LEASE_S", "0.6")])
def test_values_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value out of range stops the start."""
    monkeypatch.setenv(f"REVERIE_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_settings_are_frozen() -> None:
    """Nothing changes a setting while the service runs."""
    chosen = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        chosen.port = 1  # type: ignore[misc]


def test_secrets_are_read_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file gives its setting a value unless a variable does; an empty file counts as not set."""
    monkeypatch.setenv("REVERIE_SECRETS_DIR", str(tmp_path))
    (tmp_path / "REVERIE_DATABASE_URL").write_text("postgresql://reverie:secret@db/reverie\n")
    (tmp_path / "REVERIE_QUEUE_URL").write_text("")
    (tmp_path / "other").write_text("of another program")
    assert Settings().database_url == "postgresql://reverie:secret@db/reverie"
    assert Settings().queue_url == Settings.model_fields["queue_url"].default
    monkeypatch.setenv("REVERIE_DATABASE_URL", "postgresql://reverie@elsewhere/reverie")
    assert Settings().database_url == "postgresql://reverie@elsewhere/reverie"
    assert Settings(database_url="sqlite:///here").database_url == "sqlite:///here"


def test_wrong_secrets_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A misspelt file of a setting stops the start, as does a folder that does not exist."""
    monkeypatch.setenv("REVERIE_SECRETS_DIR", str(tmp_path))
    (tmp_path / "REVERIE_DATABASE").write_text("postgresql://reverie@db/reverie")
    with pytest.raises(ValidationError, match="REVERIE_DATABASE;"):
        Settings()
    monkeypatch.setenv("REVERIE_SECRETS_DIR", str(tmp_path / "missing"))
    with pytest.raises(ValidationError, match="missing is no folder"):
        Settings()
