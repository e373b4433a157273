"""Measure large uploads to a real service: time, and growth of the API's memory.

Command: `python benchmarks/datasets.py`.

Three files of `--gigabytes` each, generated while they are sent: IDX sent raw, the same in a form,
and a ZIP of pictures. Memory is the kernel's count of the API process: its resident set before, and
its peak (VmHWM, set back before each upload). Writes docs/results/datasets.md.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.stack import Stack  # noqa: E402 - the repository is put on the path first

PAGE = ROOT / "docs" / "results" / "datasets.md"
EDGE = 512
BLOCK = 1 << 20
RAW = "application/octet-stream"
BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
END = b"\r\n--b--\r\n"


def idx(size: int) -> Iterator[bytes]:
    """Yield an IDX file of about `size` bytes: images of 28 × 28 pixels, no two alike."""
    count = size // 784
    yield b"\0\0\x08\3" + b"".join(value.to_bytes(4, "big") for value in (count, 28, 28))
    random = np.random.default_rng(0)
    for first in range(0, count, BLOCK // 784):
        yield random.bytes(min(BLOCK // 784, count - first) * 784)


def form(file: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same file as the only part of a multipart form."""
    yield BEGIN
    yield from file
    yield END


def zipped(size: int) -> Iterator[bytes]:
    """Yield a ZIP of about `size` bytes with grey BMPs of 512 × 512 noise.

    A number in the corner makes each of them different.
    """
    noise = np.random.default_rng(0).integers(0, 256, (EDGE, EDGE), dtype=np.uint8)
    buffer = io.BytesIO()

    class Sink(io.RawIOBase):
        """A write-only file for `zipfile` that cannot seek."""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return buffer.write(data)

    with zipfile.ZipFile(Sink(), "w") as archive:  # type: ignore[arg-type]
        for number in range(size // (EDGE * EDGE)):
            noise[0, :4] = np.frombuffer(number.to_bytes(4, "big"), np.uint8)
            with archive.open(f"{number:07}.bmp", "w") as member:
                Image.fromarray(noise).save(member, "BMP")
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def memory(pid: int, what: str) -> float:
    """Return the memory of a process in megabytes, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1000


def upload(stack: Stack, name: str, kind: str, body: Callable[[], Iterator[bytes]]) -> dict[str, Any]:
    """Upload a file as a data set; measure the seconds and the memory of the processes."""
    pid, sent, arrived = stack.parts["api"].pid, 0, 0.0

    def counted() -> Iterator[bytes]:
        nonlocal sent, arrived
        for piece in body():
            sent += len(piece)
            yield piece
        arrived = time.monotonic()

    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = memory(pid, "VmRSS")
    started = time.monotonic()
    with httpx.Client(base_url=stack.url, timeout=3600) as client:
        response = client.post("/v1/datasets", params={"name": name}, content=counted(), headers={"Content-Type": kind})
        ended = time.monotonic()
        assert response.status_code == 201, response.text
        made = response.json()
        client.delete(f"/v1/datasets/{name}").raise_for_status()
    return {
        "name": name,
        "gigabytes": sent / 1e9,
        "pictures": sum(made["counts"].values()),
        "upload_s": arrived - started,
        "conversion_s": ended - arrived,
        "before_mb": before,
        "peak_mb": memory(pid, "VmHWM"),
    }


def page(lines: list[dict[str, Any]]) -> str:
    """Return the results page."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    head = f"""# Large uploads

`python benchmarks/datasets.py`, {datetime.now(UTC):%Y-%m-%d}, commit {commit}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.0f} from other
work at the end: times hang on that, memory does not. Client and service run on the same machine, and the client's time to make the
bytes is in the upload's. Memory is that of the API process: its resident set before the upload, and its peak until the answer. The
conversion runs in a process of its own, which is bounded to 2 GiB and steps back for what serves requests.

| upload | GB | pictures | upload, s | conversion, s | API before, MB | peak, MB | growth, MB (must: < 64) |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""  # noqa: E501
    return head + "\n".join(map(row, lines)) + "\n"


def row(one: dict[str, Any]) -> str:
    """Return one line of the table."""
    times = f"{one['upload_s']:.1f} | {one['conversion_s']:.1f}"
    grown = f"{one['before_mb']:.1f} | {one['peak_mb']:.1f} | {one['peak_mb'] - one['before_mb']:.1f}"
    return f"| {one['name']} | {one['gigabytes']:.2f} | {one['pictures']} | {times} | {grown} |"


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each upload (default 1)")
    parser.add_argument("--out", type=Path, default=PAGE, help="default docs/results/datasets.md")
    chosen = parser.parse_args()
    size = int(chosen.gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), log_level="warning")
        (Path(folder) / "state").mkdir()
        try:
            stack.start("queue")
            stack.wait_queue()
            stack.start("api")
            wait(stack)
            lines = [
                upload(stack, "idx-raw", RAW, lambda: idx(size)),
                upload(stack, "idx-form", "multipart/form-data; boundary=b", lambda: form(idx(size))),
                upload(stack, "zip-raw", RAW, lambda: zipped(size)),
            ]
        finally:
            stack.down()
    for line in lines:
        print(json.dumps(line))
    chosen.out.write_text(page(lines))


def wait(stack: Stack) -> None:
    """Wait until the API responds; no worker is needed."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            httpx.get(f"{stack.url}/healthz", timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the API did not come up")


if __name__ == "__main__":
    main()
