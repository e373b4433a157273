"""Hostile requests by name, each limited in number and time.

`attacks.py` sends them from a separate process.

An attack gets the service's address, what was prepared for it, and the time to stop. It yields the
outcome of each of its requests: a status or the name of an error.

This file has more than 400 lines because each attack is a function of its own.
"""

import asyncio
import contextlib
import io
import json
import resource
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import httpx

MIB = 1 << 20
MODEL, CHAIN = "vae-mnist-2d", "bihm-mnist"
TIMEOUT_S = 20.0
KEYS = tuple(f"key-{number}" for number in range(20))  # API keys of a service that is attacked by the `KEYED` attacks
KEYED = {"event-streams"}  # attacks on a service with API keys


def bearer(key: str) -> dict[str, str]:
    """Return the headers that authenticate with an API key; no header if the key is empty."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _head(path: str, media: str, size_bytes: int, more: str = "") -> bytes:
    """Return the head of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media}", f"Content-Length: {size_bytes}"]
    return "\r\n".join([*lines, *([more] if more else []), "", ""]).encode()


@dataclass(frozen=True)
class Target:
    """A service on this machine, what was prepared on it, and when the attack must end.

    `jobs`: an unfinished job of each key, or one without keys.
    """

    url: str
    dataset: str
    result: str
    jobs: list[str]
    until: float

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port.

        Raises ValueError for another machine.
        """
        parts = urlparse(self.url)
        if parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise ValueError("attacks go to this machine alone")
        return parts.hostname, parts.port or 80

    @property
    def over(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() >= self.until


Attack = Callable[[Target], Iterator[str]]
ATTACKS: dict[str, tuple[str, Attack]] = {}  # by name: its row in the table of results, and the function


def attack(name: str, words: str) -> Callable[[Attack], Attack]:
    """Add a function to the attacks, under its name."""

    def register(function: Attack) -> Attack:
        ATTACKS[name] = (words, function)
        return function

    return register


def posted(target: Target, path: str, content: bytes, media: str, *, times: int = 20) -> Iterator[str]:
    """Yield the statuses of one request, repeated until the time is up, at most `times`."""
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S) as client:
        for _ in range(times):
            if target.over:
                return
            try:
                yield str(client.post(path, content=content, headers={"Content-Type": media}).status_code)
            except httpx.HTTPError as error:
                yield type(error).__name__


def raw(target: Target, pieces: Iterator[bytes]) -> str:
    """Return the status line of the response to raw bytes, or how the connection ended."""
    try:
        with socket.create_connection(target.address, timeout=TIMEOUT_S) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    connection.sendall(piece)
            return connection.recv(64).split(b"\r\n")[0].decode("latin-1") or "closed"
    except OSError as error:
        return type(error).__name__


# --- 1: heads ---


@attack("long-url", "1 · a URL of 20 MB")
def _long_url(target: Target) -> Iterator[str]:
    for _ in range(20):
        if target.over:
            return
        yield raw(target, iter([b"GET /", *[b"a" * MIB] * 20, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"]))


@attack("long-header", "1 · a header of 20 MB")
def _long_header(target: Target) -> Iterator[str]:
    for _ in range(20):
        if target.over:
            return
        yield raw(target, iter([b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", *[b"a" * MIB] * 20, b"\r\n\r\n"]))


@attack("many-headers", "1 · a million headers")
def _many_headers(target: Target) -> Iterator[str]:
    for _ in range(20):
        if target.over:
            return
        lines = (
            b"".join(b"X%d: a\r\n" % (first + number) for number in range(1000)) for first in range(0, 10**6, 1000)
        )
        yield raw(target, (piece for group in ([b"GET /healthz HTTP/1.1\r\nHost: a\r\n"], lines) for piece in group))


# --- 2: imports ---


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@attack("huge-shape", "2 · an import whose header states 3 million dimensions")
def _huge_shape(target: Target) -> Iterator[str]:
    shape = b"[" + b",".join([b"2"] * 3_000_000) + b"]"
    header = b'{"a":{"dtype":"F32","shape":' + shape + b',"data_offsets":[0,4]}}'
    yield from posted(target, f"/v1/models/{MODEL}/versions", _safetensors(header), "application/octet-stream")


@attack("huge-integers", "2 · an import whose header states integers of 4 000 digits")
def _huge_integers(target: Target) -> Iterator[str]:
    shape = b"[" + b",".join([b"9" * 4000] * 8) + b"]"
    header = b'{"a":{"dtype":"F32","shape":' + shape + b',"data_offsets":[0,4]}}'
    yield from posted(
        target, f"/v1/models/{MODEL}/versions", _safetensors(header), "application/octet-stream", times=200
    )


# --- 3: JSON ---


@attack("json-keys", "3 · 8 MB of unknown keys")
def _json_keys(target: Target) -> Iterator[str]:
    body = json.dumps({"model": MODEL} | {f"k{number:07}": 0 for number in range(500_000)}).encode()
    yield from posted(target, "/v1/encodings", body, "application/json")


@attack("json-lists", "3 · ten million empty lists")
def _json_lists(target: Target) -> Iterator[str]:
    body = b'{"model":"a","images":[' + b",".join([b"[]"] * 10_000_000) + b"]}"
    yield from posted(target, "/v1/encodings", body, "application/json")


@attack("json-nested", "3 · 16 MB of nested lists")
def _json_nested(target: Target) -> Iterator[str]:
    body = b'{"model":"a","options":' + b"[" * (8 * MIB) + b"]" * (8 * MIB) + b"}"
    yield from posted(target, "/v1/encodings", body, "application/json")


@attack("json-control", "3 · the same to a control route")
def _json_control(target: Target) -> Iterator[str]:
    body = b'{"version":[' + b",".join([b"[]"] * 10_000_000) + b"]}"
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S) as client:
        for path, method in [(f"/v1/models/{MODEL}", "PATCH"), ("/v1/trainings", "POST"), ("/v1/datasets", "POST")] * 6:
            if target.over:
                return
            try:
                headers = {"Content-Type": "application/json"}
                yield str(client.request(method, path, content=body, headers=headers).status_code)
            except httpx.HTTPError as error:
                yield type(error).__name__


# --- 4: pictures ---


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@attack("jpeg-segments", "4 · a JPEG of 400 000 segments")
def _jpeg_segments(target: Target) -> Iterator[str]:
    picture = b"\xff\xd8" + (b"\xff\xe1" + struct.pack(">H", 16) + b"Exif\0\0" + bytes(8)) * 400_000 + b"\xff\xd9"
    yield from posted(target, "/v1/upscales", picture, "image/jpeg", times=10)
    yield from posted(target, f"/v1/encodings?model={MODEL}", picture, "image/jpeg", times=10)


@attack("png-chunks", "4 · a PNG of a million chunks")
def _png_chunks(target: Target) -> Iterator[str]:
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    picture = head + _chunk(b"tEXt", b"a\0b") * 1_000_000 + _chunk(b"IDAT", zlib.compress(bytes(29 * 28)))
    picture += _chunk(b"IEND", b"")
    yield from posted(target, "/v1/upscales", picture, "image/png", times=10)
    yield from posted(target, f"/v1/encodings?model={MODEL}", picture, "image/png", times=10)


@attack("tiff-tags", "4 · a TIFF of 65 535 tags")
def _tiff_tags(target: Target) -> Iterator[str]:
    tags = b"".join(struct.pack("<HHII", number, 3, 1, 1) for number in range(65_535))
    picture = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65_535) + tags + struct.pack("<I", 0)
    yield from posted(target, f"/v1/encodings?model={MODEL}", picture, "image/tiff", times=40)


# --- 5: connections ---


@attack("unfinished-bodies", "5 · thirty bodies of 31 MB that do not end")
def _unfinished(target: Target) -> Iterator[str]:
    size = 31 * MIB
    head = _head("/v1/encodings", "application/json", size)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            try:
                connection = stack.enter_context(socket.create_connection(target.address, timeout=5))
                connection.sendall(head)
                for _ in range(30):
                    connection.sendall(bytes(MIB))
                yield "sent"
            except OSError as error:
                yield type(error).__name__
        _wait(target)


@attack("unread-results", "5 · fifteen clients that do not read a result of 23 MB")
def _unread(target: Target) -> Iterator[str]:
    body = json.dumps({"model": MODEL, "count": 30_000, "seed": 1}).encode()
    more = "Accept: application/x-npz\r\nPrefer: wait=60"  # a job would have no result to read
    head = _head("/v1/samples", "application/json", len(body), more)
    with contextlib.ExitStack() as stack:
        for _ in range(15):
            try:
                connection = stack.enter_context(socket.create_connection(target.address, timeout=5))
                connection.sendall(head + body)
                yield "sent"
            except OSError as error:
                yield type(error).__name__
        _wait(target)


def _held_open(target: Target, count: int, prefixes: Sequence[bytes], drip: bytes = b"") -> Iterator[str]:
    """Hold connections open. Each sends a prefix, and then at most one byte per second."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = []
    try:
        for number in range(min(count, hard - 200)):
            if target.over:
                break
            try:
                connection = socket.create_connection(target.address, timeout=1)
                connection.sendall(prefixes[number % len(prefixes)])
                connections.append(connection)
                yield "open"
            except OSError as error:
                yield type(error).__name__
        while drip and not target.over:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(drip)
            time.sleep(1)
        _wait(target)
    finally:
        for connection in connections:
            connection.close()


