"""Packs the body of a request with URLs, so that its job can store it until the URLs are fetched.

The request is then restored with the fetched images as if the client had uploaded them.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from api.request_content import Content
from core.broker.codec import pack, unpack

IMAGES_URL = "image_url"
_URL_SUFFIX = "_url"


def store_content(content: Content, fixed: Mapping[str, Any], left_out: frozenset[str]) -> bytes:
    """Return the content of a request packed as bytes, to be stored with its job.

    The fields in `left_out` are not packed; the values in `fixed` replace those that were sent.
    """
    fields = {name: value for name, value in content.fields.items() if name not in left_out} | dict(fixed)
    texts = {name: text for name, text in content.texts.items() if name in fields}
    named = {name: list(sent) for name, sent in content.named.items()}
    return pack({"fields": fields, "uploads": list(content.uploads), "named": named, "texts": texts})


def restore_content(packed: bytes, downloads: Mapping[str, Sequence[bytes]]) -> Content:
    """Return the content that was packed for a job, with its downloaded files as uploaded images.

    `downloads` has the files of each URL field, keyed by field. They follow the images that were
    sent in the request itself.
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
