"""Studio with the shipped models: each of them in the areas that can use it, and the screenshots of
`docs/studio.md`.

`make screenshots` makes these anew. They are compared by the mean colours of blocks, so that
neither the edges of letters nor a duration of another length make a difference, but a panel
elsewhere does.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from core.imaging.pictures import png
from tests.stack import ROOT, Stack
from tests.studio.test_paint import paint
from tests.studio.visits import DESK, PHONE, Service, StudioVisit, needs_chromium, visit
from tests.uploads import DIGITS

pytestmark = [needs_chromium, pytest.mark.slow]

FOLDER = ROOT / "docs" / "images" / "studio"
REMAKE = os.environ.get("REMAKE_SCREENSHOTS") == "1"
MAX_BYTES = 120_000
BLOCK = 30
"""Side of the blocks whose mean colours are compared, in pixels."""
MAX_DIFFERENCE = 20
MAX_SHARE = 0.03
"""A screenshot is out of date if more than this share of its blocks differ by more than
`MAX_DIFFERENCE` of 255.
"""

DIGIT_MODELS = ("bihm-mnist", "ebgan-mnist", "ebgan-pt-mnist", "vae-mnist", "vae-mnist-2d")
VECTOR_MODELS = ("bihm-dna", "bihm-mushrooms")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the shipped checkpoints, a dataset of digits, a training and some jobs."""
    folder = tmp_path_factory.mktemp("shipped")
    with Stack(folder, checkpoints=str(ROOT / "checkpoints"), sync_timeout_s="60") as stack:
        with httpx.Client(base_url=stack.url, timeout=120) as client:
            form = {"name": "digits", "validation": "0.1", "test": "0.1"}
            client.post("/v1/datasets", data=form, files={"file": DIGITS.read_bytes()}).raise_for_status()
        yield Service(stack.url)


@pytest.fixture
def client(shipped: Service) -> Iterator[httpx.Client]:
    """An HTTP client of the service with the shipped checkpoints."""
    with httpx.Client(base_url=shipped.url, timeout=120) as opened:
        yield opened


# --- each model in each area that can use it ---


@pytest.mark.parametrize("model", [*DIGIT_MODELS, *VECTOR_MODELS])
def test_draw(browser: Browser, shipped: Service, model: str) -> None:
    """Each model draws, and again with another value of its first option that is a choice."""
    with visit(browser, shipped) as visited:
        page = visited.open(f"/draw?model={model}&count=16")
        expect(page.locator(".gallery-cell")).to_have_count(16)
        expect(page.locator(".problem, .field-error:not(:empty)")).to_have_count(0)
        choice = page.locator("#options .form .segment input:not(:checked)")
        if choice.count() > 0:
            choice.first.check(force=True)
            expect(page.get_by_text(re.compile("16 in "))).to_be_visible()
        expect(page.locator(".problem")).to_have_count(0)
        page.locator(".gallery-cell").first.click()
        expect(page.get_by_text("Picture 0 of seed 1")).to_be_visible()
        visited.check_accessibility()
        visited.check_on_a_phone(f"shipped-draw-{model}")


@pytest.mark.parametrize("model", [*DIGIT_MODELS, *VECTOR_MODELS])
def test_plane(browser: Browser, shipped: Service, model: str) -> None:
    """The codes of each model are decoded: by dragging, by sliders, or as a film."""
    with visit(browser, shipped) as visited:
        page = visited.open(f"/plane?model={model}&tab=sliders")
        slider = page.locator(".slider input").first
        expect(slider).to_be_visible()
        wait_for_drawing(page, ".decoded")
        before = page.locator(".decoded").first.evaluate("canvas => canvas.toDataURL()")
        slider.focus()
        page.keyboard.press("End")
        page.wait_for_function("old => document.querySelector('.decoded').toDataURL() !== old", arg=before)
        expect(page.locator(".problem")).to_have_count(0)
        visited.check_accessibility()
        visited.shoot(f"shipped-sliders-{model}")


