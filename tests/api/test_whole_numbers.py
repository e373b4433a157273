"""Integers of requests may be written as floats: 4.0 gives the same bytes as 4."""

from __future__ import annotations

import base64

import httpx
import pytest

from tests.datasets import add_digits
from tests.stack import Stack

MODEL = "vae-mnist-2d"
JSON = {"Content-Type": "application/json"}


def sent(client: httpx.Client, path: str, body: str, **headers: str) -> httpx.Response:
    """Return the response to a JSON body given as text."""
    return client.post(path, content=body.encode(), headers={**JSON, **headers})


def same(response: httpx.Response, other: httpx.Response) -> None:
    """Check that two responses are 200 with the same content."""
    assert (response.status_code, other.status_code) == (200, 200), response.text[:300] + other.text[:300]
    assert response.content == other.content


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/samples", '"seed": 1{0}, "count": 4{0}'),
        ("/v1/samples", '"seed": 9007199254740992{0}, "count": 1'),
        ("/v1/manifold", '"seed": 1{0}, "size": 3{0}'),
        ("/v1/manifold", '"seed": 1, "options": {{"size": 3{0}}}'),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "image/png"])
def test_the_bytes_are_those_of_the_integer(client: httpx.Client, path: str, fields: str, accept: str) -> None:
    """Count, seed and integer options may be written as floats."""
    both = [f'{{"model": "{MODEL}", {fields.format(end)}}}' for end in (".0", "")]
    same(*(sent(client, path, body, Accept=accept) for body in both))


def test_options_on_pictures_and_fields_of_forms(client: httpx.Client, digit: bytes) -> None:
    """Integer options may be written as floats in JSON, in forms and in the query."""
    encoded = base64.b64encode(digit).decode()
    for path, field in (("energies", "draws"), ("likelihoods", "k"), ("interpolations", "steps")):
        pictures = [encoded] * (2 if path == "interpolations" else 1)
        same(
            *(
                client.post(f"/v1/{path}", json={"model": MODEL, "seed": 1, "images": pictures, field: n})
                for n in (4.0, 4)
            )
        )
    forms = [{"model": MODEL, "seed": f"1{end}", "draws": f"4{end}"} for end in (".0", "")]
    same(*(client.post("/v1/energies", data=form, files={"images": digit}) for form in forms))
    png = {"Content-Type": "image/png"}
    same(*(client.post("/v1/energies", params=form, content=digit, headers=png) for form in forms))


def test_the_quality_and_scale_of_an_enlarged_picture(client: httpx.Client, digit: bytes) -> None:
    """`quality` and `scale` may be written as floats, in JSON and in a form."""
    fields = [{"model": "enlarge", "format": "jpeg", "quality": q, "scale": s} for q, s in ((80.0, 2.0), (80, 2))]
    image = base64.b64encode(digit).decode()
    same(*(client.post("/v1/upscales", json={**one, "image": image}) for one in fields))
    same(*(client.post("/v1/upscales", data=one, files={"image": digit}) for one in fields))


@pytest.mark.parametrize("value", ["4.5", "true", '"4"', "null", "1e300", "[4]", "-1.0"])
@pytest.mark.parametrize(("path", "field"), [("samples", "count"), ("samples", "seed"), ("manifold", "size")])
def test_another_number_is_refused(client: httpx.Client, path: str, field: str, value: str) -> None:
    """Any other value of an integer field is 422, which names the field; a null seed is valid."""
    response = sent(client, f"/v1/{path}", f'{{"model": "{MODEL}", "{field}": {value}}}')
    if (field, value) == ("seed", "null"):
        assert response.status_code == 200
        return
    assert response.status_code == 422, response.text
    assert field in response.json()["detail"]


@pytest.mark.parametrize("value", ["1e400", "NaN", "Infinity", "-1e999"])
def test_numbers_that_json_does_not_have_are_rejected(client: httpx.Client, value: str) -> None:
    """NaN, infinity and numbers that overflow are rejected in operations and trainings."""
    assert sent(client, "/v1/samples", f'{{"model": "{MODEL}", "count": {value}}}').status_code == 400
    for field in (f'"gpus": {value}', f'"recipe": {{"seed": {value}}}', f'"evaluation": {{"k": {value}}}'):
        body = f'{{"family": "vae", "dataset": "x", "name": "x", {field}}}'
        assert sent(client, "/v1/trainings", body).status_code in {400, 422}


def training_body(end: str) -> str:
    """Return a dry run with every kind of integer that a training takes; `end` is appended to
    each.
    """
    recipe = (
        f'{{"seed": 3{end}, "config": {{"hidden": [16{end}, 8{end}], "latents": 2{end}}},'
        f' "training": {{"epochs": 2{end}, "batch_size": 50{end}}}}}'
    )
    return (
        f'{{"family": "vae", "dataset": "whole-digits", "name": "whole", "dry_run": true, "gpus": 1{end},'
        f' "evaluation": {{"count": 40{end}, "k": 20{end}}}, "recipe": {recipe}}}'
    )


def test_a_recipe_takes_whole_numbers(client: httpx.Client, stack: Stack) -> None:
    """The resolved recipe has integers where the request has whole floats."""
    add_digits(stack, "whole-digits")
    response = sent(client, "/v1/trainings", training_body(".0"), Prefer="wait=60")
    assert response.status_code in {200, 202}, response.text
    text = response.text
    for written in ('"seed":3', '"hidden":[16,8]', '"latents":2', '"epochs":2', '"batch_size":50'):
        assert f"{written}," in text or f"{written}}}" in text, (written, text)


def test_an_idempotency_key_stands_for_both(client: httpx.Client) -> None:
    """A retry that writes 4 as 4.0 is the same request for an Idempotency-Key."""
    key = {"Idempotency-Key": "whole-numbers"}
    bodies = [f'{{"model": "{MODEL}", "seed": 1{end}, "count": 2{end}}}' for end in ("", ".0")]
    same(*(sent(client, "/v1/samples", body, **key) for body in bodies))
