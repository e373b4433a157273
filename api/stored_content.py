"""The body of a request as its job keeps it until its images have been fetched."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from api.request_content import Content
from core.broker.codec import pack, unpack

IMAGES_URL = "image_url"
_URL_SUFFIX = "_url"


def store_content(content: Content, fixed: Mapping[str, Any], left_out: frozenset[str]) -> bytes:
    """Pack the content of a request, so that `restore_content` can read it.

    The fields `left_out` are not packed; those in `fixed` replace the values that were sent.
    """
    fields = {name: value for name, value in content.fields.items() if name not in left_out} | dict(fixed)
    texts = {name: text for name, text in content.texts.items() if name in fields}
    named = {name: list(sent) for name, sent in content.named.items()}
    return pack({"fields": fields, "uploads": list(content.uploads), "named": named, "texts": texts})


def restore_content(packed: bytes, downloads: Mapping[str, Sequence[bytes]]) -> Content:
    """Return the content of a request, with the files that were downloaded for each URL field.

    Images by URL follow those that were sent.
    """
    stored: dict[str, Any] = unpack(packed)
    uploads, named = list(stored["uploads"]), {name: list(sent) for name, sent in stored["named"].items()}
    for field, files in downloads.items():
        if field == IMAGES_URL and stored["fields"].get("images"):
            stored["fields"]["images"] += [base64.b64encode(file).decode() for file in files]
        elif field == IMAGES_URL:
            uploads += files
        else:
            named.setdefault(field.removesuffix(_URL_SUFFIX), []).extend(files)
    return Content(stored["fields"], uploads, named, stored["texts"])
