"""Versions of a model: activation, export and import."""

from __future__ import annotations

import base64
import io
import struct
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.stack import Stack
from tests.version_files import SHIPPED, import_version, join_file, split_file, with_card, with_other_weights

Change = Callable[[bytes], bytes]
"""Returns a changed copy of a checkpoint file."""


@pytest.fixture(scope="module")
def second(stack: Stack) -> str:
    """The number of a second version of the shipped model."""
    with httpx.Client(base_url=stack.url, timeout=180) as client:
        response = import_version(client, with_other_weights(SHIPPED.read_bytes()))
    assert response.status_code == 201, response.text
    return str(response.json()["version"])


def drawn(client: httpx.Client, model: str) -> tuple[str, list[str]]:
    """Return the version that a sample reports, and its images."""
    response = client.post("/v1/samples", json={"model": model, "seed": 5}).json()
    return response["version"], response["images"]


def test_the_version_that_serves_is_chosen_and_can_be_pinned(client: httpx.Client, second: str) -> None:
    """An imported version is inactive until it is activated; `name@version` selects a version; a
    rollback is another activation.
    """
    assert (second, drawn(client, "vae-mnist-2d")[0]) == ("2", "1")
    pinned = {version: drawn(client, f"vae-mnist-2d@{version}") for version in ("1", second)}
    assert pinned["1"][1] != pinned[second][1]
    for version in (second, "1", second, "1"):
        card = client.patch("/v1/models/vae-mnist-2d", json={"version": version})
        assert (card.status_code, card.json()["version"]) == (200, version)
        assert card.json()["versions"] == ["1", second]
        assert drawn(client, "vae-mnist-2d") == pinned[version]
        listed = client.get("/v1/models/vae-mnist-2d/versions").json()["data"]
        assert [one["version"] for one in listed if one["serves"]] == [version]


def test_an_exported_version_equals_the_imported_file(client: httpx.Client, second: str) -> None:
    """The exported file, whole or by range, is the imported one; importing it again returns the
    same version.
    """
    data = with_other_weights(SHIPPED.read_bytes())
    address = f"/v1/models/vae-mnist-2d/versions/{second}"
    response = client.get(f"{address}/file")
    assert response.content == data
    part = client.get(f"{address}/file", headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, data[8:16])
    again = import_version(client, data)
    assert (again.status_code, again.json()["version"]) == (200, second)
    assert client.get(f"{address}/preview").status_code == 404
    assert client.get(address).json()["card"]["name"] == "vae-mnist-2d"


def test_a_version_without_a_predecessor_serves(client: httpx.Client, stack: Stack) -> None:
    """The first version under a new name becomes active at once; it may be sent as a form."""
    data = with_card(SHIPPED.read_bytes(), name="new-name")
    response = client.post("/v1/models/new-name/versions", files={"file": data}, timeout=180)
    assert (response.status_code, response.json()["version"], response.json()["serves"]) == (201, "1", True), (
        response.text
    )
    assert response.headers["location"] == "/v1/models/new-name/versions/1"
    assert drawn(client, "new-name")[1] == drawn(client, "vae-mnist-2d@1")[1]


def _wrong_shape(data: bytes) -> bytes:
    header, weights = split_file(data)
    name = next(name for name in header if name != "__metadata__" and len(header[name]["shape"]) == 2)
    header[name]["shape"] = header[name]["shape"][::-1]
    return join_file(header, weights)


def _renamed(data: bytes) -> bytes:
    header, weights = split_file(data)
    name = next(name for name in header if name != "__metadata__")
    return join_file({("other" if key == name else key): value for key, value in header.items()}, weights)


def _overlapping(data: bytes) -> bytes:
    header, weights = split_file(data)
    tensors = [message for name, message in header.items() if name != "__metadata__"]
    tensors[0]["data_offsets"] = tensors[1]["data_offsets"]
    return join_file(header, weights)


def _shaped(data: bytes, shape: list[int]) -> bytes:
    header, weights = split_file(data)
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = shape
    return join_file(header, weights)


def _nine_dimensions(data: bytes) -> bytes:
    """Return the file with its first tensor reshaped to nine dimensions."""
    header, _ = split_file(data)
    shape = next(message["shape"] for name, message in header.items() if name != "__metadata__")
    return _shaped(data, [*shape, *[1] * (9 - len(shape))])


def test_a_preview_is_the_sample_sheet(client: httpx.Client) -> None:
    """The sheet of a version with a preview is the preview, and nothing is drawn."""
    data = _previewed(with_card(SHIPPED.read_bytes(), name="with-preview"), base64.b64encode(_png()).decode())
    assert import_version(client, data, "with-preview").status_code == 201
    for address in ("with-preview/sheet", "with-preview@1/sheet", "with-preview/versions/1/preview"):
        assert client.get(f"/v1/models/{address}").content == _png()


