"""Inpaintings over HTTP: images, one mask for all of them, and several results per image."""

import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import png
from tests.api.helpers import (
    MODEL,
    TINY,
    b64,
    create_job,
    decode_image,
    decode_image_base64,
    encode_image,
    finished_job,
    problem,
)

SIDE = 8
PATH = "/v1/inpaintings"


def picture(seed: int) -> bytes:
    """Return a black-and-white image of the size that the family `tiny` takes."""
    return png(np.random.default_rng(seed).integers(0, 2, (1, SIDE, SIDE), np.uint8) * np.uint8(255))


def mask(lines: int = 4, level: int = 255) -> bytes:
    """Return a mask that hides the lowest `lines` lines."""
    pixels = np.zeros((1, SIDE, SIDE), np.uint8)
    if lines:
        pixels[:, -lines:] = level
    return png(pixels)


IMAGES = [picture(0), picture(1)]


def inpainted(client: httpx.Client, /, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Return the response for two images with the lower half hidden; `fields` replace fields of the
    body, None removes one.
    """
    payload = {"model": TINY, "images": [b64(one) for one in IMAGES], "mask": b64(mask()), "seed": 5, **fields}
    return client.post(
        PATH, json={name: value for name, value in payload.items() if value is not None}, headers=headers
    )


def test_each_image_gets_count_results(client: httpx.Client) -> None:
    """Results come image by image, keep the visible pixels, and differ in the hidden ones."""
    body = inpainted(client, count=3).json()
    assert set(body) == {"model", "version", "seed", "images", "binarization"}
    responses = [decode_image_base64(image) for image in body["images"]]
    assert len(responses) == 6
    for index, response in enumerate(responses):
        assert (response[:4] == decode_image(IMAGES[index // 3])[:4]).all()
    assert len({response[4:].tobytes() for response in responses}) == 6


def test_a_result_depends_on_its_row_only(client: httpx.Client) -> None:
    """Result j of image i is row i·count + j and depends only on that row."""
    few = inpainted(client, count=2, images=[b64(IMAGES[0])]).json()["images"]
    many = inpainted(client, count=400, images=[b64(IMAGES[0])]).json()["images"]
    assert many[:2] == few
    first = inpainted(client, count=2).json()["images"]
    assert first[:2] == few


def test_every_way_to_send_one_means_the_same(client: httpx.Client) -> None:
    """Files, base64, a data URL and a mixture of them give the same bytes, as does a job."""
    whole = {"model": TINY, "seed": 5, "count": 2}
    files = [("images", ("a.png", IMAGES[0])), ("images", ("b.png", IMAGES[1]))]
    responses = [
        inpainted(client, count=2),
        inpainted(client, count=2, mask=f"data:image/png;base64,{b64(mask())}"),
        client.post(PATH, data=whole, files=[*files, ("mask", ("mask.png", mask()))]),
        client.post(PATH, data={**whole, "mask": b64(mask())}, files=files),
    ]
    job_id = create_job(client, PATH, **whole, images=[b64(one) for one in IMAGES], mask=b64(mask()))
    job = finished_job(client, job_id)
    assert (job["request"]["count"], job["request"]["images"], job["kind"]) == (2, 2, "inpaintings")
    responses.append(client.get(f"/v1/jobs/{job_id}/result"))
    assert [response.status_code for response in responses] == [200] * 5, [
        response.text[:200] for response in responses
    ]
    assert len({response.content for response in responses}) == 1


def test_a_mask_is_part_of_what_a_key_stands_for(client: httpx.Client) -> None:
    """The mask is part of the content that an Idempotency-Key identifies: another mask under the
    key is rejected.
    """

    def send(hidden: bytes) -> httpx.Response:
        files = [("images", ("a.png", IMAGES[0])), ("mask", ("mask.png", hidden))]
        return client.post(PATH, data={"model": TINY}, files=files, headers={"Idempotency-Key": "inpaint"})

    first = send(mask())
    assert first.status_code == 200, first.text
    assert send(mask()).content == first.content
    problem(send(mask(2)), 422, "another key")


def test_the_grid_has_one_line_an_image(client: httpx.Client) -> None:
    """A PNG has one line of results per image, also as a job's result; NPZ has them in order."""
    grid = decode_image(inpainted(client, {"Accept": "image/png"}, count=5).content)
    assert grid.shape == (2 * SIDE, 5 * SIDE)
    arrays = inpainted(client, {"Accept": "application/x-npz"}, count=5)
    with np.load(io.BytesIO(arrays.content)) as kept:
        pixels = kept["images"]
        assert str(kept["binarization"]) == "threshold"
    assert pixels.shape == (10, 1, SIDE, SIDE)
    assert (grid[SIDE:, 3 * SIDE : 4 * SIDE] == pixels[8, 0]).all()
    payload = {"model": TINY, "images": [b64(one) for one in IMAGES], "mask": b64(mask()), "seed": 5, "count": 5}
    job_id = create_job(client, PATH, **payload)
    finished_job(client, job_id)
    result = client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "image/png"})
    assert (decode_image(result.content) == grid).all()


