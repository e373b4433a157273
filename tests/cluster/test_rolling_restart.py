"""Every process is restarted in turn behind HAProxy, and no request fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.load import Load, haproxy, needs_haproxy, restart_all
from tests.cluster.members import APIS, INFERENCE, TRAINING, Cluster


@pytest.mark.timeout(900)
@needs_haproxy
def test_no_request_fails_while_every_process_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    """At 100 requests per second, each API, inference and training process is stopped by SIGTERM
    and started again: all responses are 200 with the same bytes, and jobs end once.
    """
    with haproxy(cluster, tmp_path) as url:
        with Load(url) as load:
            time.sleep(3)
            restart_all(cluster, (*APIS, *INFERENCE, *TRAINING))
        load.check(cluster)
