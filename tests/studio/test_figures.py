"""How fast Studio is. The figures need an idle machine; docs/results/studio.md has them.

Command: `python -m pytest -s -m slow tests/studio/test_figures.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect

from tests.stack import Stack
from tests.studio.test_plane import wait_for_picture
from tests.studio.visits import DESK, Service, needs_chromium, visit

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.timing]

RECORD_AGES = """
window.ages = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntriesByName("studio-decoding")) window.ages.push(entry.duration);
}).observe({ type: "measure" });
"""

# moves as a hand makes them: Playwright waits for a frame after each of its own
DRAG = """
async ([moves, seconds]) => {
  const square = document.querySelector(".plane-square");
  const { left, top, width, height } = square.getBoundingClientRect();
  const started = performance.now();
  for (let number = 0; number < moves * seconds; number++) {
    const share = number / (moves * seconds);
    const place = { clientX: left + share * width, clientY: top + ((37 * share) % 1) * height };
    square.dispatchEvent(new PointerEvent("pointermove", { ...place, pointerId: 1, bubbles: true }));
    const rest = started + ((number + 1) * 1000) / moves - performance.now();
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)));
  }
  return (performance.now() - started) / 1000;
}
"""

SCROLL = """
async () => {
  const gallery = document.querySelector(".gallery");
  const tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration)))
    .observe({ entryTypes: ["longtask"] });
  let frames = 0;
  const started = performance.now();
  while (performance.now() - started < 5000) {
    await new Promise(requestAnimationFrame);
    gallery.scrollTop += 40;
    frames++;
  }
  return { frames: frames / ((performance.now() - started) / 1000), tasks };
}
"""

RECORD_LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
}).observe({ type: "longtask" });
"""

ADD_FILE_INPUT = """
() => {
  const input = Object.assign(document.createElement("input"), { type: "file", id: "file-of-the-test", hidden: true });
  document.body.append(input);
}
"""

DROP_FILE = """
() => {
  const input = document.querySelector("#file-of-the-test");
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(input.files[0]);
  input.remove();
  const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.querySelector(".drop-zone").dispatchEvent(drop);
}
"""

ENLARGED_WITHIN_MS = 300_000


def report(line: str) -> None:
    """Write a figure to the output, which `-s` shows."""
    sys.stdout.write(f"\n{line}\n")


def test_scrolling_ten_thousand_pictures(browser: Browser, stack: Stack) -> None:
    """At least 50 frames a second, and no task longer than 50 ms. It needs an idle machine."""
    with visit(browser, Service(stack.url), DESK) as visited:
        page = visited.open("/draw?model=vae-mnist-2d&count=10000")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        page.wait_for_timeout(3000)
        measured = page.evaluate(SCROLL)
        report(f"scrolling: {measured['frames']:.1f} frames/s, {len(measured['tasks'])} long tasks")
        assert measured["frames"] >= 50, measured
        assert measured["tasks"] == [], measured


def test_the_first_paint(browser: Browser, stack: Stack) -> None:
    """Of the second visit, with an empty cache, in less than a second."""
    for _ in range(2):
        with visit(browser, Service(stack.url), DESK) as visited:
            page = visited.open("/draw?model=vae-mnist-2d")
            expect(page.locator(".gallery-cell").first).to_be_visible()
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    report(f"first paint: {paint:.0f} ms")
    assert paint < 1000


def test_dragging_for_ten_seconds(browser: Browser, stack: Stack) -> None:
    """At 60 moves a second 30 new pictures a second are shown, 95 % of them at most 50 ms old; no
    request is left.
    """
    moves, seconds = 60, 10
    with visit(browser, Service(stack.url)) as visited:
        page = visited.page
        page.add_init_script(RECORD_AGES)
        visited.open("/plane?model=vae-mnist-2d")
        bounds = page.locator(".plane-square").bounding_box()
        assert bounds is not None
        wait_for_picture(page)
        open_requests: set[Request] = set()

        def begin(request: Request) -> None:
            open_requests.add(request)

        def end(request: Request) -> None:
            open_requests.discard(request)

        page.on("request", begin)
        page.on("requestfinished", end)
        page.on("requestfailed", end)
        page.mouse.move(bounds["x"] + 10, bounds["y"] + 10)
        page.mouse.down()
        page.evaluate("window.ages.length = 0")
        elapsed = page.evaluate(DRAG, [moves, seconds])
        ages = sorted(page.evaluate("window.ages"))
        page.mouse.up()
        page.wait_for_timeout(1000)
        left = [request.url for request in open_requests if "/v1/decodings" in request.url]
        rate, p95 = len(ages) / elapsed, ages[int(0.95 * len(ages))]
        report(f"dragging: {rate:.1f} pictures/s, age p50 {ages[len(ages) // 2]:.1f} ms, p95 {p95:.1f} ms")
        assert elapsed < seconds * 1.1, f"the page takes no {moves} moves a second: {elapsed:.1f} s"
        assert left == []
        assert rate >= 30, f"{rate:.1f} pictures a second, age p95 {p95:.1f} ms"
        assert p95 <= 50, f"{rate:.1f} pictures a second, age p95 {p95:.1f} ms"