def test_grey_images_are_binarized_and_the_response_says_how(client: httpx.Client) -> None:
    """Grey images are binarized by a threshold or a seeded draw, which the response names."""
    grey = b64(png(np.full((1, SIDE, SIDE), 100, np.uint8)))
    shown = {}
    for how in ("threshold", "draw"):
        body = inpainted(client, images=[grey], binarization=how).json()
        assert body["binarization"] == how
        shown[how] = decode_image_base64(body["images"][0])[:4]
    assert (shown["threshold"] == 0).all()
    assert set(np.unique(shown["draw"])) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_orientation_is_honoured_in_images_and_masks(client: httpx.Client, kind: str) -> None:
    """Images and masks with an EXIF orientation give the results of upright ones, and list the
    conversion.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif, **({"lossless": True} if kind == "WEBP" else {})}

    def lying(file: bytes) -> str:
        image = Image.fromarray(decode_image(file)).transpose(Image.Transpose.ROTATE_90)
        return b64(encode_image(image, kind, **options))

    turned = inpainted(client, images=[lying(one) for one in IMAGES], mask=lying(mask(3))).json()
    upright = inpainted(client, mask=b64(mask(3))).json()
    conversions = turned.pop("conversions")
    assert turned == upright
    assert len(conversions) == 3
    for name, conversion in zip(("images[0]", "images[1]", "mask"), conversions, strict=True):
        assert conversion.startswith(f"{name}: turned upright")


def test_a_mask_of_any_kind_is_read_as_grey(client: httpx.Client) -> None:
    """A colour mask is converted, which the response lists; 128 is white, 127 is not."""
    colour = encode_image(Image.fromarray(decode_image(mask())).convert("RGB"))
    body = inpainted(client, mask=b64(colour)).json()
    assert body["conversions"] == ["mask: RGB to L"]
    assert body["images"] == inpainted(client, mask=b64(mask(level=128))).json()["images"]
    problem(inpainted(client, mask=b64(mask(level=127))), 422, "mask", "hides nothing")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (lambda: None, ["mask: missing", "8×8", "white is hidden"]),
        (lambda: b64(mask(0)), ["mask", "hides nothing"]),
        (lambda: b64(mask(8)), ["mask", "hides everything"]),
        (lambda: b64(png(np.zeros((1, 28, 28), np.uint8))), ["mask", "28×28", "8×8"]),
        (lambda: [b64(mask())] * 2, ["mask", "2 were sent", "one picture"]),
        (list, ["mask: missing"]),
        (lambda: 7, ["mask", "base64"]),
        (lambda: [7], ["mask", "base64"]),
        (lambda: "%%%", ["mask", "base64"]),
        (lambda: b64(b"no picture"), ["mask", "PNG"]),
    ],
)
def test_a_wrong_mask_is_refused(client: httpx.Client, sent: Callable[[], Any], words: list[str]) -> None:
    """An invalid mask is 422, which says why and what would work."""
    body = problem(inpainted(client, mask=sent()), 422, *words)
    assert [error["field"] for error in body["errors"]] == ["mask"]


def test_two_masks_of_a_form_are_refused(client: httpx.Client) -> None:
    """Two masks, as files or as a file and a field, are rejected."""
    files = [("images", ("a.png", IMAGES[0])), ("mask", ("m.png", mask())), ("mask", ("n.png", mask()))]
    problem(client.post(PATH, data={"model": TINY}, files=files), 422, "mask", "2 were sent")
    problem(client.post(PATH, data={"model": TINY, "mask": b64(mask())}, files=files[:2]), 422, "mask", "2 were sent")


def test_other_bad_requests_are_rejected(client: httpx.Client, digit: bytes) -> None:
    """Missing or wrong images, too many results, a raw body, and a mask for another operation are
    rejected.
    """
    problem(inpainted(client, images=[]), 422, "at least one image")
    problem(inpainted(client, images=[b64(digit)]), 422, "images[0]", "8×8")
    problem(inpainted(client, count=0), 422, "count", "65536")
    problem(inpainted(client, count=40_000), 422, "80000 results", "65536")
    raw = client.post(PATH, params={"model": TINY}, content=IMAGES[0], headers={"Content-Type": "image/png"})
    problem(raw, 422, "mask: missing")
    problem(inpainted(client, model=MODEL), 422, MODEL, "/v1/samples")
    problem(client.post("/v1/samples", json={"model": TINY, "mask": b64(mask())}), 422, "no such field: mask")
    files = [("images", ("a.png", IMAGES[0])), ("mask", ("m.png", mask()))]
    problem(client.post("/v1/encodings", data={"model": TINY}, files=files), 422, "'mask'", "`images`")
    problem(inpainted(client, steps=501), 422, "options.steps", "500")
