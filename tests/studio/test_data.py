"""The area Data on a real service: datasets are added, looked at page by page, and deleted; bad
files are named.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, FloatRect, Locator, expect

from tests.studio.visits import PHONE, Service, StudioVisit, needs_chromium, visit
from tests.uploads import png

pytestmark = needs_chromium


def pictures(folder: Path, count: int, side: int = 8) -> Path:
    """Fill a folder with PNGs of random pixels; return it."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(3).integers(0, 256, (count, side, side), np.uint8)
    for index, pixels in enumerate(noise):
        (folder / f"{index:04}.png").write_bytes(png(pixels))
    return folder


def bounds(locator: Locator) -> FloatRect:
    """Return where an element is, and its size."""
    box = locator.bounding_box()
    assert box is not None
    return box


def reject(visited: StudioVisit, folder: Path, bad: Path) -> None:
    """Upload a folder with a file that is no picture, then without it under a name that is none."""
    page = visited.page
    expect(page.get_by_role("heading", name="Add a dataset")).to_be_visible()
    visited.check_accessibility()
    page.get_by_label("Folder of a dataset").set_input_files(folder)
    expect(page.get_by_text("151 files")).to_be_visible()
    expect(page.get_by_label("name", exact=True)).to_have_value("noise")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator(".problem")).to_contain_text("bad.png")
    bad.unlink()
    page.get_by_label("Folder of a dataset").set_input_files(folder)
    page.get_by_label("name", exact=True).fill("no spaces")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator(".field-error").filter(has_text=re.compile("."))).to_be_visible()


def test_data(browser: Browser, service: Service, client: httpx.Client, tmp_path: Path) -> None:
    """A folder with a damaged picture is rejected by its name; without it, its pictures are shown
    by split and page.
    """
    folder = pictures(tmp_path / "Noise", 150)
    bad = folder / "bad.png"
    bad.write_bytes(b"no picture")
    with visit(browser, service) as visited:
        page = visited.open("/data")
        reject(visited, folder, bad)
        page.get_by_label("name", exact=True).fill("studio-noise")
        page.get_by_role("button", name="Upload").click()

        expect(page).to_have_url(re.compile("name=studio-noise"))
        visited.errors.clear()  # Chromium's own lines about the status 422
        expect(page.get_by_role("radio", name=re.compile("train"))).to_be_checked()
        train = client.get("/v1/datasets/studio-noise").json()["counts"]["train"]
        assert 100 < train < 150
        expect(page.locator(".picture")).to_have_count(100)
        assert bounds(page.get_by_role("radiogroup", name="Split"))["height"] > 24  # a long page squeezes nothing
        page.get_by_role("button", name="Next").click()
        expect(page.locator(".picture")).to_have_count(train - 100)
        expect(page).to_have_url(re.compile("from=100"))
        pictures_before = bounds(page.locator(".pictures"))
        page.get_by_role("button", name="Picture 101").click()
        expect(page.get_by_role("img", name="Picture 101 of studio-noise")).to_be_visible()
        assert bounds(page.locator(".pictures")) == pictures_before
        visited.check_accessibility()
        visited.shoot("data-pictures")
        page.reload()
        expect(page.get_by_role("img", name="Picture 101 of studio-noise")).to_be_visible()
        page.get_by_role("radio", name=re.compile("^test ")).check()
        expect(page).to_have_url(re.compile("split=test"))

        page.get_by_role("link", name="All datasets").click()
        card = page.get_by_role("article", name="studio-noise")
        expect(card).to_contain_text("8 × 8, grey")
        visited.shoot("data")
        card.get_by_role("link", name="studio-noise").click()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("heading", name="Add a dataset")).to_be_visible()
        expect(card).to_have_count(0)
        assert client.get("/v1/datasets/studio-noise").status_code == 404
        visited.check_on_a_phone("data")


def test_labels(browser: Browser, service: Service, tmp_path: Path) -> None:
    """The labels that were chosen are named, whatever is chosen after them, until they are
    removed.
    """
    for name in ("labels.idx", "digits.idx"):
        (tmp_path / name).write_bytes(b"0")
    with visit(browser, service) as visited:
        page = visited.open("/data")
        page.get_by_text("Options", exact=True).click()
        group = page.get_by_role("group", name="labels of an IDX file")
        group.locator("input").set_input_files(tmp_path / "labels.idx")
        page.get_by_label("Files of a dataset").set_input_files(tmp_path / "digits.idx")
        expect(group).to_contain_text("labels.idx")
        page.get_by_role("radio", name="URL").check()
        page.get_by_role("radio", name="Files").check()
        expect(group).to_contain_text("labels.idx")
        expect(page.locator("summary")).to_contain_text("labels.idx")
        visited.check_accessibility()
        group.get_by_role("button", name="Remove the labels").click()
        expect(group).to_contain_text("none")
        expect(page.get_by_text("labels.idx")).to_have_count(0)


@pytest.mark.slow
def test_archives_and_sources(browser: Browser, service: Service, client: httpx.Client, tmp_path: Path) -> None:
    """Pictures of two sizes are resized when that is asked for; an address that may not be fetched
    is an error.
    """
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for side in (8, 12):
            for file in pictures(tmp_path / str(side), 40, side).iterdir():
                archive.write(file, f"{side}-{file.name}")
    with visit(browser, service) as visited:
        page = visited.open("/data")
        page.get_by_label("Files of a dataset").set_input_files(tmp_path / "mixed.zip")
        page.get_by_role("button", name="Upload").click()
        expect(page.locator(".field-error").filter(has_text="differ in size")).to_be_visible()
        page.get_by_label("resize").fill("10x10")
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_text("10 × 10, grey")).to_be_visible()
        visited.errors.clear()  # Chromium's own line about the status 422
        client.delete("/v1/datasets/mixed").raise_for_status()

        page = visited.open("/data")
        page.get_by_role("radio", name="URL").check()
        page.get_by_label("URL of a ZIP, NPZ or IDX file").fill("http://127.0.0.1:9/pictures.zip")
        page.get_by_label("name", exact=True).fill("elsewhere")
        page.get_by_role("button", name="Fetch").click()
        expect(page.get_by_text("127.0.0.1", exact=False)).to_be_visible()
        visited.errors.clear()


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """Nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/data")
        expect(page.get_by_role("heading", name="Add a dataset")).to_be_visible()
        visited.shoot("data-phone")
        visited.check_width()