def test_states_of_layers(browser: Browser, shipped: Service) -> None:
    """The sliders of each layer follow its states; a new code keeps their order, and the address keeps the code."""
    with visit(browser, shipped) as visited:
        page = visited.open("/plane?model=bihm-mnist&seed=3")
        request = page.locator("pre")
        for layer, size in (("0", 300), ("1", 200)):
            page.get_by_role("combobox", name="layer").select_option(layer)
            expect(page.get_by_role("button", name=f"Show all {size}")).to_be_visible()
            wait_for_drawing(page, ".decoded")
            names = page.locator(".slider .field-name").all_inner_texts()
            before = request.inner_text()
            picture = page.locator(".decoded").evaluate("canvas => canvas.toDataURL()")
            page.keyboard.press("n")
            expect(request).not_to_have_text(before)
            page.wait_for_function("old => document.querySelector('.decoded').toDataURL() !== old", arg=picture)
            assert page.locator(".slider .field-name").all_inner_texts() == names
            visited.shoot(f"shipped-states-{layer}")
        chosen = request.inner_text()
        page.reload()
        expect(request).to_have_text(chosen)
        wait_for_drawing(page, ".decoded")
        expect(page.locator(".problem")).to_have_count(0)
        visited.check_on_a_phone("shipped-states")
        page.get_by_role("button", name="Options").click()
        visited.check_accessibility()
        visited.shoot("shipped-states-phone-options")


def test_paint(browser: Browser, shipped: Service) -> None:
    """Every model of digits reads the painted one, and those that can fill in its mask do so."""
    with visit(browser, shipped) as visited:
        page = visited.open("/paint")
        for model in DIGIT_MODELS:
            row = page.get_by_role("article", name=model, exact=True)
            expect(row.get_by_role("img", name="Encoding")).to_be_visible()
            if model != "bihm-mnist":  # it reconstructs nothing
                expect(row.get_by_role("img", name="Reconstruction")).to_be_visible()
            if row.get_by_text("log-likelihood").count() > 0:
                expect(row).to_contain_text(re.compile(r"−[\d.]+ ± [\d.]+ nats"))
            if row.get_by_text("energy").count() > 0:
                expect(row).to_contain_text(re.compile(r"energy\s*−?[\d.]+"))
        expect(page.locator(".problem")).to_have_count(0)
        visited.check_accessibility()
        visited.shoot("shipped-paint")
        fills = page.get_by_label("Model of the inpaintings")
        page.get_by_role("radio", name="mask", exact=True).check()
        paint(page, page.get_by_role("application"), (0.3, 0.6), (0.7, 0.6), (0.3, 0.8), (0.7, 0.8))
        for model in fills.locator("option").all_inner_texts() if fills.count() > 0 else [""]:
            if model:
                fills.select_option(model)
            expect(page.get_by_role("img", name="Inpainting 8 of 8")).to_be_visible()
            expect(page.get_by_role("progressbar", name="Inpainting")).to_have_count(0)
            expect(page.locator(".problem")).to_have_count(0)
            visited.shoot(f"shipped-inpainting-{model}")


def test_enlarge(browser: Browser, shipped: Service) -> None:
    """The bundled picture is enlarged by every method."""
    with visit(browser, shipped) as visited:
        page = visited.open("/enlarge?view=side")
        page.get_by_role("button", name="Try the bundled picture").click()
        methods = page.locator(".method-name")
        for method in methods.all():
            method.locator("input").check()
        for name in methods.all_inner_texts():
            expect(page.get_by_role("button", name=f"Download {name.strip()}")).to_be_visible(timeout=180_000)
        expect(page.locator(".problem")).to_have_count(0)
        visited.check_accessibility()
        visited.shoot("shipped-enlarge")
        page.get_by_role("radio", name="divider").check()
        visited.check_on_a_phone("shipped-enlarge")


