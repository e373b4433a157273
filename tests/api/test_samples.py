"""The way of a request: HTTP, queue, model and back."""

import base64
import io

import httpx
import numpy as np
from PIL import Image

MODEL = "vae-mnist-2d"


def test_samples_come_as_json_with_pngs(client: httpx.Client) -> None:
    """Two samples are two PNGs of the model's size, with the seed and the version that made them."""
    answer = client.post("/v1/samples", json={"model": MODEL, "count": 2, "seed": 3})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["version"], body["seed"]) == (MODEL, "1", 3)
    pictures = [Image.open(io.BytesIO(base64.b64decode(image))) for image in body["images"]]
    assert [picture.size for picture in pictures] == [(28, 28)] * 2
    assert np.asarray(pictures[0]).std() > 10  # something is drawn


def test_same_seed_same_bytes(client: httpx.Client) -> None:
    """A row depends on its seed and number alone: not on count, batch-mates or repetition."""
    eight = client.post("/v1/samples", json={"model": MODEL, "count": 8, "seed": 11}).json()["images"]
    four = client.post("/v1/samples", json={"model": MODEL, "count": 4, "seed": 11}).json()["images"]
    many = client.post("/v1/samples", json={"model": MODEL, "count": 2000, "seed": 11}).json()["images"]
    assert eight[:4] == four
    assert many[:8] == eight
    assert len(set(many)) > 1900
