"""Every process of the release before is replaced by one of this release behind HAProxy, and no
request fails.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.load import Load, haproxy, needs_haproxy, restart_all
from tests.cluster.members import APIS, INFERENCE, TRAINING, Cluster
from tests.stack import ROOT

# The release before: its workers announce neither a group nor a device kind, and its job database
# has the revision before that of device kinds. Move it forward when a release changes messages,
# heartbeats or the job database.
BEFORE = "2911a47"

ORDERS = {
    "workers first": (*INFERENCE, *TRAINING, *APIS),
    "API first": (*APIS, *INFERENCE, *TRAINING),
}


def source_of(revision: str, folder: Path) -> Path:
    """Return a folder with the source tree of a revision; skip the test if this clone lacks it."""
    archive = folder / "source.tar"
    command = ["git", "archive", f"--output={archive}", revision]
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"NOT TESTED: this clone has no commit {revision}")
    tree = folder / "before"
    tree.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tree)], check=True)
    return tree


@pytest.mark.timeout(1200)
@needs_haproxy
@pytest.mark.parametrize("order", ORDERS)
def test_no_request_fails_during_an_upgrade(order: str, tmp_path: Path) -> None:
    """All processes run the release before; at 100 requests per second each is replaced by one of
    this release. All responses are 200 with the same bytes, and jobs that waited end once.
    """
    before = source_of(BEFORE, tmp_path)
    folder = tmp_path / "cluster"
    with Cluster(folder, before) as cluster, haproxy(cluster, tmp_path) as url:
        with Load(url) as load:
            time.sleep(3)
            cluster.code = ROOT
            restart_all(cluster, ORDERS[order])
        load.check(cluster)
        assert not cluster.exits
