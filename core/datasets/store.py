"""Store datasets, in one folder each; a dataset never changes.

STATE/datasets/NAME/ has `dataset.json` and `train.npy`, `validation.npy`, `test.npy`: uint8 (N, C,
H, W), 0 … 255. `labels.npy`, if labels were uploaded, has the labels of the three in this order. A
folder whose name begins with a dot is a scratch folder.
"""

import fcntl
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from core.blobs import remove_tree
from core.files import find, locked, sync_folder, write_durably
from core.imaging.pictures import Pixels, grid

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DESCRIPTION = "dataset.json"
_USES = "uses"
_SCRATCH_NAME = re.compile(r"\.[0-9a-f]{32}")
SPLITS = ("train", "validation", "test")  # in the order of `labels.npy`
_MAX_VALUES = 4 << 20  # of the images that are read at once


class NameTakenError(ValueError):
    """Raised if there is a dataset of the same name with other content."""


class InUseError(ValueError):
    """Raised if a dataset cannot be deleted, because jobs use it; `users` are their ids."""

    def __init__(self, users: list[str]) -> None:
        super().__init__(f"in use by {', '.join(users)}")
        self.users = users


@dataclass(frozen=True)
class ImagePage:
    """Consecutive images of a split: `pixels`, uint8 (n, C, H, W), and their `labels` (n,) if there
    are any.

    The index of the first image in its split is `first`; the split has `total` images.
    """

    first: int
    total: int
    pixels: Pixels
    labels: np.ndarray[Any, Any] | None = None


