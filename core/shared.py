"""Open the stores of versions, datasets and runs: folders of one host, or stores that hosts share.

If the blob store is remote, hosts share the blob store and the job database, and need no common
folder. Then `python -m core.shared import` copies the versions, datasets and runs of a state folder
to the shared stores.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from core.blob_cache import BlobCache
from core.blobs import Blobs, open_blobs
from core.catalog.shared_versions import SharedVersions
from core.catalog.versions import FILE, Versions
from core.datasets.shared_store import SharedDatasets
from core.datasets.store import Datasets
from core.instance import is_shared
from core.jobs.records import Claim
from core.jobs.schema import jobs
from core.jobs.store import JobStore
from core.runs import Runs, SharedRuns
from core.settings import Settings, StatePaths


def open_versions(settings: Settings, engine: sa.Engine, blobs: Blobs) -> Versions:
    """Return the store of versions made by this service: a folder, or one that hosts share."""
    folder = StatePaths(settings.state).checkpoints
    return SharedVersions(folder, engine, blobs, _cache(settings, blobs)) if is_shared(settings) else Versions(folder)


def open_datasets(settings: Settings, engine: sa.Engine, blobs: Blobs) -> Datasets:
    """Return the store of datasets: a folder, or one that hosts share."""
    folder = StatePaths(settings.state.resolve()).datasets
    return SharedDatasets(folder, engine, blobs, _cache(settings, blobs)) if is_shared(settings) else Datasets(folder)


def open_runs(settings: Settings, engine: sa.Engine, blobs: Blobs) -> Runs:
    """Return the store of training runs: a folder, or one that hosts share."""
    paths = StatePaths(settings.state.resolve())
    return SharedRuns(paths, engine, blobs) if is_shared(settings) else Runs(paths)


def _cache(settings: Settings, blobs: Blobs) -> BlobCache:
    """Return this host's cache of blobs."""
    return BlobCache(blobs, settings.state.resolve() / "cache", settings.cache_bytes)


# --- import of a state folder ---


def import_state(settings: Settings) -> dict[str, int]:
    """Copy versions, datasets and runs of the state folder to the stores that hosts share.

    Returns the numbers of versions and datasets that were copied, and of runs whose files are now
    stored, keyed "versions", "datasets" and "runs". What the stores already have is not copied
    again, so an interrupted call can be repeated. The folders stay.
    """
    paths, blobs = StatePaths(settings.state.resolve()), open_blobs(settings.blobs)
    engine = JobStore(settings.database).engine
    versions = SharedVersions(paths.checkpoints, engine, blobs, _cache(settings, blobs))
    counts = {"versions": _import_versions(paths, versions), "datasets": 0, "runs": 0}
    old, datasets = Datasets(paths.datasets), open_datasets(settings, engine, blobs)
    for description in old.listing(limit=sys.maxsize):
        name = description["name"]
        with datasets.scratch_folder() as folder:
            for path in old.path(name).glob("*.npy"):
                shutil.copyfile(path, folder / path.name)
            counts["datasets"] += datasets.add(folder, name, description)[1]
        for job_id in old.users(name):
            datasets.use(name, job_id)
    runs = open_runs(settings, engine, blobs)
    for folder in sorted((paths.state / "runs").glob("job_*")):
        with engine.connect() as connection:
            token = connection.scalar(sa.select(jobs.c.token).where(jobs.c.id == folder.name))
        if token is not None:
            counts["runs"] += runs.upload(Claim(folder.name, token), folder)
    engine.dispose()
    return counts


def _import_versions(paths: StatePaths, shared: SharedVersions) -> int:
    """Copy the versions of the state folder, and which of them are active; return their number.

    Numbers of deleted versions are kept from being used again.
    """
    copied = 0
    for folder in sorted(paths.checkpoints.glob("*/*")):
        name, version = folder.parent.name, folder.name
        if not (folder / FILE).exists():
            if version.isdecimal():
                shared.mark_used(name, version)
        elif not shared.exists(name, version):
            shared.publish(_copy(folder / FILE, paths), name, version)
            copied += 1
    for name, pointer in Versions(paths.checkpoints).pointers().items():
        if "serves" in pointer and shared.exists(name, pointer["serves"]):
            shared.pin(name, pointer["serves"])
    return copied


def _copy(file: Path, paths: StatePaths) -> Path:
    """Return a temporary copy of a version's file, in the state folder."""
    copy = paths.state / f".{uuid4().hex}"
    shutil.copyfile(file, copy)
    return copy


def main() -> None:
    """Import the state folder of the settings, and print what was copied."""
    from core.startup import StartupError, check, errors_end_the_program, load_settings  # noqa: PLC0415 - it needs this

    parser = argparse.ArgumentParser(prog="python -m core.shared", description=__doc__)
    parser.add_argument("command", choices=["import"])
    parser.parse_args()
    with errors_end_the_program():
        settings = load_settings()
        if not is_shared(settings):
            raise StartupError("REVERIE_BLOBS_URL is not set to an object store, so there is nothing to import into")
        check(settings)
    sys.stdout.write(json.dumps(import_state(settings)) + "\n")


if __name__ == "__main__":
    main()
