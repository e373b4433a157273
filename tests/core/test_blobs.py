"""Blob stores in a folder and in an S3 bucket behave alike."""

import contextlib
import errno
import logging
import os
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import httpx
import pytest

from core import s3_blobs
from core.blobs import Blobs, BlobsUrlError, open_blobs
from core.cleanup import Cleanup
from core.jobs.records import new_id
from core.jobs.store import JobStore
from core.s3_blobs import S3Blobs
from core.settings import Settings
from core.startup import StartupError, check_blobs
from core.storage import ObjectStoreError
from tests.http_servers import serving
from tests.object_store import CREDENTIALS, client, moto_endpoint, new_bucket, new_store

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


SERVERS = ["moto", pytest.param("seaweedfs", marks=pytest.mark.slow)]


@pytest.fixture(params=SERVERS)
def endpoint(request: pytest.FixtureRequest) -> str:
    """The address of an object store."""
    return moto_endpoint() if request.param == "moto" else str(request.getfixturevalue("seaweedfs"))


@pytest.fixture(params=["folder", *SERVERS])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """An empty blob store."""
    if request.param == "folder":
        return open_blobs(f"file://{tmp_path / 'a folder'}")
    return open_blobs(new_store(None if request.param == "moto" else request.getfixturevalue("seaweedfs")))


@pytest.fixture
def s3(endpoint: str) -> Blobs:
    """An empty blob store in a bucket."""
    return open_blobs(new_store(endpoint))


def test_ranges(blobs: Blobs) -> None:
    """A range is cut at the end of the blob; an empty one has no bytes."""
    blobs.put("jobs/a/1-0", bytes(range(100)))
    assert blobs.get("jobs/a/1-0") == bytes(range(100))
    assert blobs.get("jobs/a/1-0", 10, 20) == bytes(range(10, 20))
    assert blobs.get("jobs/a/1-0", 90) == bytes(range(90, 100))
    assert blobs.get("jobs/a/1-0", None, 5) == bytes(range(5))
    assert blobs.get("jobs/a/1-0", 95, 200) == bytes(range(95, 100))
    assert blobs.get("jobs/a/1-0", 7, 7) == b""


def test_a_missing_blob(blobs: Blobs, tmp_path: Path) -> None:
    """Reading it raises FileNotFoundError; deleting it does nothing."""
    assert not blobs.exists("jobs/a")
    for read in (
        lambda: blobs.get("jobs/a"),
        lambda: blobs.get("jobs/a", 0, 1),
        lambda: blobs.copy_to("x", tmp_path / "x"),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    blobs.delete("jobs/a")
    assert blobs.names("jobs") == blobs.sizes("jobs") == {}
    assert blobs.keys("jobs") == blobs.keys("") == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "jobs/../x"])
def test_keys_outside_of_the_store_are_rejected(blobs: Blobs, key: str) -> None:
    """Such a key raises ValueError."""
    with pytest.raises((ValueError, OSError)):
        blobs.put(key, b"x")


def test_a_listing_has_what_was_just_written(blobs: Blobs) -> None:
    """Nothing is cached: blobs are listed at once after they are written or deleted."""
    for key in ("jobs/a/1-0", "jobs/a/rendered.png", "jobs/ab/items", "notes/n"):
        blobs.put(key, key.encode())
    assert blobs.sizes("jobs") == {"a": len("jobs/a/1-0jobs/a/rendered.png"), "ab": len("jobs/ab/items")}
    assert set(blobs.names("jobs")) == {"a", "ab"}
    assert blobs.keys("jobs/a") == ["jobs/a/1-0", "jobs/a/rendered.png"]
    assert blobs.keys("notes/n") == ["notes/n"]
    blobs.delete("jobs/a")
    blobs.delete("notes/n")
    assert blobs.keys("") == ["jobs/ab/items"]
    assert set(blobs.sizes("")) >= {"jobs"}