class Datasets:
    """The datasets in a folder, which any number of processes may share."""

    def __init__(self, folder: Path) -> None:
        """Open the store in a folder, and remove the scratch folders of processes that died."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear()

    def clear(self, older_than_s: float = 0.0) -> None:
        """Remove the scratch folders that processes left when they died.

        A folder in which something was written in the last `older_than_s` seconds stays. A scratch
        folder without a lock is removed, too: an interrupted deletion has left it.
        """
        for folder in find(self.folder, ".*"):
            with ExitStack() as stack:
                if self._abandoned(folder, stack) and _age_s(folder) >= older_than_s:
                    remove_tree(folder)

    def _abandoned(self, folder: Path, stack: ExitStack) -> bool:
        """Return whether no live process uses `folder`, a hidden folder of the store.

        If none does, the folder's lock, if there is one, is held until `stack` closes.
        """
        with self._locked():  # otherwise a new folder could be seen before its lock
            try:
                lock = stack.enter_context((folder / "lock").open("rb"))
                # the process that uses the folder holds the lock as long as it lives
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                return _SCRATCH_NAME.fullmatch(folder.name) is not None
            except OSError:
                return False
            return True

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """Yield a new scratch folder in which to make a dataset; remove it after the block."""
        folder = self.folder / f".{uuid4().hex}"
        with ExitStack() as stack:
            stack.callback(remove_tree, folder)
            with self._locked():
                folder.mkdir()
                stack.enter_context(locked(folder / "lock"))
            yield folder

    def _locked(self) -> AbstractContextManager[None]:
        """Return a context manager that locks the store while its block runs.

        So only one process at a time adds datasets, deletes them, or protects them from deletion.
        """
        return locked(self.folder / ".lock")

    def add(
        self, made: Path, name: str, description: dict[str, Any], confirm: Callable[..., None] = lambda **_: None
    ) -> tuple[dict[str, Any], bool]:
        """Store the finished folder `made`, with its `description`, as the dataset `name`.

        Returns the stored description, and whether the dataset is new. An existing dataset of this
        name with the same arrays is kept, and False is returned. Raises NameTakenError if its
        arrays differ. A new dataset is stored only if `confirm()` raises no exception; see
        `ResourceStore.confirm`. Nobody can store or delete a dataset of this name between this call
        and the end of the method.
        """
        with self._locked():
            existing = self.get(name)
            if existing is not None:
                if existing["sha256"] != description["sha256"]:
                    raise NameTakenError(name)
                return existing, False
            created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            description = {"name": name, "created_at": created_at, **description}
            write_durably(made / DESCRIPTION, json.dumps(description, indent=2) + "\n")
            (made / _USES).mkdir()
            confirm()
            made.rename(self.folder / name)
            sync_folder(self.folder)
            return description, True

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a dataset's description; None if there is no such dataset."""
        if not NAME.fullmatch(name):
            return None
        try:
            description: dict[str, Any] = json.loads((self.folder / name / DESCRIPTION).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return description

    def path(self, name: str) -> Path:
        """Return the folder of a dataset, whether it exists or not."""
        return self.folder / name

    def listing(
        self, after: str = "", limit: int = 20, visible: Callable[[str], bool] = lambda _name: True
    ) -> list[dict[str, Any]]:
        """Return the descriptions of at most `limit` datasets with names after `after`, sorted.

        `visible(name)` returns whether a dataset is listed.
        """
        existing = (path.parent.name for path in find(self.folder, f"[!.]*/{DESCRIPTION}"))
        names = sorted(name for name in existing if name > after and visible(name))
        return [description for name in names[:limit] if (description := self.get(name)) is not None]

    def delete(self, name: str, created_at: str | None = None) -> bool:
        """Delete a dataset and return True; return False if it does not exist.

        With `created_at`, the time in its description, a dataset that has replaced this one stays,
        and False is returned. Raises InUseError if a job protects it from deletion.
        """
        with self._locked():
            about = self.get(name)
            if about is None or created_at not in {None, about["created_at"]}:
                return False
            users = self.users(name)
            if users:
                raise InUseError(users)
            scratch = self.folder / f".{uuid4().hex}"
            # no process holds this lock, so `clear` removes the folder if this is interrupted
            (self.folder / name / "lock").touch()
            (self.folder / name).rename(scratch)
        remove_tree(scratch)
        return True

    # --- protection from deletion while in use ---

    def use(self, name: str, user: str) -> bool:
        """Protect a dataset from deletion while the job `user` uses it, until `release` is called.

        Returns False if the dataset does not exist. A second call for the same job changes nothing.
        """
        with self._locked():
            if self.get(name) is None:
                return False
            (self.folder / name / _USES / user).touch()
            return True

    def release(self, name: str, user: str) -> None:
        """End the protection of a dataset by the job `user`; do nothing if there is none."""
        (self.folder / name / _USES / user).unlink(missing_ok=True)

    def users(self, name: str) -> list[str]:
        """Return the ids of the jobs that protect the dataset `name` from deletion, sorted."""
        return [path.name for path in find(self.folder / name / _USES, "*")]

    def uses(self) -> list[tuple[str, str]]:
        """Return all protections from deletion, as (name of the dataset, id of the job)."""
        return [(path.parent.parent.name, path.name) for path in find(self.folder, f"[!.]*/{_USES}/job_*")]

    # --- files on this host ---

    def file(self, name: str, file: str) -> Path:
        """Return the path of a file of a dataset, such as `train.npy`, whether it exists or not."""
        return self.folder / name / file

    def data_folder(self, name: str, work: Path) -> Path:  # noqa: ARG002 - see SharedDatasets
        """Return a folder with the dataset's files in its subfolder `name`, for a child process.

        Here it is the folder of all datasets. `work` is a folder of the job, in which a store
        without local files creates links.
        """
        return self.folder

    # --- images ---

    def images(self, name: str, split: str, first: int, count: int) -> ImagePage | None:
        """Return at most `count` images of a split from the index `first` on, as one page.

        A page has fewer images at the end of the split, and if images are large. None if there is
        no such dataset.
        """
        try:
            images = np.load(self.file(name, f"{split}.npy"), mmap_mode="r")
            pixels = np.array(images[first : first + min(count, _most_images(images))])
            labels = self._labels(name, split, first, len(pixels))
        except FileNotFoundError:  # it was deleted
            return None
        return ImagePage(first, len(images), pixels, labels)

    def _labels(self, name: str, split: str, first: int, count: int) -> np.ndarray[Any, Any] | None:
        """Return the labels of `count` images of a split from the index `first` on; None without
        labels.
        """
        try:
            labels = np.load(self.file(name, "labels.npy"), mmap_mode="r")
        except FileNotFoundError:
            return None
        before = SPLITS[: SPLITS.index(split)]
        start = first + sum(len(np.load(self.file(name, f"{one}.npy"), mmap_mode="r")) for one in before)
        return np.array(labels[start : start + count])

    def preview(self, name: str, split: str, count: int) -> bytes | None:
        """Return a PNG grid of at most `count` images, evenly spaced in the split.

        None if the split has no images, or if there is no such dataset.
        """
        try:
            images = np.load(self.file(name, f"{split}.npy"), mmap_mode="r")
        except FileNotFoundError:
            return None
        if not len(images):
            return None
        indices = np.linspace(0, len(images) - 1, min(count, len(images), _most_images(images))).astype(int)
        return grid(np.asarray(images[indices]), 1 if images.shape[2] == 1 else None)


def _most_images(images: np.ndarray[Any, Any]) -> int:
    """Return how many images, of the shape (N, C, H, W), may be read at once."""
    per_image: int = math.prod(images.shape[1:])
    return max(1, _MAX_VALUES // per_image)


def _age_s(folder: Path) -> float:
    """Return the seconds since anything in a folder was written; infinity if it does not exist."""
    try:
        return time.time() - max(path.lstat().st_mtime for path in (folder, *folder.glob("*"), *folder.glob("made/*")))
    except OSError:
        return math.inf
