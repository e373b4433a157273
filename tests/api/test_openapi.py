"""Responses of the service conform to its OpenAPI description."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from api.schemas.operations import RESPONSES
from core.catalog.operations import OPERATIONS
from core.imaging.pictures import png
from tests.api.helpers import FAULTY, MODEL, TINY, b64, encode_image, problem
from tests.datasets import add_digits
from tests.stack import ROOT, Stack

DIGITS = Path(__file__).parents[1] / "fixtures" / "digits-images-idx3-ubyte.gz"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
ABOUT_A_TRAINING = {"POST /v1/trainings/{job_id}/publish"}
"""Operations on a training that does not exist in these tests, so that none of their requests
succeeds.
"""

URL_FIELDS = {"image_url", "mask_url", "webhook"}
MOST = {"count": 20, "n": 20, "size": 4, "steps": 12, "draws": 20, "k": 50, "seconds": 0.01}
"""The largest values that the tests send: larger ones are valid but would occupy the worker for
long.
"""


def _bounded(value: Any) -> Any:
    """Return a request body with large numbers of rows and steps reduced."""
    if isinstance(value, dict):
        return {name: _smaller(name, _bounded(inner)) for name, inner in value.items()}
    return value


def _smaller(name: str, value: Any) -> Any:
    large = name in MOST and type(value) in {int, float} and MOST[name] < value <= 100_000
    return MOST[name] if large else value


def _granted(case: Any, files: dict[str, bytes]) -> None:
    """Replace generated names by those of existing models, datasets and versions.

    Images replace URLs, which lead nowhere.
    """
    if isinstance(case.body, dict):
        fields = {name: value for name, value in case.body.items() if name not in URL_FIELDS}
        case.body = {**_pictures_of(case.operation.path), **fields}
    if case.operation.label == "POST /v1/trainings":
        recipe = {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1, "batch_size": 100}}
        case.body = {"family": "vae", "dataset": "for-descriptions", "name": "described", "recipe": recipe}
    elif case.operation.label == "POST /openai/v1/fine_tuning/jobs":
        recipe = {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1, "batch_size": 100}}
        case.body = {"model": "vae", "training_file": "for-descriptions", "suffix": "described", "recipe": recipe}
    elif case.operation.label == "POST /openai/v1/images/generations":
        case.body = {"model": MODEL, "prompt": "a digit", "n": 2, "size": "56x56"}
    elif case.operation.label == "PATCH /v1/models/{name}":
        case.path_parameters, case.body = {"name": MODEL}, {"version": "1"}
    elif case.operation.label == "PATCH /v1/datasets/{name}":
        case.path_parameters, case.body = {"name": "for-descriptions"}, {"shared": True}
    elif case.operation.path.removeprefix("/v1/") in RESPONSES and isinstance(case.body, dict) and "model" in case.body:
        listed = _schema(case.operation)["properties"]["model"]["examples"]
        known = [name for name in listed if name in files] or listed  # other tests may have trained more
        case.body["model"] = known[len(repr(case.body)) % len(known)]
    elif case.operation.label == "POST /v1/models/{name}/versions":
        file = (ROOT / "checkpoints" / MODEL / "1" / "model.safetensors").read_bytes()
        form = case.media_type == "multipart/form-data"
        case.path_parameters, case.body = {"name": MODEL}, {"file": file} if form else file


def _pictures_of(path: str) -> dict[str, Any]:
    """Return placeholders of the images that a route needs, which `_pictured` replaces."""
    operation = next((one for one in OPERATIONS if path == f"/v1/{one.path}"), None)
    if operation is None or not operation.inputs:
        return {}
    if operation.codes:
        return {"codes": [[0.0, 0.0]]}
    images: dict[str, Any] = {"image": ""} if operation.tiled else {"images": [""] * len(operation.images)}
    return images | {one.name: "" for one in operation.shared}


def _schema(operation: Any) -> dict[str, Any]:
    """Return the schema of an operation's JSON body."""
    name = operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    found: dict[str, Any] = operation.schema.raw_schema["components"]["schemas"][name]
    return found


def _npz(codes: np.ndarray) -> bytes:
    """Codes as an NPZ file."""
    file = io.BytesIO()
    np.savez(file, codes=codes)
    return file.getvalue()


