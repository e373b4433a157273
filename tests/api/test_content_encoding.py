"""Bodies sent with `Content-Encoding`: decoded on every route, within the limits of the decoded
size.
"""

import asyncio
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import orjson
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.errors import MalformedError, UnsupportedMediaError
from api.request_bodies import DecodedReceive, content_encoding
from tests.api.attack import MIB, STALL_S, BareApi, cpu_seconds, rss_bytes, watched
from tests.api.helpers import MODEL, b64, post_samples, problem


def _raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZIP": lambda data: gzip.compress(data[:1]) + gzip.compress(data[1:]),
    "deflate": zlib.compress,
    "Deflate, identity": _raw_deflate,
    "identity": bytes,
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    """An API process with a small limit for datasets."""
    with BareApi(tmp_path_factory.mktemp("encoding"), max_dataset_bytes=4 * MIB) as running:
        yield running


@pytest.mark.parametrize("encoding", ENCODERS)
def test_encoded_bodies_are_read_on_every_route(client: httpx.Client, digit: bytes, encoding: str) -> None:
    """A compressed JSON body, image, form or upload gives the response of the plain one."""
    encode = ENCODERS[encoding]

    def post(path: str, body: bytes, kind: str) -> httpx.Response:
        return client.post(path, content=encode(body), headers={"Content-Type": kind, "Content-Encoding": encoding})

    fields = orjson.dumps({"model": MODEL, "seed": 1})
    assert post("/v1/samples", fields, "application/json").content == post_samples(client, seed=1).content
    pictured = orjson.dumps({"model": MODEL, "seed": 1, "images": [b64(digit)] * 300})
    many = post("/v1/encodings", pictured, "application/json")
    assert many.status_code == 200, many.text[:300]
    assert len(many.json()["mean"]) == 300
    raw = post(f"/v1/encodings?model={MODEL}&seed=1", digit, "image/png")
    form = httpx.Request("POST", "http://x", data={"model": MODEL, "seed": "1"}, files={"images": ("a.png", digit)})
    sent = post("/v1/encodings", form.read(), form.headers["content-type"])
    assert raw.status_code == sent.status_code == 200
    assert raw.content == sent.content
    missing = post("/v1/trainings", b'{"family": "none", "dataset": "x", "name": "x"}', "application/json")
    problem(missing, 422, "none")
    arrays = io.BytesIO()
    np.savez(arrays, images=np.random.default_rng(1).integers(0, 256, (64, 8, 8), np.uint8))
    made = post("/v1/datasets?name=encoded", arrays.getvalue(), "application/x-npz")
    assert made.status_code == 201, made.text
    assert client.delete("/v1/datasets/encoded").status_code == 204


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "\xff"])
@pytest.mark.parametrize("path", ["/v1/samples", "/v1/trainings", "/v1/datasets?name=x", "/v1/models/x/versions"])
def test_an_unknown_encoding_is_refused(api: BareApi, path: str, encoding: str) -> None:
    """An unknown encoding is 415, with the supported ones in `Accept-Encoding`."""
    headers = [(b"Content-Encoding", encoding.encode("latin-1")), (b"Content-Type", b"application/json")]
    response = httpx.post(api.url + path, content=b"{}", headers=headers)
    problem(response, 415, "Content-Encoding", "gzip")
    assert response.headers["accept-encoding"] == "gzip, deflate, identity"


