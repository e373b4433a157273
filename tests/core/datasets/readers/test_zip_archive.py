"""ZIP archives from untrusted clients."""

import gzip
import random
import struct
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.datasets.readers import zip_archive
from core.datasets.readers.base import UploadRejectedError
from tests.uploads import UploadConverter, end_of, idx, npz, packed, pictures, png, zip_end, zipped


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "C:\\x.png", "\\\\host\\x.png"]
)
def test_names_that_lead_out_are_refused(converter: UploadConverter, name: str) -> None:
    """Members with absolute or parent paths are rejected, though no member is extracted."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    converter.refused(packed([*zipped(), (info, b"x")]), repr(name), "leads out")


def test_odd_members_are_refused(converter: UploadConverter) -> None:
    """Links, encryption and other compressions than deflate are rejected."""
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    converter.refused(packed([*zipped(), (link, b"/etc/passwd")]), "'link.png'", "symbolic link")
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        converter.refused(packed(zipped(), compression), "'digits/000.png'", "compression")
    secret = bytearray(packed(zipped()))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        secret[secret.index(mark) + offset] |= 1
    converter.refused(bytes(secret), "'digits/000.png'", "encrypted")


def test_bombs_are_rejected_by_their_declared_sizes(converter: UploadConverter) -> None:
    """Uploads that would be too large are rejected with 413 before they are decompressed."""
    limit: dict[str, Any] = {"unpacked_bytes": 1 << 20}
    cases = [
        (packed([*zipped(), ("zeros.png", bytes(2 << 20))]), "its members (13) are"),
        (packed((f"{number}.png", png(np.zeros((200, 200, 3), np.uint8))) for number in range(12)), "12 pictures"),
        (npz(train=np.zeros((12, 400, 400))), "its members (1) are"),
        (gzip.compress(idx(np.zeros((12, 300, 400), np.uint8))), "the file states"),
    ]
    for file, word in cases:
        assert converter.refused(file, word, str(1 << 20), **limit).status == 413
    hidden = packed((f"{number}.png", png(np.zeros((300, 400), np.uint8))) for number in range(12))
    assert converter.refused(hidden, "are 1440000 pixels", resize=(4, 4), **limit).status == 413
    huge = png(np.zeros((8001, 8000), np.uint8))
    assert converter.refused(packed([*zipped(), ("huge.png", huge)]), "'huge.png'", "8000×8001 pixels").status == 413


def test_a_member_larger_than_it_says_is_damaged(converter: UploadConverter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member larger than its stated size is rejected after at most one byte more was
    decompressed.
    """
    reads: list[int] = []
    plain = zipfile.ZipExtFile.read

    def read(file: zipfile.ZipExtFile, n: int = -1) -> bytes:
        reads.append(n)
        return plain(file, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    file = bytearray(packed([("liar.png", bytes(1 << 20))]))
    place = file.index(b"PK\1\2") + 24
    file[place : place + 4] = struct.pack("<I", 100)
    converter.refused(bytes(file), "'liar.png'")
    assert set(reads) == {101}


def test_too_many_members_are_refused_before_their_list_is_read(
    converter: UploadConverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many members are rejected by the number in the end record of ZIP or ZIP64, before the
    directory is read.
    """
    monkeypatch.setattr(zip_archive, "MAX_MEMBERS", 11)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    file = b"PK\3\4" + bytes(12 * 46)
    assert converter.refused(file + zip_end(12, 12 * 46, 4), "12 members", "NPZ or IDX").status == 413
    wide = zip_end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, (12, 12 * 46, 4))
    assert converter.refused(file + wide, "12 members").status == 413


def test_records_that_contradict_the_file_are_refused(converter: UploadConverter) -> None:
    """End records with impossible values, or that contradict ZIP64 or the directory, are
    rejected.
    """
    body, count, length, offset = end_of(packed(zipped()))
    assert sum(converter(body + zip_end(count, length, offset, (count, length, offset)))["counts"].values()) == 12
    full = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    assert sum(converter(body + zip_end(*full, (count, length, offset)))["counts"].values()) == 12
    for wide in ((1 << 40, length, offset), (count, 1 << 40, offset), (count, length, 0), (count - 1, length, offset)):
        error = converter.refused(body + zip_end(count, length, offset, wide), "ZIP64", "contradicts")
        assert error.status == 422
        assert converter.refused(body + zip_end(*full, wide), "the ZIP").status == 422 or wide[2] == 0
    for number in (0, 1, count - 1, count + 1, 60_000):
        assert converter.refused(body + zip_end(number, length, offset), "the ZIP is damaged", "members").status == 422
    assert converter.refused(body + zip_end(count, length - 1, offset + 1), "damaged").status == 422
    assert converter.refused(body + zip_end(count, 1 << 31, offset), "damaged").status == 422
    lost = zip_end(*full, (count, length, offset)).replace(b"PK\6\6", b"PK\6\0")
    assert converter.refused(body + lost, "ZIP64 record").status == 422


def test_a_long_list_behind_a_small_number_costs_nothing(tmp_path: Path) -> None:
    """A directory of a million entries, of which the end record states fewer, is rejected in under
    0.2 s of CPU time.
    """
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *([0] * 16))
    for count in (1, 1000):
        path = tmp_path / str(count)
        path.write_bytes(b"PK\3\4" + entry * 1_000_000 + zip_end(count, len(entry) * 1_000_000, 4))
        start = time.process_time()
        with pytest.raises(UploadRejectedError, match="damaged"):
            zip_archive.open_zip(path)
        assert time.process_time() - start < 0.2


def test_members_that_share_bytes_are_refused(converter: UploadConverter) -> None:
    """Members that overlap each other or the directory are rejected, because they make the densest
    bombs.
    """
    body, count, length, offset = end_of(packed(zipped()))
    places = [place for place in range(offset, len(body)) if body[place : place + 4] == b"PK\1\2"]
    same = bytearray(body)
    for place in places:
        same[place + 42 : place + 46] = bytes(4)
    assert converter.refused(bytes(same) + zip_end(count, length, offset), "overlaps another member").status == 422
    longer = bytearray(body)
    size = struct.unpack_from("<I", body, places[0] + 20)[0]
    longer[places[0] + 20 : places[0] + 24] = struct.pack("<I", size + 60)
    assert converter.refused(bytes(longer) + zip_end(count, length, offset), "overlaps").status == 422
    last = bytearray(body)
    last[places[-1] + 20 : places[-1] + 24] = struct.pack("<I", 1 << 30)
    assert converter.refused(bytes(last) + zip_end(count, length, offset), "overlaps the list").status == 422


def test_damaged_zips_are_refused(converter: UploadConverter) -> None:
    """600 files with changed bytes give a dataset or a rejection, never another error."""
    whole, chance = packed(zipped()), random.Random(0)
    outcomes: Counter[int] = Counter()
    for number in range(600):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):  # mostly in the directory
            low = 0 if number % 3 else len(data) - 900
            data[chance.randrange(low, len(data))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        try:
            converter(bytes(data))
        except UploadRejectedError as error:
            outcomes[error.status] += 1
        else:
            outcomes[200] += 1
    assert set(outcomes) <= {200, 413, 422}
    assert outcomes[422] > 100


HIDDEN = [
    ".ipynb_checkpoints/0-checkpoint.png",
    ".thumbnails/0.png",
    ".Trash-1000/files/0.png",
    ".Trashes/501/0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB.jpg",
    "__pycache__/0.png",
    "__MACOSX/._0.png",
    ".git/objects/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/0.png",
    "lost+found/0.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "._0.png",
]


@pytest.mark.parametrize("place", ["{}", "set/{}", "set/train/{}", "set\\{}"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_caches_are_skipped(converter: UploadConverter, name: str, place: str) -> None:
    """Hidden files are skipped in any folder, and counted."""
    path = place.format(name.replace("/", "\\") if "\\" in place else name)
    dataset = converter(packed([*zipped(), (path, png(pictures(1, 9, 9)[0]))]))
    assert (sum(dataset["counts"].values()), dataset["hidden"]) == (12, 1)
    assert "ignored" not in dataset


def test_a_zip_of_hidden_files_only_is_rejected_with_the_reason(converter: UploadConverter) -> None:
    """A ZIP of hidden files only is rejected with their number."""
    converter.refused(
        packed([(f".cache/{name}", data) for name, data in zipped()]), "no picture", "12 files that are hidden"
    )
    dataset = converter(
        packed([("./set/" + str(name), data) for name, data in zipped()])
    )  # as `zip -r` of `.` writes it
    assert sum(dataset["counts"].values()) == 12
