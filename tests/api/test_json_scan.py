"""Large JSON is scanned and rejected before costly parsing, and error responses stay small."""

from collections.abc import Callable, Iterator

import httpx
import orjson
import pytest

from api import errors as api_errors
from api import json_scan
from api.errors import MAX_DETAIL, MAX_ERRORS, respond
from api.json_scan import CostlyJsonError
from tests.api.attack import MIB, STALL_S, BareApi, cpu_seconds, rss_bytes, watched
from tests.api.helpers import MODEL, b64, problem

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    """An API process alone."""
    with BareApi(tmp_path_factory.mktemp("json")) as running:
        yield running


COSTLY: dict[str, Callable[[], bytes]] = {
    "unknown keys": lambda: b"{" + b",".join(b'"k%d":1' % number for number in range(2_000_000)) + b"}",
    "empty lists": lambda: b'{"model":"x","a":[' + b",".join([b"[]"] * 10_000_000) + b"]}",
    "nested": lambda: b'{"model":"x","a":' + b"[" * 15_000_000 + b"]" * 15_000_000 + b"}",
    "images": lambda: b'{"model":"x","images":[' + b",".join([b'""'] * 10_000_000) + b"]}",
    "numbers": lambda: b'{"model":"x","a":[' + b",".join([b"1"] * 15_000_000) + b"]}",
    "one wide character": lambda: '{"model":"x","a":"😀'.encode() + b"a" * (31 * MIB) + b'"}',
    "one wide escape": lambda: rb'{"model":"x","a":"\ud83d\ude00' + b"a" * (31 * MIB) + b'"}',
    "escapes": lambda: b'{"model":"x","a":"' + rb"\/" * (15 * MIB) + b'"}',
}
"""Bodies by name, each created only for its test."""


@pytest.mark.timing
@pytest.mark.parametrize("path", ["/v1/samples", "/v1/upscales"])
@pytest.mark.parametrize("kind", COSTLY)
def test_costly_json_is_refused_unparsed(api: BareApi, kind: str, path: str) -> None:
    """JSON that would be costly to parse is rejected at little cost, while other requests are
    served.
    """
    body = COSTLY[kind]()
    rss, cpu = rss_bytes(api.process.pid), cpu_seconds(api.process.pid)
    with watched(api.url) as latencies:
        response = httpx.post(api.url + path, content=body, headers=JSON, timeout=60)
    problem(response, 400, "JSON", '{"model"')
    assert len(response.content) < 4000
    assert latencies.worst < STALL_S
    assert cpu_seconds(api.process.pid) < cpu + 1
    assert rss_bytes(api.process.pid) < rss + 100 * MIB


@pytest.mark.timing
def test_a_form_is_no_way_around(api: BareApi) -> None:
    """The JSON values in the fields of a form are limited together."""
    fields = {f"f{number}": f"[{','.join(['[]'] * 15_000)}]" for number in range(200)}
    rss = rss_bytes(api.process.pid)
    with watched(api.url) as latencies:
        response = httpx.post(f"{api.url}/v1/samples", data=fields, files={"images": b"x"}, timeout=60)
    problem(response, 400, "values")
    assert latencies.worst < STALL_S
    assert rss_bytes(api.process.pid) < rss + 100 * MIB


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("chunked", [False, True])
def test_control_routes_take_little(api: BareApi, method: str, chunked: bool) -> None:
    """Control routes take at most 64 KiB of JSON, with or without Content-Length, and few errors
    are listed.
    """
    path = {"POST": "/v1/trainings", "PATCH": "/v1/models/x"}[method]

    def send(body: bytes) -> httpx.Response:
        return httpx.request(method, api.url + path, content=iter([body]) if chunked else body, headers=JSON)

    problem(send(b'{"a": "' + b"x" * (64 << 10) + b'"}'), 413, "65536")
    for body in (b"[" * 65_000, b'{"a":' + b"9" * 60_000 + b"}", b'{"recipe":{' + b'"a":1,' * 9000 + b'"b":1}}'):
        response = send(body)
        assert response.status_code in {400, 404, 422}, response.text[:300]
        assert len(response.content) < 4000
    many = send(b'{"recipe":{' + b",".join(b'"k%d":1' % number for number in range(5000)) + b"}}")
    assert many.status_code == 422
    assert len(many.json()["errors"]) <= MAX_ERRORS


def test_a_thousand_images_are_still_read(client: httpx.Client, digit: bytes) -> None:
    """A large body of 1024 images with escaped slashes and wrapped base64 is accepted."""
    text = b64(digit)
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    images = [f"data:image/png;base64,{lines}"] * 1024
    body = orjson.dumps({"model": MODEL, "seed": 1, "images": images}).replace(b"/", rb"\/")
    assert len(body) > json_scan.SCAN_BYTES
    response = client.post("/v1/encodings", content=body, headers=JSON)
    assert response.status_code == 200, response.text[:300]
    assert len(response.json()["mean"]) == 1024


def test_the_scan_counts_at_the_limits() -> None:
    """Exactly `MAX_VALUES` values are accepted, and an escape that spans two blocks is found."""
    pad = b" " * json_scan.SCAN_BYTES
    json_scan.scan([pad, b"," * json_scan.MAX_VALUES])
    with pytest.raises(CostlyJsonError):
        json_scan.scan([pad, b"," * json_scan.MAX_VALUES + b"["])
    for at in range(MIB - 3, MIB + 3):
        text = b"x" * at + rb"\u0041" + b"x" * 10
        with pytest.raises(CostlyJsonError, match="escapes"):
            json_scan.scan([text])
    json_scan.scan([b"x" * MIB + b"\\"])
    assert json_scan.loads(b'{"a": "\\u00e9"}') == {"a": "é"}


def test_a_problem_is_small() -> None:
    """The number of errors in a problem and the length of its texts are limited."""
    errors = [{"field": "f" * 10_000, "detail": "d" * 10_000}] * 100
    body = orjson.loads(respond("id", api_errors.problem(422, "x", "d" * 1_000_000, errors=errors)).body)
    assert len(body["errors"]) == MAX_ERRORS
    assert len(body["detail"]) == MAX_DETAIL
    assert len(orjson.dumps(body)) < 16_000


# --- forms ---


@pytest.mark.parametrize("path", ["/v1/encodings", "/v1/upscales", "/v1/datasets?name=x", "/v1/models/x/versions"])
@pytest.mark.parametrize(
    "parameters",
    [
        f"boundary={'b' * 50_000}",
        f"boundary={'b' * 71}",
        f"boundary={'b' * 257}",
        "boundary=",
        "x=y",
        f"charset=undefined; boundary=b; x={'y' * 30}",
        f"x={'y' * 50_000}; boundary=b",
        'charset="a\x01b"; boundary=b',
    ],
)
def test_a_form_with_a_strange_header_is_refused(api: BareApi, path: str, parameters: str) -> None:
    """A form with an invalid boundary or charset is 400."""
    headers = [(b"Content-Type", f"multipart/form-data; {parameters}".encode())]
    body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n'
    problem(httpx.post(api.url + path, content=body, headers=headers), 400)