@attack("idle-connections", "5 · 10 000 connections that say nothing")
def _idle(target: Target) -> Iterator[str]:
    yield from _held_open(target, 10_000, [b""])


@attack("half-headers", "5 · 10 000 connections with half a header")
def _half(target: Target) -> Iterator[str]:
    yield from _held_open(target, 10_000, [b"GET /healthz HTTP/1.1\r\nHost: loc"])


@attack("slow-uploads", "5 · 500 uploads of one byte a second")
def _slow(target: Target) -> Iterator[str]:
    head = _head("/v1/datasets?name=slow", "application/zip", 100_000)
    yield from _held_open(target, 500, [head], b"a")


def _wait(target: Target) -> None:
    while not target.over:
        time.sleep(0.1)


# --- 6 to 9: work ---


async def _together(count: int, send: Callable[[httpx.AsyncClient, int], Any]) -> list[str]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S) as client:
        done = await asyncio.gather(*(send(client, number) for number in range(count)), return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else str(one) for one in done]


def _large_counts(target: Target, timeout_s: float) -> Iterator[str]:
    async def send(client: httpx.AsyncClient, number: int) -> int:
        body = {"model": CHAIN, "count": 65_536, "seed": number}
        response = await client.post(f"{target.url}/v1/samples", json=body, timeout=timeout_s)
        if response.status_code == 503:
            await asyncio.sleep(1.0)
        return response.status_code

    while not target.over:
        yield from asyncio.run(_together(150, send))