def _pictured(case: Any, files: dict[str, bytes]) -> None:
    """Replace generated text, bytes and numbers by real images, files and codes."""
    if case.operation.label == "POST /openai/v1/images/edits":
        transparent = Image.new("LA", (8, 8), (100, 0))
        transparent.putpixel((0, 0), (100, 255))
        case.body = {"model": TINY, "image": encode_image(transparent)}
    elif case.operation.label == "POST /openai/v1/files":
        case.body = {"file": DIGITS.read_bytes(), "purpose": "fine-tune", "name": "described-file"}
    elif isinstance(case.body, dict) and "codes" in case.body:
        codes = np.zeros((3, 2))
        case.body["codes"] = _npz(codes) if case.media_type == "multipart/form-data" else codes.tolist()
    elif isinstance(case.body, dict) and "images" in case.body:
        file = files.get(str(case.body.get("model")), files[MODEL])
        form = case.media_type == "multipart/form-data"
        case.body["images"] = [file if form else b64(file) for _ in case.body["images"][:4]]
        if "mask" in case.body:
            half = np.frombuffer(bytes(32) + b"\xff" * 32, np.uint8).reshape(1, 8, 8)
            case.body["mask"] = png(half) if form else b64(png(half))
    elif isinstance(case.body, dict) and "image" in case.body:
        case.body["image"] = files[MODEL] if case.media_type == "multipart/form-data" else b64(files[MODEL])
    elif case.operation.label == "POST /v1/datasets":  # a named dataset may have to be fetched
        case.media_type, case.body = "multipart/form-data", {"file": DIGITS.read_bytes(), "name": "described"}


@pytest.fixture
def files(digit: bytes) -> dict[str, bytes]:
    """Images by the model that takes them."""
    small = png(np.full((1, 8, 8), 100, np.uint8))
    return {name: digit if one == MODEL else small for one in (MODEL, FAULTY, TINY) for name in (one, f"{one}@1")}


