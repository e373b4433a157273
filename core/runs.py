"""Keep the files of training runs: on one host in the state folder, else in the job database and
blob store.

A run's checkpoint consists of the files in `CHECKPOINT_FILES`. Hosts share them as blobs, which
rows of the job database name. All rows of a run change in one transaction, and only while the
worker's claim is valid or nobody has claimed the job since. So another host resumes from a complete
checkpoint. Previews are blobs without rows: the same training makes the same pictures again. Their
keys have the token of the claim, and a worker writes and deletes only previews of its own claim and
of earlier ones. So a worker that lost its claim changes no preview of a later one.
"""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from core.blob_cache import digest_of
from core.blobs import Blobs, remove_tree, size_of
from core.files import find
from core.jobs.records import Claim
from core.jobs.schema import jobs, run_files, transaction
from core.settings import StatePaths

PREFIX = "runs"  # of the keys of blobs
# In the order in which they are copied: progress never names a later checkpoint than `state.pt` is.
CHECKPOINT_FILES = ("recipe.json", "provenance.json", "progress.json", "metrics.jsonl", "state.pt")
_PREVIEW = "preview.png"
_CLAIMS = "claims"  # of the keys of previews: `runs/JOB/claims/TOKEN/preview.png`, `…/previews/EPOCH.png`
_TRIES = 3  # to read a checkpoint that may be replaced


class Runs:
    """The run folders in the state folder of this host, for an instance with one host."""

    def __init__(self, paths: StatePaths) -> None:
        """Use the run folders of a state folder."""
        self._paths = paths

    def has_checkpoint(self, job_id: str) -> bool:
        """Return whether the last checkpoint of a training is kept."""
        return (self._paths.run(job_id) / "state.pt").exists()

    def preview(self, job_id: str, epoch: int | None = None) -> bytes:
        """Return the newest preview of a training, or the preview of an epoch, as PNG.

        Raises FileNotFoundError if there is no such preview.
        """
        folder = self._paths.run(job_id)
        return (folder / _PREVIEW if epoch is None else self._paths.previews(job_id) / f"{epoch}.png").read_bytes()

    def preview_sizes(self, job_id: str) -> dict[int, int]:
        """Return the sizes in bytes of a training's previews that are kept, keyed by epoch."""
        sizes = {}
        for file in find(self._paths.previews(job_id), "*.png"):
            with contextlib.suppress(FileNotFoundError):  # the training may remove it now
                if file.stem.isdecimal():
                    sizes[int(file.stem)] = file.stat().st_size
        return sizes

    def sizes(self) -> Counter[str]:
        """Return the size in bytes of each run, keyed by the id of its training."""
        runs = self._paths.state / PREFIX
        return Counter({run.name: size_of(run) for run in (runs.iterdir() if runs.is_dir() else ())})

    def remove(self, job_id: str) -> None:
        """Delete all files of a run."""
        remove_tree(self._paths.run(job_id))

    def upload(self, claim: Claim, folder: Path) -> bool:  # noqa: ARG002 - see SharedRuns
        """Store the checkpoint and the previews that are now in the run folder, for other hosts.

        Returns whether they were stored. This class, for one host, copies nothing: they stay in the
        run folder.
        """
        return True

    def is_stored(self, job_id: str, folder: Path) -> bool:  # noqa: ARG002 - see SharedRuns
        """Return whether the checkpoint in a run folder, or a later one, is also stored elsewhere."""
        return False

    def restore(self, job_id: str, folder: Path) -> bool:  # noqa: ARG002 - see SharedRuns
        """Write the stored checkpoint to the run folder, unless the folder has a later one.

        Returns False if files of the stored checkpoint are missing.
        """
        return True