def _previewed(data: bytes, preview: str) -> bytes:
    header, weights = split_file(data)
    header["__metadata__"]["preview"] = preview
    return join_file(header, weights)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _data: b"", "truncated"),
        (lambda _data: _png(), "no safetensors file"),
        (
            lambda data: data[:-1],
            "is damaged: Error while deserializing header: incomplete metadata, file not fully covered",
        ),
        (lambda data: data + b"\0", "header: incomplete metadata, file not fully covered"),
        (lambda data: struct.pack("<Q", 17 << 20) + bytes(18 << 20), "its header has 17825792 bytes; at most"),
        (lambda data: _shaped(data, [2] * 3_000_000), "bytes; at most 1048576 are read"),
        (lambda data: _shaped(data, [2] * 300_000), "overflow computing buffer size from shape"),
        (_nine_dimensions, "has 9 dimensions; at most 8"),
        (lambda data: _shaped(data, [10**3999]), "invalid JSON in header: number out of range"),
        (lambda data: with_card(data, summary="x" * 12_000_000), "bytes; at most 1048576 are read"),
        (lambda data: with_card(data, summary="x" * 301), "'summary' of its card has 301 characters; at most 300"),
        (lambda data: with_card(data, figures=[{"name": "nll", "value": "low"}]), "needs a name and a number"),
        (lambda data: with_card(data, provenance={"seed": 10**40}), "'provenance' of its card holds an integer"),
        (lambda data: _previewed(data, "not base64!"), "its preview is not base64"),
        (lambda data: _previewed(data, "aGVsbG8="), "its preview is no whole PNG"),
        (lambda data: struct.pack("<Q", 4) + b"nope", "invalid JSON in header"),
        (lambda data: join_file({"__metadata__": {}}, b""), "carries no card"),
        (_overlapping, "invalid offset for tensor"),
        (lambda data: with_card(data, name="somebody"), "its card is that of 'somebody'"),
        (lambda data: with_card(data, figures=None), "its card lacks figures"),
        (lambda data: with_card(data, family="magic"), "'magic' is not known here"),
        (lambda data: with_card(data, image={"channels": 1, "height": 8, "width": 8}), "is a vae of 1×28×28"),
    ],
)
def test_invalid_version_files_are_rejected(client: httpx.Client, change: Change, message: str) -> None:
    """An invalid file is 422 with the reason, and no job is made."""
    imports: dict[str, str | int] = {"kind": "import", "limit": 100}
    before = client.get("/v1/jobs", params=imports).json()["data"]
    response = import_version(client, change(SHIPPED.read_bytes()))
    assert response.status_code == 422, response.text
    assert message in response.json()["detail"]
    assert client.get("/v1/jobs", params=imports).json()["data"] == before
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrong_shape, "its card requires"),
        (_renamed, "lacks the weights"),
        (lambda data: with_card(data, config={"latents": 3}), "its card requires"),
        (lambda data: with_card(data, operations={}), "lists other operations"),
    ],
)
def test_weights_that_do_not_fit_are_refused(client: httpx.Client, stack: Stack, change: Change, message: str) -> None:
    """A file with a valid header whose weights do not fit its family is rejected by the process
    that loads it.
    """
    before = client.get("/v1/models/vae-mnist-2d").json()["versions"]
    response = import_version(client, change(SHIPPED.read_bytes()))
    assert response.status_code == 422, response.text
    assert message in response.json()["detail"]
    assert client.get("/v1/models/vae-mnist-2d").json()["versions"] == before
    assert not list((stack.state / "state" / "scratch").iterdir())


def test_an_unknown_version_cannot_be_activated(client: httpx.Client, second: str) -> None:
    """An unknown model or version is 404 with those that exist; an invalid body is 422."""
    response = client.patch("/v1/models/vae-mnist-2d", json={"version": "9"})
    assert (response.status_code, "there are: 1, 2" in response.json()["detail"]) == (404, True)
    assert client.patch("/v1/models/nothing", json={"version": "1"}).status_code == 404
    assert client.patch("/v1/models/vae-mnist-2d", json={"version": 1}).status_code == 422
    assert client.get("/v1/models/vae-mnist-2d/versions/9/file").status_code == 404
    assert import_version(client, b"", "Bad Name").status_code == 422


def test_a_version_that_a_worker_cannot_load_does_not_serve(client: httpx.Client, stack: Stack) -> None:
    """Activating a version that a worker cannot load is 409 with the reason; the previous version
    stays active.
    """
    path: Path = stack.state / "state" / "checkpoints" / "vae-mnist-2d" / "7" / "model.safetensors"
    serving = client.get("/v1/models/vae-mnist-2d").json()["version"]
    assert client.patch("/v1/models/vae-mnist-2d", json={"version": serving}).status_code == 200
    path.parent.mkdir(parents=True)
    path.write_bytes(_renamed(SHIPPED.read_bytes()))
    stack.share_state()
    try:
        time.sleep(1.1)
        client.get("/v1/models/vae-mnist-2d/versions/0")  # scans the folder, at most once a second
        response = client.patch("/v1/models/vae-mnist-2d", json={"version": "7"})
        assert response.status_code == 409, response.text
        assert "cannot load vae-mnist-2d@7" in response.json()["detail"]
        assert client.get("/v1/models/vae-mnist-2d").json()["version"] == serving
        assert drawn(client, "vae-mnist-2d")[0] == serving
    finally:
        path.unlink()
        if stack.is_shared:
            stack.versions().hide("vae-mnist-2d", ["7"])