@pytest.mark.parametrize(
    ("valid", "invalid"), [pytest.param(2, 1, id="few"), pytest.param(8, 12, id="many", marks=pytest.mark.slow)]
)
def test_every_response_is_one_that_the_description_has(
    stack: Stack, files: dict[str, bytes], subtests: pytest.Subtests, valid: int, invalid: int
) -> None:
    """Generated requests get only the statuses, content types and bodies that the description has,
    and never a 500.

    `valid` and `invalid` are the numbers of requests by operation; those without a body get fewer.
    """
    add_digits(stack, "for-descriptions")
    description = schemathesis.openapi.from_url(f"{stack.url}/openapi.json")
    operations = [
        found.ok() if isinstance(found, Ok) else pytest.fail(str(found.err()))
        for found in description.get_all_operations()
    ]
    assert len(operations) >= 18
    for operation in operations:
        with subtests.test(operation.label):
            good = _try(operation, GenerationMode.POSITIVE, valid if operation.body else 1 + valid // 4, files)
            if operation.body and operation.label not in ABOUT_A_TRAINING:
                assert good & {200, 201, 202}  # valid requests succeed
        if operation.body or operation.query:
            with subtests.test(f"{operation.label}, gone wrong"):
                _try(operation, GenerationMode.NEGATIVE, invalid if operation.body else 1 + invalid // 4, {})


def _try(operation: Any, mode: GenerationMode, examples: int, files: dict[str, bytes]) -> set[int]:
    """Send `examples` generated requests; return their statuses."""
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def sent(case: Any) -> None:
        case.body = _bounded(case.body)
        if re.fullmatch(r"\d+(\.\d+)?", str((case.headers or {}).get("Request-Timeout"))):
            case.headers["Request-Timeout"] = "60"  # a short deadline is a 504, which counts as an error
        if files:
            _granted(case, files)
            _pictured(case, files)
        response = case.call(headers={"Prefer": "wait=5"}, timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    sent()
    return statuses


def test_the_examples_work(client: httpx.Client) -> None:
    """Every example body of the description gets 200."""
    paths = client.get("/openapi.json").json()["paths"]
    tried = 0
    for path, methods in paths.items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in body:
            response = client.post(path, json=body["example"])
            assert response.status_code == 200, response.text
            tried += 1
    assert tried == len(OPERATIONS)


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _references(part: Any) -> Iterator[str]:
    """Yield every `$ref` in a part of the description."""
    if isinstance(part, list):
        for one in part:
            yield from _references(one)
    elif isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for one in part.values():
            yield from _references(one)


def test_the_description_is_one(client: httpx.Client) -> None:
    """The description is valid OpenAPI, its references resolve, and operations have their limits
    and options.
    """
    description = client.get("/openapi.json").json()
    schemathesis.openapi.from_dict(description).validate()
    samples = description["paths"]["/v1/samples"]["post"]
    assert "65536" in samples["description"]
    schemas = description["components"]["schemas"]
    assert samples["operationId"] == "create_samples"
    assert samples["requestBody"]["content"]["application/json"]["schema"] == _reference("SamplesBody")
    fields = schemas["SamplesBody"]["properties"]
    assert fields["model"]["type"] == "string"
    assert {FAULTY, TINY, MODEL} <= set(fields["model"]["examples"])  # other tests may have trained more
    assert "enum" not in fields["model"]
    options = sorted(one["$ref"] for one in fields["options"]["anyOf"])
    assert options == sorted(_reference(f"{family}SamplesOptions")["$ref"] for family in ("Faulty", "Tiny", "Vae"))
    assert "temperature" in schemas["VaeSamplesOptions"]["properties"]
    assert "images" not in fields
    assert {"energies", "unit"} <= set(schemas["EnergiesResponse"]["properties"])
    for path, methods in description["paths"].items():
        for described in methods.values():
            query = {one["name"] for one in described.get("parameters", ()) if one["in"] == "query"}
            for body in described.get("requestBody", {}).get("content", {}).values():
                name = body["schema"].get("$ref", "").rpartition("/")[2]
                assert not query & set(schemas.get(name, {}).get("properties", {})), path
    assert "securitySchemes" not in description["components"]
    assert "HTTPValidationError" not in str(description)
    references = list(_references(description))
    assert {
        "#/components/schemas/TrainingBody",
        "#/components/schemas/ModelChange",
        "#/components/schemas/JobResponse",
    } <= set(references)
    for reference in references:
        found = description
        for step in reference.removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
    openapi_spec_validator.validate(description)
    operations = [described for methods in description["paths"].values() for described in methods.values()]
    assert all(described["summary"] and described["tags"] for described in operations)
    assert len({described["operationId"] for described in operations}) == len(operations)


def test_links_lead_to_operations(client: httpx.Client) -> None:
    """Jobs, trainings and datasets have OpenAPI links, whose operations and parameters exist."""
    paths = client.get("/openapi.json").json()["paths"]
    operations = {one["operationId"]: one for methods in paths.values() for one in methods.values()}
    links = {
        (name, status): response["links"]
        for name, operation in operations.items()
        for status, response in operation["responses"].items()
        if "links" in response
    }
    assert {"get_job", "get_job_result", "cancel_job"} <= links["create_samples", "202"].keys()
    assert "pause_training" in links["create_training", "202"]
    assert "get_dataset" in links["create_dataset", "201"]
    for found in links.values():
        for link in found.values():
            declared = {parameter["name"] for parameter in operations[link["operationId"]]["parameters"]}
            assert link["parameters"].keys() <= declared


def test_responses_of_operations_are_as_modelled(client: httpx.Client, digit: bytes) -> None:
    """The response models have every field that the operations return."""
    picture = b64(digit)
    for path, model in RESPONSES.items():
        body: dict[str, Any] = {"model": MODEL, "seed": 1}
        if path == "upscales":
            body = {"image": picture, "seed": 1}
        elif path == "inpaintings":
            small = np.full((1, 8, 8), 100, np.uint8)
            half = np.frombuffer(bytes(32) + b"\xff" * 32, np.uint8).reshape(1, 8, 8)
            body = {"model": TINY, "seed": 1, "images": [b64(png(small))], "mask": b64(png(half))}
        elif path == "decodings":
            body["codes"] = [[0.0, 0.0]]
        elif path == "interpolations":
            body["images"] = [picture, picture]
        elif path not in {"samples", "manifold"}:
            body["images"] = [picture]
        response = client.post(f"/v1/{path}", json=body, headers={"Accept": "application/json", "Prefer": "wait=60"})
        assert response.status_code == 200, response.text
        model.model_validate(response.json())
        assert set(response.json()) <= set(model.model_fields), path


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/samples", "POST"),
        ("/v1/jobs/none", "DELETE, GET, HEAD"),
        ("/v1/datasets/none", "DELETE, GET, HEAD, PATCH"),
        ("/healthz", "GET, HEAD"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(client: httpx.Client, path: str, allowed: str) -> None:
    """A method that a path does not have is 405, with the allowed ones in `Allow`."""
    response = client.put(path)
    assert response.headers["allow"] == allowed
    problem(response, 405, allowed)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/jobs", "/v1/me", "/v1/models/none/versions/1", "/v1/families"])
def test_unknown_query_parameters_are_refused(client: httpx.Client, path: str) -> None:
    """An unknown query parameter is 422, which names it."""
    for response in (client.get(f"{path}?colour=red"), client.post("/v1/samples?colour=red", json={"model": MODEL})):
        assert problem(response, 422, "colour")["errors"][0]["field"] == "query.colour"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/trainings", "/v1/datasets"])
def test_unknown_cursors_are_refused(client: httpx.Client, path: str) -> None:
    """An unknown cursor is 422, rather than an empty page."""
    assert problem(client.get(f"{path}?after=none"), 422, "none")["errors"][0]["field"] == "query.after"


@pytest.mark.parametrize(
    "query", ["jobs?model=M%C3%9D", "jobs?kind=%C3%A4", "jobs?after=%D9%A1", "trainings?model=%C3%9D"]
)
def test_letters_that_the_description_excludes_are_refused(client: httpx.Client, query: str) -> None:
    """A filter or cursor with a letter or digit outside of ASCII is 422."""
    problem(client.get(f"/v1/{query}"), 422)


def test_an_integer_without_end_is_named(client: httpx.Client) -> None:
    """An integer of 5000 digits in a JSON body is 400."""
    number = b"1" * 5000
    json = {"Content-Type": "application/json"}
    for path, words in (("/v1/trainings", "5000 digits"), ("/v1/samples", "infinity"), ("/v1/datasets", "infinity")):
        problem(client.post(path, content=b'{"seed": ' + number + b"}", headers=json), 400, words)