class SharedRuns(Runs):
    """The checkpoints and previews in the job database and the blob store. Its methods block."""

    def __init__(self, paths: StatePaths, engine: sa.Engine, blobs: Blobs) -> None:
        """Use the stores of this process."""
        super().__init__(paths)
        self._engine = engine
        self._blobs = blobs

    def has_checkpoint(self, job_id: str) -> bool:
        """Return whether the job database has the row of a training's checkpoint."""
        return "state.pt" in self._files(job_id)

    def preview(self, job_id: str, epoch: int | None = None) -> bytes:
        """Download a preview from the blob store."""
        return self._blobs.get(f"{self._previews(job_id)}/{_PREVIEW if epoch is None else f'previews/{epoch}.png'}")

    def preview_sizes(self, job_id: str) -> dict[int, int]:
        """Return the sizes of the blobs of a training's previews, keyed by epoch."""
        stored = self._blobs.sizes(f"{self._previews(job_id)}/previews")
        sizes = {name.removesuffix(".png"): size for name, size in stored.items()}
        return {int(epoch): size for epoch, size in sizes.items() if epoch.isdecimal()}

    def sizes(self) -> Counter[str]:
        """Return the size in bytes of the blobs of each run, keyed by the id of its training."""
        return Counter(self._blobs.sizes(PREFIX))

    def remove(self, job_id: str) -> None:
        """Delete the blobs of a run, then its rows, then the run folder on this host."""
        self._blobs.delete(f"{PREFIX}/{job_id}")
        with transaction(self._engine) as connection:
            connection.execute(run_files.delete().where(run_files.c.job_id == job_id))
        super().remove(job_id)

    def upload(self, claim: Claim, folder: Path) -> bool:
        """Upload the files of the run folder that have changed.

        Returns False, and keeps the earlier checkpoint and the previews of later claims, if the job
        was claimed again meanwhile.

        Raises OSError, or an error of the database, if that fails.
        """
        with self._engine.connect() as connection:
            if connection.scalar(_unclaimed(claim)) is None:
                return False
        self._upload_previews(claim, folder)
        old = self._files(claim.job_id)
        made = self._upload_checkpoint(claim.job_id, folder, old)
        if made == old or "state.pt" not in made:
            return True
        with transaction(self._engine) as connection:
            kept = connection.scalar(_unclaimed(claim).with_for_update()) is not None
            if kept:
                connection.execute(run_files.delete().where(run_files.c.job_id == claim.job_id))
                connection.execute(run_files.insert(), list(made.values()))
        for entry in (old if kept else made).values():
            if entry not in (made if kept else old).values():
                self._blobs.delete(entry["blob_key"])
        return kept

    def _upload_checkpoint(self, job_id: str, folder: Path, old: dict[str, Any]) -> dict[str, Any]:
        """Upload the files of the checkpoint that differ from `old`; return their rows, keyed by
        name.
        """
        made = {}
        for name in CHECKPOINT_FILES:
            copy = folder / f".{name}.{uuid4().hex}"
            try:
                if not _keep(folder / name, copy):
                    continue
                sha256 = digest_of(copy)
                if name in old and old[name]["sha256"] == sha256 and self._blobs.exists(old[name]["blob_key"]):
                    made[name] = old[name]
                    continue
                key, size = f"{PREFIX}/{job_id}/checkpoint/{uuid4().hex}/{name}", copy.stat().st_size
                self._blobs.take(key, copy)
                made[name] = {"job_id": job_id, "name": name, "blob_key": key, "sha256": sha256, "bytes": size}
            finally:
                copy.unlink(missing_ok=True)
        return made

    def _upload_previews(self, claim: Claim, folder: Path) -> None:
        """Upload new previews; delete stored previews that the folder does not have any more.

        When all previews are stored, those of earlier claims are deleted.
        """
        run = f"{PREFIX}/{claim.job_id}"
        own = f"{run}/{_CLAIMS}/{claim.token}"
        stored = self._blobs.keys(run)
        local = {path.name: path for path in (folder / "previews").glob("*.png")}
        for name, path in local.items():
            if f"{own}/previews/{name}" not in stored:
                with contextlib.suppress(FileNotFoundError):
                    self._blobs.put(f"{own}/previews/{name}", path.read_bytes())
        for key in stored if local else ():
            if key.startswith(f"{own}/previews/") and key.rpartition("/")[2] not in local:
                self._blobs.delete(key)
        try:
            self._blobs.put(f"{own}/{_PREVIEW}", (folder / _PREVIEW).read_bytes())  # the last one, see `_previews`
        except FileNotFoundError:
            return
        tokens = {_token(key) for key in stored}
        for token in sorted(token for token in tokens if 0 < token < claim.token):
            self._blobs.delete(f"{run}/{_CLAIMS}/{token}")
        if any(key.startswith(f"{run}/preview") for key in stored):
            self._blobs.delete(f"{run}/{_PREVIEW}")
            self._blobs.delete(f"{run}/previews")

    def _previews(self, job_id: str) -> str:
        """Return the prefix of the keys of a training's previews: those of the last claim that has
        stored all of them.

        In an earlier release, the keys had no token.
        """
        run = f"{PREFIX}/{job_id}"
        tokens = [_token(key) for key in self._blobs.keys(f"{run}/{_CLAIMS}") if key.endswith(f"/{_PREVIEW}")]
        return f"{run}/{_CLAIMS}/{max(tokens)}" if tokens else run

    def is_stored(self, job_id: str, folder: Path) -> bool:
        """Return whether the blob store has the checkpoint in a run folder or a later one.

        True if the folder has no checkpoint. Raises OSError.
        """
        if not (folder / "state.pt").exists():
            return True
        files = self._files(job_id)
        if "state.pt" not in files or "progress.json" not in files:
            return False
        try:
            progress = self._blobs.get(files["progress.json"]["blob_key"])
        except FileNotFoundError:  # the checkpoint was replaced meanwhile
            return False
        return _step_in(progress) >= _step(folder / "progress.json")

    def restore(self, job_id: str, folder: Path) -> bool:
        """Download the checkpoint if its step is later than that in the folder.

        Returns False if blobs of the checkpoint are missing, as they may be in a restored backup.
        Raises OSError.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # the checkpoint was replaced meanwhile
                self._restore(self._files(job_id), job_id, folder)
                return True
        return False

    def _restore(self, files: dict[str, dict[str, Any]], job_id: str, folder: Path) -> None:
        """Download the checkpoint's `files`, unless the folder has one of the same or a later step.

        Raises FileNotFoundError if a blob was deleted meanwhile, and OSError if a file has another
        SHA-256.
        """
        if "state.pt" not in files:
            return
        parts: dict[str, Path] = {}
        try:
            for name, entry in files.items():
                parts[name] = folder / f".{name}.{uuid4().hex}"
                self._blobs.copy_to(entry["blob_key"], parts[name])
                if digest_of(parts[name]) != entry["sha256"]:
                    raise OSError(f"{name} of the checkpoint does not have the digest that was recorded for it")
            if (folder / "state.pt").exists() and _step(folder / "progress.json") >= _step(parts.get("progress.json")):
                return
            self._restore_previews(job_id, folder)  # first: nothing is restored to a folder with the checkpoint
            for name in reversed([name for name in CHECKPOINT_FILES if name in parts]):
                parts[name].replace(folder / name)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)

    def _restore_previews(self, job_id: str, folder: Path) -> None:
        (folder / "previews").mkdir(exist_ok=True)
        stored = self._previews(job_id)
        for name in self._blobs.sizes(f"{stored}/previews"):
            with contextlib.suppress(FileNotFoundError):
                (folder / "previews" / name).write_bytes(self._blobs.get(f"{stored}/previews/{name}"))
        with contextlib.suppress(FileNotFoundError):
            (folder / _PREVIEW).write_bytes(self._blobs.get(f"{stored}/{_PREVIEW}"))

    def orphans(self) -> list[str]:
        """Return the keys of blobs of trainings that do not exist."""
        keys = self._blobs.keys(PREFIX)
        with self._engine.connect() as connection:
            known = set(connection.scalars(sa.select(jobs.c.id).where(jobs.c.kind == "training")))
            current = set(connection.scalars(sa.select(run_files.c.blob_key)))
        return [
            key
            for key in keys
            if key.split("/")[1] not in known or (key.split("/")[2] == "checkpoint" and key not in current)
        ]

    def _files(self, job_id: str) -> dict[str, dict[str, Any]]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(run_files).where(run_files.c.job_id == job_id)).mappings()
            return {row["name"]: dict(row) for row in rows}


def _unclaimed(claim: Claim) -> sa.Select[tuple[str]]:
    """Return the query for the id of a claim's job; it has no row if the job was claimed again."""
    # Whoever takes the job from the worker (a pause, a deadline, the reaper) increments the token, and the next claim
    # increments it again.
    taken = (jobs.c.token == claim.token + 1) & (jobs.c.status != "running")
    return sa.select(jobs.c.id).where((jobs.c.id == claim.job_id) & ((jobs.c.token == claim.token) | taken))


def _keep(file: Path, copy: Path) -> bool:
    """Create `copy`, which keeps the present content of a run's file; return False if there is no
    such file.
    """
    with contextlib.suppress(FileNotFoundError):
        if file.name == "metrics.jsonl":  # which grows
            copy.write_bytes(file.read_bytes())
        else:  # the training replaces it by a new file
            os.link(file, copy)
        return True
    return False


def _token(key: str) -> int:
    """Return the token in the key of a preview, `runs/JOB/claims/TOKEN/…`; 0 for another key."""
    parts = key.split("/")
    return int(parts[3]) if len(parts) > 3 and parts[2] == _CLAIMS and parts[3].isdecimal() else 0


def _step(progress: Path | None) -> int:
    """Return the checkpoint's step that a training's `progress.json` states; 0 without one."""
    try:
        return _step_in(progress.read_bytes()) if progress else 0
    except OSError:
        return 0


def _step_in(progress: bytes) -> int:
    """Return the checkpoint's step that the content of a `progress.json` states; 0 without one."""
    try:
        checkpoint = json.loads(progress).get("checkpoint")
    except ValueError:
        return 0
    return int(checkpoint["steps"]) if checkpoint else 0