def test_compare(browser: Browser, shipped: Service) -> None:
    """Four models of digits stand side by side; the address without models shows the first two of
    one size.
    """
    with visit(browser, shipped) as visited:
        page = visited.open(f"/compare?models={','.join(DIGIT_MODELS[:4])}&seed=3")
        for model in DIGIT_MODELS[:4]:
            expect(page.get_by_role("img", name=f"16 samples of {model}@1, seed 3")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("shipped-compare")
        visited.open("/compare")
        expect(page.get_by_role("img", name=re.compile("16 samples of"))).to_have_count(2)
        visited.open(f"/compare?models={','.join(VECTOR_MODELS)}")
        expect(page.get_by_role("img", name=re.compile("16 samples of"))).to_have_count(2)
        expect(page.locator(".problem")).to_have_count(0)
        visited.check_on_a_phone("shipped-compare-vectors")


# --- the screenshots of docs/studio.md ---


@dataclass(frozen=True)
class Screenshot:
    """A picture of an area: its name, address and theme, and how to bring the page to what it
    shows.
    """

    name: str
    path: str
    prepare: Callable[[StudioVisit, httpx.Client], None]
    theme: str = "light"
    size: tuple[int, int] = DESK


def draw(visited: StudioVisit, _client: httpx.Client) -> None:
    """Two rows of requests, and a selected picture."""
    expect(visited.page.locator(".gallery-cell")).to_have_count(64)
    visited.page.locator(".gallery-cell").nth(9).click()
    expect(visited.page.locator(".history-entry")).to_have_count(1)


def plane(visited: StudioVisit, _client: httpx.Client) -> None:
    """The manifold, and a code that was dragged to."""
    expect(visited.page.get_by_role("img", name="The manifold of")).to_be_visible()
    wait_for_drawing(visited.page, ".plane-picture canvas")


def painted(visited: StudioVisit, _client: httpx.Client) -> None:
    """A painted digit with a mask, what the models say about it, and how one of them fills it in."""
    page = visited.page
    page.get_by_role("radio", name="mask", exact=True).check()
    paint(page, page.get_by_role("application"), (0.25, 0.68), (0.75, 0.68), (0.25, 0.85), (0.75, 0.85))
    expect(page.get_by_role("img", name="Inpainting 8 of 8")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Inpainting")).to_have_count(0)
    expect(page.locator(".reading dd").filter(has_text="…")).to_have_count(0)


def enlarge(visited: StudioVisit, _client: httpx.Client) -> None:
    """The bundled picture before and after."""
    page = visited.page
    page.get_by_role("button", name="Try the bundled picture").click()
    expect(page.get_by_role("button", name="Download statistics")).to_be_visible(timeout=180_000)
    expect(page.get_by_role("button", name="Download bicubic")).to_be_visible(timeout=180_000)


def train(visited: StudioVisit, client: httpx.Client) -> None:
    """A training that has ended: its curves and previews."""
    recipe = {"config": {"hidden": [128], "latents": 8}, "training": {"epochs": 24, "batch_size": 50}}
    body = {"family": "vae", "dataset": "digits", "name": "digits-vae", "recipe": recipe}
    training = client.post("/v1/trainings", json={**body, "evaluation": {"count": 100, "k": 10}}).json()
    visited.open(f"/train?run={training['id']}")
    expect(visited.page.get_by_role("status").filter(has_text="succeeded")).to_be_visible(timeout=180_000)
    expect(visited.page.get_by_role("img", name="Samples after epoch 24")).to_be_visible()
    expect(visited.page.locator(".chart canvas").first).to_be_visible()


def data(visited: StudioVisit, _client: httpx.Client) -> None:
    """A page of pictures of a dataset, of which one is chosen."""
    expect(visited.page.get_by_role("img", name="Picture 23 of digits")).to_be_visible()


def models(visited: StudioVisit, client: httpx.Client) -> None:
    """The cards of the shipped models."""
    for model in client.get("/v1/models").json()["data"]:
        if model["name"].startswith("digits-"):
            client.delete(f"/v1/models/{model['name']}").raise_for_status()
    visited.page.reload()
    expect(visited.page.locator(".sheet img")).to_have_count(len(DIGIT_MODELS) + len(VECTOR_MODELS) + 1)


def jobs(visited: StudioVisit, client: httpx.Client) -> None:
    """A running job, one that waits, and others that have ended."""
    for job in client.get("/v1/jobs?limit=100").json()["data"]:
        client.post(f"/v1/jobs/{job['id']}/cancel")
        client.delete(f"/v1/jobs/{job['id']}")
    later = {"Prefer": "respond-async"}
    client.post("/v1/samples", json={"model": "vae-mnist", "count": 36, "seed": 3}, headers=later)
    client.post("/v1/inpaintings", json={"model": "bihm-mnist", "count": 4, "seed": 1, **masked()}, headers=later)
    client.post("/v1/samples", json={"model": "bihm-mnist", "count": 2000, "seed": 1}, headers=later)
    page = visited.page
    expect(page.get_by_role("article", name="samples vae-mnist")).to_contain_text("succeeded")
    page.get_by_role("article", name="samples vae-mnist").get_by_role("button", name="Show").click()
    expect(page.get_by_role("img", name="Result of samples")).to_be_visible()


def masked() -> dict[str, object]:
    """Return the fields of an image, a bar, and of a mask that hides its lower half."""
    image, mask = np.zeros((2, 1, 28, 28), np.uint8)
    image[0, 4:24, 12:16] = mask[0, 14:] = 255
    encoded = [base64.b64encode(png(pixels)).decode() for pixels in (image, mask)]
    return {"images": encoded[:1], "mask": encoded[1]}


def compare(visited: StudioVisit, _client: httpx.Client) -> None:
    """Three models and one seed."""
    expect(visited.page.get_by_role("img", name=re.compile("16 samples of"))).to_have_count(3)


def wait_for_drawing(page: Page, canvas: str) -> None:
    """Wait until a canvas is not black."""
    page.wait_for_function(
        """selector => {
          const canvas = document.querySelector(selector);
          if (canvas === null) return false;
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.some((value, index) => index % 4 < 3 && value > 0);
        }""",
        arg=canvas,
    )


SCREENSHOTS = [
    Screenshot("draw", "/draw?model=vae-mnist&seed=3", draw),
    Screenshot("plane", "/plane?model=vae-mnist-2d&z=-0.7,0.9", plane, "dark"),
    Screenshot("paint", "/paint", painted),
    Screenshot("enlarge", "/enlarge?method=bicubic,statistics", enlarge, "dark"),
    Screenshot("train", "/train", train),
    Screenshot("data", "/data?name=digits&image=23", data),
    Screenshot("models", "/models", models),
    Screenshot("jobs", "/jobs", jobs, "dark"),
    Screenshot("compare", "/compare?models=vae-mnist,bihm-mnist,ebgan-pt-mnist&seed=3", compare),
    Screenshot("phone-draw", "/draw?model=vae-mnist&seed=3", draw, "light", PHONE),
    Screenshot("phone-plane", "/plane?model=vae-mnist-2d&z=-0.7,0.9", plane, "dark", PHONE),
]


@pytest.mark.parametrize("wanted", SCREENSHOTS, ids=lambda wanted: wanted.name)
def test_screenshots_are_current(
    browser: Browser, shipped: Service, client: httpx.Client, tmp_path: Path, wanted: Screenshot
) -> None:
    """A picture of the documentation shows what the page shows; `make screenshots` makes it anew."""
    with visit(browser, shipped, wanted.size) as visited:
        visited.page.emulate_media(color_scheme="dark" if wanted.theme == "dark" else "light", reduced_motion="reduce")
        visited.open(wanted.path)
        wanted.prepare(visited, client)
        visited.page.mouse.move(0, 0)
        time.sleep(0.5)  # tooltips and transitions end
        shown = visited.page.screenshot()
        visited.errors.clear()  # a model that draws no samples has no sheet: Chromium logs the status 404
    file = FOLDER / f"{wanted.name}.webp"
    (tmp_path / f"{wanted.name}.png").write_bytes(shown)
    if REMAKE:
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_small(Image.open(BytesIO(shown)), file)
    share = differing(Image.open(BytesIO(shown)), Image.open(file))
    assert share <= MAX_SHARE, f"{share:.1%} of {file.name} are out of date: run `make screenshots`, and look at it"


def write_small(picture: Image.Image, file: Path) -> None:
    """Write a WebP with at most `MAX_BYTES`, in the best quality that this allows."""
    for quality in range(90, 30, -10):
        picture.save(file, "webp", quality=quality, method=6)
        if file.stat().st_size <= MAX_BYTES:
            return
    raise AssertionError(f"{file.name} is larger than {MAX_BYTES} bytes")


def differing(one: Image.Image, other: Image.Image) -> float:
    """Return the share of blocks whose mean colours differ; 1 for pictures of different sizes."""
    if one.size != other.size:
        return 1.0
    size = (one.width // BLOCK, one.height // BLOCK)
    means = [
        np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX), np.int16) for picture in (one, other)
    ]
    return float((np.abs(means[0] - means[1]).max(axis=2) > MAX_DIFFERENCE).mean())
