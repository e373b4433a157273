"""Sign webhooks by Standard Webhooks 1.0.0: HMAC-SHA256 over id, timestamp and body."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

PREFIX = "whsec_"
_BYTES, _MIN_BYTES, _MAX_BYTES = 32, 24, 64


def new_secret() -> str:
    """Return a new random secret: `whsec_` and 32 bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def decode_secret(secret: str) -> bytes:
    """Return the key in a webhook secret: `whsec_`, then 24 to 64 bytes in base64.

    Raises ValueError if the secret has another form.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(f"a webhook secret is {PREFIX} and {_MIN_BYTES} to {_MAX_BYTES} bytes in base64")
    return key


def signed_headers(webhook_id: str, timestamp: int, body: bytes, secrets_in_use: Iterable[str]) -> dict[str, str]:
    """Return the headers that sign a webhook's request with the content `body`.

    `timestamp` is the time of the attempt, in whole seconds of Unix time. `webhook_id` is the same
    for all attempts of a delivery.

    `webhook-signature` has one signature for each secret, so that receivers can change to a new one
    while the old one is valid.
    """
    content = f"{webhook_id}.{timestamp}.".encode() + body
    signatures = [
        f"v1,{base64.b64encode(hmac.new(decode_secret(secret), content, hashlib.sha256).digest()).decode()}"
        for secret in secrets_in_use
    ]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def secret_of_file(path: Path) -> str:
    """Return the webhook secret in a file.

    If the file is missing, it is created with a new secret and mode 0600. Several processes may
    call this at the same time; they get the same secret.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        part = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(new_secret() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path.read_text().strip()
