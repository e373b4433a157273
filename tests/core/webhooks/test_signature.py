"""Signatures and secrets agree with the library of Standard Webhooks."""

from __future__ import annotations

import base64
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import standardwebhooks

from core.webhooks.signature import decode_secret, new_secret, secret_of_file, signed_headers

BODY = b'{"type":"job.succeeded"}'


def test_each_of_several_secrets_verifies() -> None:
    """A body signed with several secrets verifies with each of them and with no other."""
    old, new = new_secret(), new_secret()
    headers = signed_headers("msg_1", int(time.time()), BODY, [old, new])
    for secret in (old, new):
        assert standardwebhooks.Webhook(secret).verify(BODY, headers) == {"type": "job.succeeded"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(new_secret()).verify(BODY, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(old).verify(BODY + b" ", headers)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_%%%", base64.b64encode(bytes(32)).decode()])
def test_a_secret_that_is_not_valid_is_rejected(secret: str) -> None:
    """A secret needs the prefix `whsec_` and 24 to 64 bytes."""
    with pytest.raises(ValueError, match="whsec_"):
        decode_secret(secret)


def test_the_secret_of_a_file_is_made_once(tmp_path: Path) -> None:
    """Concurrent processes create one secret file, which only its user can read."""
    file = tmp_path / "webhook-secret"
    with ThreadPoolExecutor(8) as pool:
        (secret,) = set(pool.map(secret_of_file, [file] * 8))
    assert len(decode_secret(secret)) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["webhook-secret"]
