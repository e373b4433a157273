"""Fixtures of the tests of datasets."""

from pathlib import Path

import pytest

from tests.uploads import UploadConverter


@pytest.fixture
def converter(tmp_path: Path) -> UploadConverter:
    """Return a converter with a folder of its own."""
    return UploadConverter(tmp_path)
