"""Parsing of untrusted JSON: large texts are scanned before they are parsed.

`orjson.loads` holds the interpreter lock and creates an object for every value: ten million empty
lists in 30 MB block the process for seconds and take a gigabyte. The scan runs in numpy, which
releases the lock, and stops early. Its counts are upper bounds: commas inside strings count as
well.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

SCAN_BYTES = 64 << 10  # smaller texts are parsed without a scan, in a millisecond at most
MAX_VALUES = 65_536  # values of a larger text; each image of a request is one


class CostlyJsonError(ValueError):
    """JSON that is large and would take long to parse; the message says why."""


_ESCAPES_SHARE = 16
_BLOCK_BYTES = 1 << 20
_COMMA, _COLON, _BACKSLASH, _LETTER_U, _OPENING = (np.uint8(ord(character)) for character in ",:\\u{")


def loads(text: bytes) -> Any:
    """Parse JSON.

    Raises CostlyJsonError, and orjson.JSONDecodeError for a text that is not JSON.
    """
    scan([text])
    return orjson.loads(text)


def scan(texts: Iterable[bytes]) -> None:
    """Raise CostlyJsonError for texts that together are large and would be costly to parse.

    Large texts are ASCII with few escapes, as JSON with pictures is: one wide character makes a
    string of 30 MB take four times that.
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
