"""Settings are checked once, when a program starts."""

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