@attack("large-counts", "6 · 150 requests of 65 536 rows, whose clients leave after 5 s")
def _leaving(target: Target) -> Iterator[str]:
    yield from _large_counts(target, 5.0)


@attack("large-counts-stay", "6 · the same, whose clients stay")
def _staying(target: Target) -> Iterator[str]:
    yield from _large_counts(target, TIMEOUT_S)


def _training(target: Target, **more: Any) -> bytes:
    body = {"family": "vae", "dataset": target.dataset, "name": "attacked", **more}
    return json.dumps(body).encode()


@attack("many-gpus", "7 · trainings on 56 GPUs")
def _gpus(target: Target) -> Iterator[str]:
    yield from posted(target, "/v1/trainings", _training(target, gpus=56), "application/json", times=5)
    body = _training(target, gpus=56, dry_run=True)
    yield from posted(target, "/v1/trainings", body, "application/json", times=5)


@attack("huge-network", "8 · dry runs of a network of 600 million parameters")
def _network(target: Target) -> Iterator[str]:
    recipe = {"config": {"hidden": [8192] * 9}}
    body = _training(target, dry_run=True, recipe=recipe)
    yield from posted(target, "/v1/trainings", body, "application/json", times=5)


@attack("event-streams", f"9 · 1 000 streams of events, {1000 // len(KEYS)} of each of {len(KEYS)} keys")
def _streams(target: Target) -> Iterator[str]:
    heads = []
    for key, job in zip(KEYS, target.jobs, strict=True):
        lines = [f"GET /v1/jobs/{job}/events HTTP/1.1", "Host: localhost", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in bearer(key).items()]
        heads.append("\r\n".join([*lines, "", ""]).encode())
    yield from _held_open(target, 1000, heads)


# --- 10 and 11: results and forms ---


@attack("ranges", "10 · one byte of a large result, again and again")
def _ranges(target: Target) -> Iterator[str]:
    async def send(client: httpx.AsyncClient, number: int) -> str:
        while not target.over:
            media = ("application/x-npz", "application/json")[number % 2]
            headers = {"Range": "bytes=0-0", "Accept": media}
            await client.get(f"{target.url}/v1/jobs/{target.result}/result", headers=headers)
        return "done"

    yield from asyncio.run(_together(8, send))


@attack("long-boundary", "11 · a form whose boundary has 50 kB")
def _boundary(target: Target) -> Iterator[str]:
    boundary = "b" * 50_000
    body = f"--{boundary}\r\nContent-Disposition: form-data; name=model\r\n\r\na\r\n--{boundary}--\r\n".encode()
    for path in ("/v1/encodings", "/v1/upscales", "/v1/datasets"):
        yield from posted(target, path, body, f"multipart/form-data; boundary={boundary}", times=20)


@attack("zip64", "11 · a ZIP64 record that contradicts the end record")
def _zip64(target: Target) -> Iterator[str]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", b"")
    data = packed.getvalue()
    end = data.rindex(b"PK\5\6")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 31, 1 << 31, 1 << 40, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    yield from posted(target, "/v1/datasets?name=zip64", data[:end] + record + locator + data[end:], "application/zip")


@attack("long-card", "11 · an import whose card has a summary of 12 MB")
def _card(target: Target) -> Iterator[str]:
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S) as client:
        card = client.get(f"/v1/models/{MODEL}").json()
        file = client.get(f"/v1/models/{MODEL}/versions/{card['version']}/file").content
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    stated = json.loads(header["__metadata__"]["card"])
    header["__metadata__"]["card"] = json.dumps({**stated, "summary": "a" * (12 * MIB), "preview": "broken"})
    body = _safetensors(json.dumps(header).encode(), file[8 + length :])
    yield from posted(target, f"/v1/models/{MODEL}/versions", body, "application/octet-stream")
