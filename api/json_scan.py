"""Parses untrusted JSON. Large texts are scanned first, and rejected if parsing would be costly.

`orjson.loads` holds the GIL and creates an object for each value: ten million empty lists in 30 MB
block the process for seconds and take a gigabyte of memory. The scan counts values and nesting
with numpy, which releases the GIL. Its counts are upper bounds: commas inside strings count too.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

SCAN_BYTES = 64 << 10  # smaller texts are parsed without a scan, which takes at most a millisecond
MAX_VALUES = 65_536  # most values of a larger text; each image of a request is a value


class CostlyJsonError(ValueError):
    """A JSON text would take too much time or memory to parse; the message says why."""


_ESCAPES_SHARE = 16
_BLOCK_BYTES = 1 << 20
_COMMA, _COLON, _BACKSLASH, _LETTER_U, _OPENING = (np.uint8(ord(character)) for character in ",:\\u{")


def loads(text: bytes) -> Any:
    """Parse a JSON text, and return its value.

    Raises CostlyJsonError if the text is large and has too many values, characters that are not
    ASCII, or too many escapes; and orjson.JSONDecodeError if it is not JSON.
    """
    scan([text])
    return orjson.loads(text)


def scan(texts: Iterable[bytes]) -> None:
    """Raise CostlyJsonError if the texts together are large and would be costly to parse.

    Texts of more than `SCAN_BYTES` bytes may have at most `MAX_VALUES` values, and must be ASCII
    with few escapes, as base64 is: a single wide character makes a Python string take four bytes
    per character.
    """
    texts = list(texts)
    size = sum(map(len, texts))
    if size <= SCAN_BYTES:
        return
    values = escapes = 0
    for text in texts:
        characters = np.frombuffer(text, np.uint8)
        for begin in range(0, len(characters), _BLOCK_BYTES):
            block = characters[begin : begin + _BLOCK_BYTES]
            # `[` and `{` differ in one bit
            values += int(np.count_nonzero(block == _COMMA)) + int(np.count_nonzero(block == _COLON))
            values += int(np.count_nonzero((block | np.uint8(0x20)) == _OPENING))
            if values > MAX_VALUES:
                raise CostlyJsonError(f"it has more than {MAX_VALUES} values")
            if bool((block & np.uint8(0x80)).any()):
                raise CostlyJsonError(f"more than {SCAN_BYTES} bytes must be plain ASCII")
            backslashes = np.flatnonzero(block == _BACKSLASH) + begin + 1
            escapes += len(backslashes)
            if escapes > max(MAX_VALUES, size // _ESCAPES_SHARE):
                raise CostlyJsonError("it has too many escapes; base64 needs none")
            if bool((characters[backslashes[backslashes < len(characters)]] == _LETTER_U).any()):
                raise CostlyJsonError(f"more than {SCAN_BYTES} bytes must do without \\u escapes")
