"""Read the model card and the preview in the metadata of checkpoint files (safetensors).

Both are read without torch.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from core.catalog.cards import REQUIRED_FIELDS, Card, CardError, parse_card, parse_preview

MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 8  # of a tensor in an imported file


class ImportRejectedError(ValueError):
    """Raised for a file that cannot be imported as a version of a model; the message says why."""


def read_metadata(path: Path) -> Mapping[str, str]:
    """Check the header of a safetensors file and return its metadata, without reading a tensor.

    Raises ImportRejectedError if the file is not a valid safetensors file, and OSError if it cannot
    be read.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > path.stat().st_size - 8:
        raise ImportRejectedError("it is no safetensors file, or a truncated one: its header is longer than the file")
    if length > MAX_HEADER_BYTES:
        raise ImportRejectedError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        with safe_open(path, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                dimensions = len(tensors.get_slice(name).get_shape())
                if dimensions > MAX_DIMENSIONS:
                    detail = f"{name[:60]!r} has {dimensions} dimensions; at most {MAX_DIMENSIONS} may be"
                    raise ImportRejectedError(detail)
            return tensors.metadata() or {}
    except SafetensorError as error:
        raise ImportRejectedError(f"it is damaged: {str(error)[:200]}") from error


def read_card(path: Path) -> Card:
    """Return the model card of a checkpoint file.

    Raises ValueError if the file is damaged or its card is missing or invalid, and OSError if the
    file cannot be read.
    """
    return _parse_card(read_metadata(path))


def _parse_card(metadata: Mapping[str, str]) -> Card:
    """Return the model card in the metadata. Raises ValueError if it is missing or invalid."""
    if "card" not in metadata:
        raise ImportRejectedError("it carries no card: export it by GET /v1/models/{name}/versions/{n}/file")
    return parse_card(metadata["card"])


def read_preview(path: Path) -> bytes | None:
    """Return the PNG preview of a checkpoint file; None if there is no valid one.

    Raises ImportRejectedError if the file is not a valid safetensors file.
    """
    metadata = read_metadata(path)
    try:
        return parse_preview(metadata["preview"]) if "preview" in metadata else None
    except CardError:
        return None


def check_import(path: Path, name: str) -> Card:
    """Check an uploaded checkpoint file for the model `name`; return its card.

    Raises ImportRejectedError if the file is damaged, or if its card is not valid or names another
    model. The weights are not checked; `python -m models check` does that with torch.
    """
    metadata = read_metadata(path)
    try:
        card = _parse_card(metadata)
        if "preview" in metadata:
            parse_preview(metadata["preview"])
    except CardError as error:
        raise ImportRejectedError(str(error)) from error
    missing = [field for field in REQUIRED_FIELDS if field not in card.json]
    if missing:
        raise ImportRejectedError(f"its card lacks {', '.join(missing)}")
    if card.name != name:
        raise ImportRejectedError(f"its card is that of {card.name!r}; send it to /v1/models/{card.name}/versions")
    return card
