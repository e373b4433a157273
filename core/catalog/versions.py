"""Store the versions made by this service, in a folder that all processes share.

NAME/VERSION/model.safetensors is a version; it never changes. `serving.json` has the pointers of
each model, which are version numbers: the active version (`serves`) and the candidate (`next`),
which workers load before it becomes active.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from core.blobs import walk
from core.files import find, locked, modified_at_ns, write_durably

FILE = "model.safetensors"
POINTERS = "serving.json"
# Names of a version's file while it is deleted, and of the empty file that marks a deleted version.
HIDDEN, DELETED = ".hidden", "deleted"

_PARTIAL_FILE = re.compile(r"\.[0-9a-f]{32}")


class VersionActiveError(ValueError):
    """Raised if a version cannot be deleted because it is active or the candidate."""


class VersionRemovedError(ValueError):
    """Raised if a version cannot become active because it is hidden or deleted."""


# See docs/decisions.md#a-file-names-the-active-version
class Versions:
    """The model versions that were trained or imported here, and which of them are active.

    They are in a folder that all processes share.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created by the first write."""
        self.folder = folder

    # --- the active version ---

    def stamp(self) -> int:
        """Return a number that changes if a version is published, activated or made candidate."""
        return modified_at_ns(self.folder / POINTERS)

    def pointers(self) -> dict[str, dict[str, str]]:
        """Return each model's active version (`serves`) and candidate (`next`), keyed by model.

        If `serves` is missing, the newest version is active. If `next` is missing, there is no
        candidate.
        """
        try:
            pointers: dict[str, dict[str, str]] = json.loads((self.folder / POINTERS).read_bytes())
        except FileNotFoundError:
            return {}
        return pointers

    def stage(self, name: str, version: str) -> None:
        """Make a version the candidate of its model: workers load it before it becomes active.

        It replaces an earlier candidate. Raises VersionRemovedError if the version is hidden or
        deleted.
        """
        with self._update_pointer(name) as pointer:
            self._check_not_removed(name, version)
            pointer["next"] = version

    def unstage(self, name: str, version: str) -> None:
        """Stop a version from being its model's candidate; do nothing if another version is.

        The model then has no candidate.
        """
        with self._update_pointer(name) as pointer:
            if pointer.get("next") == version:
                del pointer["next"]

    def activate(self, name: str, version: str) -> None:
        """Make a version active; if it was the candidate, the model has no candidate any more.

        Raises VersionRemovedError if the version is hidden or deleted.
        """
        with self._update_pointer(name) as pointer:
            self._check_not_removed(name, version)
            pointer["serves"] = version
            if pointer.get("next") == version:
                del pointer["next"]

    def activate_candidate(self, name: str, version: str) -> bool:
        """Make a version active if it is still its model's candidate, or is active already.

        Otherwise do nothing and return False: another version has been staged or activated.
        """
        with self._update_pointer(name) as pointer:
            if pointer.get("next") == version:
                pointer["serves"] = pointer.pop("next")
            return pointer.get("serves") == version

    def is_superseded(self, name: str, version: str) -> bool:
        """Return whether a version that was staged is neither its model's candidate nor active."""
        return version not in self.pointers().get(name, {}).values()

    def pin(self, name: str, version: str) -> None:
        """Make a version active if no version of the model was made active before; else do nothing.

        Otherwise the newest version would be active, and a version that is published later would
        replace this one. Does nothing if the version is hidden or deleted.
        """
        with self._update_pointer(name) as pointer:
            if "serves" not in pointer and not self.is_removed(name, version):
                pointer["serves"] = version

    def _check_not_removed(self, name: str, version: str) -> None:
        """Raise VersionRemovedError if a version is hidden or deleted."""
        if self.is_removed(name, version):
            raise VersionRemovedError(f"{name}@{version} was deleted, or is being deleted")

    @contextlib.contextmanager
    def _update_pointer(self, name: str) -> Iterator[dict[str, str]]:
        """Yield a model's active version and candidate; store the changes of the block.

        No other process changes them meanwhile.
        """
        with self._update() as pointers:
            yield pointers.setdefault(name, {})
            if not pointers[name]:
                del pointers[name]

    # --- removal ---

    def hide(self, name: str, versions: Sequence[str], *, model: bool = False) -> dict[str, str]:
        """Hide versions from new requests before they are deleted.

        Returns the model's active version (`serves`) and candidate (`next`) as they were before the
        call. With `model`, the whole model is to be deleted, and it has neither any more. Raises
        VersionActiveError if the candidate is one of `versions`, or the active version without
        `model`.
        """
        with self._update() as pointers:
            pointer = dict(pointers.get(name, {}))
            if pointer.get("next") in versions or (pointer.get("serves") in versions and not model):
                raise VersionActiveError(f"{name}@{pointer.get('next') or pointer['serves']}")
            if model:
                pointers.pop(name, None)
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).rename(self.path(name, version).with_name(HIDDEN))
        return pointer

    def unhide(self, name: str, versions: Sequence[str], pointer: Mapping[str, str]) -> None:
        """Make hidden versions available again, because they are not deleted after all.

        `pointer` has the model's active version and candidate from before its versions were hidden;
        they are set again if the model has none now.
        """
        with self._update() as pointers:
            if pointer:
                pointers.setdefault(name, dict(pointer))
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).with_name(HIDDEN).rename(self.path(name, version))

    def discard(self, name: str, versions: Sequence[str]) -> None:
        """Delete hidden versions. Their folders stay, so that no version number is used twice."""
        for version in versions:
            folder = self.path(name, version).parent
            if folder.is_dir():
                (folder / DELETED).touch()
                (folder / HIDDEN).unlink(missing_ok=True)

    def discard_interrupted(self, older_than_s: float) -> None:
        """Delete versions that have been hidden for more than `older_than_s` seconds.

        A process that died hid these versions and has not deleted them.
        """
        for file in find(self.folder, f"*/*/{HIDDEN}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_ctime > older_than_s:
                    self.discard(file.parent.parent.name, [file.parent.name])

    @contextlib.contextmanager
    def _update(self) -> Iterator[dict[str, dict[str, str]]]:
        """Yield the active version and candidate of all models; store the changes of the block.

        The block changes the yielded dictionary in place. The file is locked meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            pointers = self.pointers()
            yield pointers
            write_durably(self.folder / POINTERS, json.dumps(pointers, indent=1) + "\n")

    # --- new versions ---

    def reserve(self, name: str, known: list[str], job_id: str = "") -> str:  # noqa: ARG002 - see SharedVersions
        """Reserve and return a version number above all in `known` and all reserved ones.

        Creates the folder of the version. Each call reserves another number: the caller stores the
        number for its job, so that a job that runs again can use the same one.
        """
        while True:
            # a cleanup may remove an empty folder meanwhile
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                existing = [path.name for path in (self.folder / name).iterdir()]
                number = max((int(version) for version in (*known, *existing) if version.isdecimal()), default=0) + 1
                (self.folder / name / str(number)).mkdir()
                return str(number)

    def leftovers(self, in_progress: Callable[[str], bool]) -> list[Path]:
        """Return the partial files and empty version folders that processes left when they died.

        `in_progress(name)` returns whether a version of the model `name` may be published now; the
        files of such a model are left out.
        """
        leftovers = find(self.folder, f".{POINTERS}.*")
        for model in find(self.folder, "[!.]*"):
            if not in_progress(model.name) and model.is_dir():
                leftovers += _without_versions(model)
        return leftovers

    @staticmethod
    def remove(leftover: Path) -> None:
        """Remove a leftover file or folder.

        A folder in which a version was published meanwhile stays.
        """
        with contextlib.suppress(OSError):
            if leftover.is_dir():
                for path in leftover.iterdir():
                    if path.is_dir() or _PARTIAL_FILE.fullmatch(path.name):
                        Versions.remove(path)
                leftover.rmdir()
            else:
                leftover.unlink()

    def path(self, name: str, version: str) -> Path:
        """Return the path of a version's checkpoint file, whether it exists or not."""
        return self.folder / name / version / FILE

    def is_removed(self, name: str, version: str) -> bool:
        """Return whether a version that this service made is hidden or deleted."""
        folder = self.path(name, version).parent
        return (folder / HIDDEN).exists() or (folder / DELETED).exists()

    def exists(self, name: str, version: str) -> bool:
        """Return whether a version exists that requests may use."""
        return self.path(name, version).exists()

    def publish(self, made: Path, name: str, version: str) -> Path:
        """Move the file `made` to the path of a version atomically; return this path.

        Raises FileExistsError if the version exists.
        """
        path = self.path(name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}")
        try:
            shutil.move(made, part)
            part.chmod(0o444)
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        with self._update():
            pass  # changes the stamp, so that registries scan again
        return path


def _without_versions(folder: Path) -> list[Path]:
    """Return the files and folders at or below `folder` that belong to no version.

    If no version's file is at or below `folder`, the result is `folder` itself. Otherwise it has
    the partial files in `folder`, and the results for each of its subfolders.
    """
    if all(_PARTIAL_FILE.fullmatch(path.rpartition("/")[2]) for path, _ in walk(folder)):
        return [folder]
    entries = find(folder, "*")
    folders = [left for path in entries if path.is_dir() for left in _without_versions(path)]
    return folders + [path for path in entries if not path.is_dir() and _PARTIAL_FILE.fullmatch(path.name)]
