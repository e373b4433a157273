"""Fixtures that all tests share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import stack as service
from tests.postgresql import PostgreSQL, running_server
from tests.stack import FAMILIES, Stack

TESTS = Path(__file__).parent

gc.disable()  # while modules are imported, of which nothing is garbage

os.environ.setdefault("REVERIE_ALLOWED_HOSTS", "x,testserver,localhost,127.0.0.1,[::1]")
"""Hosts that clients of applications in the test process send; a `Stack` keeps the default."""


LONGEST = (
    "service/test_schemathesis.py",
    "service/test_training.py",
    "service/test_chaos.py",
    "api/routes/test_upscales.py",
    "api/test_openapi.py",
    "service/test_fleet.py",
    "service/test_full_disk.py",
    "clients/test_clients.py",
    "service/test_startup.py",
    "service/test_backup.py",
    "service/test_postgresql_restore.py",
    "api/routes/test_datasets.py",
    "models/kit/test_train.py",
    "service/test_postgresql.py",
    "service/test_leftovers.py",
    "reverie/test_cli.py",
    "studio/test_plane.py",
    "workers/training/test_worker.py",
    "service/test_hang.py",
    "service/test_no_worker.py",
    "service/test_tracing.py",
    "service/test_docs_page.py",
    "api/test_content_encoding.py",
    "api/routes/test_trainings.py",
    "service/test_new_family.py",
    "service/test_tour.py",
    "models/test_families.py",
    "core/jobs/test_races.py",
    "workers/inference/test_celery_worker.py",
    "webhooks/test_chaos.py",
    "studio/test_models_and_jobs.py",
    "models/test_vae.py",
    "studio/test_enlarge.py",
    "service/test_upgrade.py",
    "studio/test_keys.py",
    "api/routes/test_openai.py",
    "core/datasets/test_convert.py",
    "core/jobs/test_migrate.py",
    "models/test_superres.py",
    "models/kit/test_memory.py",
    "service/test_start.py",
    "studio/test_paint.py",
    "studio/test_draw.py",
    "studio/test_train.py",
    "studio/test_data.py",
    "models/test_finite.py",
    "workers/test_seams.py",
    "benchmarks/test_gpu.py",
    "workers/inference/test_preemption.py",
    "workers/inference/test_engine.py",
    "workers/training/test_limits.py",
)
"""Modules that take longest. They run first, so that none of them runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the modules, the longest first.

    With `--dist loadfile` xdist runs each module in one process, which starts its services once.
    """
    first = {TESTS / module: number for number, module in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave the imported modules out of garbage collections: each full one takes a third of a second
    otherwise.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set the folder that the services of one test run share, also across the processes of
    xdist.
    """
    base = tmp_path_factory.getbasetemp()
    service.shared_folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for all tests of this process."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _service_database(request: pytest.FixtureRequest) -> None:
    """Let services use PostgreSQL if `TEST_DATABASE=postgresql` says so."""
    if service.ON_POSTGRESQL:
        service.create_database = request.getfixturevalue("postgresql").create


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an object store for all tests of this process, which is not moto's."""
    from tests.seaweedfs import running_server

    with running_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server.endpoint


@pytest.fixture(scope="session", autouse=True)
def _service_blobs(request: pytest.FixtureRequest) -> None:
    """Let services store blobs in the S3 server that `TEST_BLOBS` names."""
    if not service.BLOBS:
        return
    from tests.object_store import CREDENTIALS, moto_endpoint, new_bucket

    assert service.BLOBS in {"moto", "seaweedfs"}
    endpoint = moto_endpoint() if service.BLOBS == "moto" else request.getfixturevalue("seaweedfs")
    bucket = new_bucket(endpoint)
    os.environ.update(CREDENTIALS)  # this process uses the services' stores, too
    service.create_blobs = lambda name: {
        **CREDENTIALS,
        "REVERIE_BLOBS_URL": f"s3://{bucket}/{name}?endpoint={endpoint}",
    }


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty job database: a SQLite file, and one in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real service that is shared by all tests that do not stop or change it."""
    with Stack(tmp_path_factory.mktemp("stack"), sync_timeout_s="20", extra_models=FAMILIES) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the shared service."""
    with httpx.Client(base_url=stack.url, timeout=60) as opened:
        yield opened


@pytest.fixture
def digit() -> bytes:
    """A grey PNG of 28×28 pixels: a bright bar on black."""
    import numpy as np

    from core.imaging.pictures import png

    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 4:24, 12:16] = 255
    return png(pixels)


@pytest.fixture
def root() -> Path:
    """The root folder of the repository."""
    return Path(__file__).parents[1]