def drop_file(page: Page, file: Path) -> None:
    """Drop a file on the area Enlarge.

    A hidden input gives the file to the page by its path: the bytes of a large file, sent as a
    message of the browser's debugger, would stop the page for seconds.
    """
    page.evaluate(ADD_FILE_INPUT)
    page.locator("#file-of-the-test").set_input_files(file)
    page.evaluate(DROP_FILE)


@dataclass
class LongTasks:
    """The longest task of the page's main thread while each action lasts, in ms; at least 50 are
    recorded.
    """

    page: Page
    longest: dict[str, float] = field(default_factory=dict)

    def end(self, action: str) -> None:
        """Add what was recorded since the last action to that of `action`."""
        self.page.wait_for_timeout(300)  # the observer is told later
        tasks = self.page.evaluate("window.longTasks.splice(0)")
        self.longest[action] = max([*tasks, self.longest.get(action, 0)])


def zoom(page: Page, pixels: float) -> None:
    """Turn the wheel over the picture fifteen times."""
    page.mouse.move(500, 500)
    for _ in range(15):
        page.mouse.wheel(0, pixels)
        page.wait_for_timeout(50)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Move from one point to another with the button held."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=30)
    page.mouse.up()


def look_around(page: Page, tasks: LongTasks) -> None:
    """Zoom in and out, pan at two zooms, show all, and hold the key that shows the picture before."""
    zoom(page, -150)
    tasks.end("zoom")
    drag(page, (500, 500), (300, 300))
    tasks.end("pan")
    zoom(page, 150)
    zoom(page, -30)  # the whole picture, a little larger than its preview
    tasks.end("zoom")
    drag(page, (500, 500), (300, 300))
    tasks.end("pan")
    page.keyboard.press("0")
    page.keyboard.down(" ")
    page.wait_for_timeout(200)
    page.keyboard.up(" ")
    tasks.end("show before")


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_twelve_megapixels(browser: Browser, stack: Stack, tmp_path: Path, kind: str) -> None:
    """Nothing that is done with a large photograph stops the page for more than 100 ms at a time.

    Its results have 48 megapixels.
    """
    photograph = tmp_path / f"photograph.{kind}"
    noise = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC).save(photograph, kind)
    with visit(browser, Service(stack.url)) as visited:
        page = visited.page
        page.add_init_script(RECORD_LONG_TASKS)
        visited.open("/enlarge?model=enlarge&scale=2&seconds=0")
        expect(page.get_by_text("Drop or paste a photograph")).to_be_visible()
        tasks = LongTasks(page)
        tasks.end("first paint")
        del tasks.longest["first paint"]
        drop_file(page, photograph)
        expect(page.get_by_text("4000 × 3000")).to_be_visible()
        tasks.end("drop")
        look_around(page, tasks)
        for method in ("nearest", "smooth"):
            page.get_by_role("checkbox", name=method).check()
            expect(page.get_by_role("button", name=f"Download {method}")).to_be_visible(timeout=ENLARGED_WITHIN_MS)
        tasks.end("enlarge")
        look_around(page, tasks)
        divider = page.get_by_role("slider", name="Divider").bounding_box()
        assert divider is not None
        x, y = divider["x"] + divider["width"] / 2, divider["y"] + divider["height"] / 2
        drag(page, (x, y), (x - 300, y))
        drag(page, (x - 300, y), (x + 300, y))
        tasks.end("divider")
        page.get_by_role("radio", name="side by side").check()
        expect(page.locator(".pane")).to_have_count(3)
        tasks.end("side by side")
        look_around(page, tasks)
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="Download nearest").click()
        tasks.end("download")
        with Image.open(downloaded.value.path()) as saved:
            assert saved.size == (8000, 6000)
        report(f"12 megapixels, {kind}: longest tasks in ms: {tasks.longest}")
        assert max(tasks.longest.values()) <= 100, tasks.longest