def test_a_file_is_stored_and_copied(blobs: Blobs, tmp_path: Path) -> None:
    """A file of several parts comes back with the same bytes."""
    data = os.urandom(s3_blobs._PART_BYTES * 2 + 17)
    (tmp_path / "made").write_bytes(data)
    blobs.take("jobs/a/answer", tmp_path / "made", "image/png")
    blobs.copy_to("jobs/a/answer", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert blobs.get("jobs/a/answer", len(data) - 5, len(data) + 5) == data[-5:]


def test_sweep_keeps_new_blobs(blobs: Blobs) -> None:
    """A blob that was just written is not swept, whatever the age."""
    blobs.put("notes/a", b"x")
    assert blobs.sweep("notes", DAY_S) == 0
    assert blobs.exists("notes/a")


# --- object stores only ---


def test_sweep_waits_for_the_longest_upload(s3: Blobs) -> None:
    """The age of an object counts from the start of its upload, so only much older ones are
    removed.
    """
    s3.put("notes/a", b"x")
    with patch("core.s3_blobs.time.time", return_value=time.time() + s3.upload_s - 60):
        assert s3.sweep("notes", 900) == 0
    with patch("core.s3_blobs.time.time", return_value=time.time() + s3.upload_s + 60):
        assert s3.sweep("notes", 900) == 1
    assert not s3.exists("notes/a")


def test_orphans_in_an_object_store_outlive_the_longest_upload(tmp_path: Path, endpoint: str) -> None:
    """Blobs without a job are removed by the cleanup, but not while an upload may have just ended."""
    settings = Settings(state=tmp_path, blobs_url=new_store(endpoint), sweep_s=1)
    cleanup = Cleanup(settings, JobStore(settings.database), blobs := open_blobs(settings.blobs))
    job_id = f"job_{0:012x}{new_id()[16:]}"
    blobs.put(f"jobs/{job_id}/items", b"x")
    later = cleanup_time = time.time()
    for passed, kept in ((60.0, True), (blobs.upload_s + 60, False)):
        later = cleanup_time + passed
        with patch("core.cleanup.time.time", return_value=later):
            cleanup.remove_orphaned_blobs()
            cleanup.remove_orphaned_blobs()
        assert blobs.exists(f"jobs/{job_id}/items") == kept


def test_an_upload_in_parts_is_one_object_or_nothing(endpoint: str, tmp_path: Path) -> None:
    """An upload that takes too long is aborted and leaves neither an object nor parts."""
    bucket = new_bucket(endpoint)
    s3 = open_blobs(f"s3://{bucket}?endpoint={endpoint}")
    (tmp_path / "made").write_bytes(bytes(s3_blobs._PART_BYTES * 3))
    with (
        patch.object(s3_blobs, "_UPLOAD_TIMEOUT_S", -1.0),
        pytest.raises(OSError, match=r"an upload took|object store"),
    ):
        s3.take("jobs/a/answer", tmp_path / "made")
    assert s3.keys("") == []
    assert not client(endpoint).list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_download_may_take_longer_than_a_request(tmp_path: Path) -> None:
    """The time-out of a request is for one part of a large object, and not for all of it."""
    content = os.urandom(1 << 20)

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send_headers(200, len(content))

        def do_GET(self) -> None:
            first, last = 0, len(content) - 1
            if wanted := self.headers["Range"]:
                first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self._send_headers(206 if wanted else 200, len(part), f"bytes {first}-{last}/{len(content)}")
            with contextlib.suppress(OSError):  # the client may give up
                for start in range(0, len(part), 1 << 17):
                    self.wfile.write(part[start : start + (1 << 17)])
                    time.sleep(0.15)

        def _send_headers(self, status: int, size: int, content_range: str = "") -> None:
            self.send_response(status)
            headers = {"Content-Length": str(size), "ETag": '"1"', "Last-Modified": formatdate(0, usegmt=True)}
            for name, value in ({**headers, "Content-Range": content_range} if content_range else headers).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    with (
        serving(server),
        patch.object(s3_blobs, "_REQUEST_TIMEOUT_S", 1),
        patch.object(s3_blobs, "_PART_BYTES", 1 << 18),
    ):
        blobs = S3Blobs(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}", retries=0)
        blobs.copy_to("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_the_number_of_requests_does_not_follow_the_number_of_objects() -> None:
    """Sizes, times and deletions of many objects take one or two requests."""
    s3 = open_blobs(new_store())  # in moto's server, whose log has them
    for number in range(30):
        s3.put(f"jobs/{number % 7}/{number}", b"x" * number)
    seen: list[str] = []

    class Requests(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler, log = Requests(), logging.getLogger("werkzeug")
    log.addHandler(handler)
    level, log.level = log.level, logging.INFO
    try:
        assert sum(s3.sizes("jobs").values()) == sum(range(30))
        s3.names("jobs")
        assert len(seen) == 2
        s3.delete("jobs")
        assert len(seen) == 4
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert s3.keys("") == []


def test_a_signed_link_reads_the_blob_without_keys(s3: Blobs, tmp_path: Path) -> None:
    """The link gives the whole blob or a range, with the media type that it was stored with."""
    (tmp_path / "made").write_bytes(b"0123456789")
    s3.take("jobs/a/rendered.png", tmp_path / "made", "image/png")
    link = s3.signed_url("jobs/a/rendered.png", 60)
    assert link is not None
    assert "X-Amz-Expires=60" in link
    whole, part = httpx.get(link), httpx.get(link, headers={"Range": "bytes=2-4"})
    assert (whole.content, whole.headers["content-type"]) == (b"0123456789", "image/png")
    assert (part.status_code, part.content) == (206, b"234")


def test_errors_are_os_errors_that_name_no_address() -> None:
    """What fails raises OSError with a message that clients may read."""
    blobs = S3Blobs("s3://bucket?endpoint=http://127.0.0.1:9", retries=0)
    with pytest.raises(OSError, match="the object store failed") as raised:
        blobs.put("a", b"x")
    assert "127.0.0.1" not in str(raised.value)
    lost = Mock(side_effect=FileNotFoundError("Object at location a not found: NoSuchUpload"))
    with patch("obstore.put", lost), pytest.raises(ObjectStoreError, match="lost a part of an upload"):
        blobs.put("a", b"x")
    full = SimpleNamespace(put=lambda *_arguments, **_options: (_ for _ in ()).throw(RuntimeError("XMinioStorageFull")))
    with patch("obstore.put", full.put), pytest.raises(OSError, match="is full") as raised:
        blobs.put("a", b"x")
    assert raised.value.errno == errno.ENOSPC


# --- start ---


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://example.com/x", "neither file:/// nor s3://"),
        ("blobs", "neither file:/// nor s3://"),
        ("s3://", "not of the form s3://BUCKET/PREFIX"),
        ("s3://bucket?endpont=http://x", "not of the form"),
        ("s3://key:secret@bucket/x", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_other_urls_are_rejected(url: str, wanted: str, tmp_path: Path) -> None:
    """The error says what would work, and has no secret."""
    with pytest.raises(BlobsUrlError, match=wanted):
        open_blobs(url)
    with pytest.raises(StartupError, match="REVERIE_BLOBS_URL") as raised:
        check_blobs(Settings(state=tmp_path, blobs_url=url))
    assert "secret" not in str(raised.value)


def test_the_bucket_is_tried_at_start(tmp_path: Path, endpoint: str) -> None:
    """A usable bucket passes; a missing one and one that cannot be reached stop the start."""
    check_blobs(Settings(state=tmp_path, blobs_url=new_store(endpoint)))
    for url in (
        f"s3://no-such-bucket/x?endpoint={endpoint}",
        f"s3://{new_bucket(endpoint)}?endpoint=http://127.0.0.1:9",
    ):
        with pytest.raises(StartupError, match=r"cannot be used.*check REVERIE_BLOBS_URL, the bucket"):
            check_blobs(Settings(state=tmp_path, blobs_url=url))


def test_links_need_an_object_store(tmp_path: Path) -> None:
    """A folder has no links."""
    with pytest.raises(StartupError, match="REVERIE_PRESIGNED_URL_S needs an object store"):
        check_blobs(Settings(state=tmp_path, presigned_url_s=60))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """Without the extra the error says what to install."""
    with (
        patch.dict("sys.modules", {"core.s3_blobs": None}),
        pytest.raises(StartupError, match=r"requirements/s3\.lock"),
    ):
        check_blobs(Settings(state=tmp_path, blobs_url="s3://bucket"))