@pytest.mark.parametrize("path", ["/v1/samples", "/v1/trainings", "/v1/datasets?name=x"])
@pytest.mark.parametrize("cut", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"x" + data])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_broken_encoding_is_named(api: BareApi, path: str, cut: Callable[[bytes], bytes], encoding: str) -> None:
    """Corrupt compressed data is 400, and the problem names the encoding."""
    kind = "application/zip" if "datasets" in path else "application/json"
    body = cut(ENCODERS[encoding](b'{"model": "x"}' * 100))
    headers = {"Content-Encoding": encoding, "Content-Type": kind}
    problem(httpx.post(api.url + path, content=body, headers=headers), 400, "Content-Encoding", encoding)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A gzip file of 2 GiB of zeros, built from one repeated compressed MiB because compressing all
    takes long.
    """
    zeros, crc = bytes(MIB), 0
    compressor = zlib.compressobj(9, wbits=-15)
    block = compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)
    for _ in range(2048):
        crc = zlib.crc32(zeros, crc)
    header, last_block = gzip.compress(b"")[:10], compressor.flush()
    return header + 2048 * block + last_block + struct.pack("<II", crc, 2048 * MIB)


@pytest.mark.timing
@pytest.mark.parametrize("path", ["/v1/samples", "/v1/upscales", "/v1/trainings", "/v1/datasets?name=x"])
def test_a_decompression_bomb_is_stopped_at_the_limit(api: BareApi, bomb: bytes, path: str) -> None:
    """Decoding stops at the size limit of the decoded body with 413, at little cost of memory and
    CPU.
    """
    kind = "application/zip" if "datasets" in path else "application/octet-stream"
    rss, cpu = rss_bytes(api.process.pid), cpu_seconds(api.process.pid)
    with watched(api.url) as latencies:
        response = httpx.post(api.url + path, content=bomb, headers={"Content-Encoding": "gzip", "Content-Type": kind})
    problem(response, 413)
    assert latencies.worst < STALL_S
    assert cpu_seconds(api.process.pid) < cpu + 1
    assert rss_bytes(api.process.pid) < rss + 80 * MIB


@pytest.mark.timing
def test_many_empty_members_are_refused(api: BareApi) -> None:
    """A gzip file of a million empty members is rejected in under 0.5 s of CPU time."""
    cpu = cpu_seconds(api.process.pid)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    response = httpx.post(f"{api.url}/v1/samples", content=gzip.compress(b"") * 1_000_000, headers=headers)
    problem(response, 400, "members")
    assert cpu_seconds(api.process.pid) < cpu + 0.5


# --- the decoder ---


def _decoded(pieces: list[bytes], encoding: str, limit: int = 1 << 30) -> tuple[bytes, list[int]]:
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def read() -> tuple[bytes, list[int]]:
        decoded, sizes = b"", []
        reader = DecodedReceive(receive, encoding, limit)
        while True:
            message = await reader()
            decoded += message["body"]
            sizes.append(len(message["body"]))
            if not message["more_body"]:
                assert (await reader())["type"] == "http.disconnect"
                return decoded, sizes

    return asyncio.run(read())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, MIB])
@pytest.mark.parametrize("step", [1000, 1 << 24])
def test_decoded_blocks_are_the_whole_body(encoding: str, size: int, step: int) -> None:
    """The decoded body is complete and comes in blocks of bounded size, however the encoded body is
    cut.
    """
    generator = np.random.default_rng(size)
    for data in (bytes(size), generator.bytes(size), generator.integers(0, 3, size, np.uint8).tobytes()):
        for encode in (ENCODERS["gzip"],) if encoding == "gzip" else (ENCODERS["deflate"], _raw_deflate):
            body = encode(data)
            decoded, sizes = _decoded([body[at : at + step] for at in range(0, len(body), step)], encoding)
            assert decoded == data
            assert max(sizes) <= 600_000


def test_an_empty_body_needs_no_encoding() -> None:
    """An empty body is valid with any encoding, because some clients send the header without a
    body.
    """
    assert _decoded([b""], "gzip")[0] == b""


def test_input_beyond_the_limit_is_not_decoded() -> None:
    """Encoded input that exceeds the limit without any output, such as an endless gzip header, is
    rejected.
    """
    endless = b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 5000
    with pytest.raises(MalformedError, match="1000"):
        _decoded([endless], "gzip", 1000)


def test_a_client_that_leaves_is_noticed() -> None:
    """A disconnect in the middle of a body raises ClientDisconnect."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(DecodedReceive(receive, "gzip", 10)())


def test_headers_name_one_encoding() -> None:
    """Repeated headers and lists count as one list, of which at most one entry is an encoding."""
    name = b"content-encoding"
    assert content_encoding([(b"content-type", b"gzip")]) == ""
    assert content_encoding([(name, b"identity"), (name, b" GZip ,")]) == "gzip"
    for wrong in ([(name, b"gzip"), (name, b"deflate")], [(name, b"br")]):
        with pytest.raises(UnsupportedMediaError):
            content_encoding(wrong)
