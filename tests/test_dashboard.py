"""The Grafana dashboard and docs/monitoring.md agree with `/metrics`, and Prometheus can run the
dashboard's queries.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.helpers import TINY, create_job, finished_job
from tests.datasets import digits
from tests.stack import Stack, free_port
from tests.waiting import wait_until

_WORDS_OF_PROMQL = re.compile(r"\b(?:sum|max|min|avg|rate|histogram_quantile)\b")
_LABELS = re.compile(r"\{([^}]*)\}|\bby \(([^)]*)\)")


def _panels(root: Path) -> list[dict[str, Any]]:
    dashboard = json.loads((root / "docs" / "grafana" / "reverie.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _queries(root: Path) -> list[tuple[str, str]]:
    """Return the queries of the dashboard, each with the legend of its series."""
    return [(target["expr"], target["legendFormat"]) for panel in _panels(root) for target in panel["targets"]]


def _labels_of(query: str) -> set[str]:
    """Return the labels that a query selects or groups by."""
    labels = set()
    for matchers, grouping in _LABELS.findall(query):
        labels |= {re.split(r"[=!~]", one)[0].strip() for one in matchers.split(",") if one}
        labels |= {one.strip() for one in grouping.split(",") if one}
    return labels


@pytest.fixture(scope="module")
def used(stack: Stack) -> Iterator[httpx.Client]:
    """A client of a service in which every metric has a value."""
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        body = {"model": TINY, "seed": 3, "count": 2}
        assert client.post("/v1/samples", json=body).status_code == 200
        finished_job(client, create_job(client, "/v1/samples", **body))
        digits(stack.state / "state" / "datasets", "dashboard-digits")
        recipe = {"config": {"hidden": [16], "latents": 3}, "training": {"epochs": 1, "batch_size": 50}}
        training = {"family": "vae", "dataset": "dashboard-digits", "name": "dashboard", "recipe": recipe}
        response = client.post("/v1/trainings", json={**training, "evaluation": {"count": 40, "k": 20}})
        assert response.status_code == 202, response.text
        finished_job(client, response.json()["id"])
        wait_until(lambda: "reverie_training_run_seconds_count" in client.get("/metrics").text, "heartbeats are read")
        yield client


def _exposed(client: httpx.Client) -> dict[str, set[str]]:
    """Return the labels of the samples in `/metrics`, by name."""
    exposed: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            exposed.setdefault(sample.name, set()).update(sample.labels)
    return exposed


def test_the_dashboard_asks_for_what_there_is(used: httpx.Client, root: Path) -> None:
    """Each metric and label in a query or legend of the dashboard is in `/metrics`."""
    exposed = _exposed(used)
    queries = _queries(root)
    assert len(queries) > 20
    for query, legend in queries:
        names = re.findall(r"\breverie_\w+", query)
        assert names, query
        for name in names:
            assert name in exposed, f"{name} is not in /metrics"
            assert _labels_of(query) <= exposed[name], f"{name} has the labels {exposed[name]}: {query}"
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= _labels_of(query), f"{legend}: {query}"


def test_every_metric_is_on_the_dashboard_and_on_the_page(used: httpx.Client, root: Path) -> None:
    """Each metric is on the dashboard, and with its labels in docs/monitoring.md."""
    page = (root / "docs" / "monitoring.md").read_text()
    queries = " ".join(query for query, _ in _queries(root))
    for family in text_string_to_metric_families(used.get("/metrics").text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        described = ", ".join(f"`{label}`" for label in labels) or "none"
        assert re.search(rf"^\| `{name}` \| {family.type} \| {described} \|", page, re.MULTILINE), (name, described)
        assert name in queries, f"no panel shows {name}"


def test_the_dashboard_is_one_of_grafana(root: Path) -> None:
    """Panels have unique ids, do not overlap, and refer to no particular data source."""
    dashboard = json.loads((root / "docs" / "grafana" / "reverie.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken
        taken |= cells
        assert at["x"] + at["w"] <= 24
    assert {panel["datasource"]["uid"] for panel in _panels(root)} == {"${datasource}"}
    assert all(panel["title"] and panel["description"] for panel in _panels(root))


@pytest.mark.slow
def test_prometheus_answers_each_query_of_the_dashboard(
    used: httpx.Client, stack: Stack, root: Path, tmp_path: Path
) -> None:
    """Debian's Prometheus scrapes the service and has a result for each query."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("NOT TESTED: no `prometheus` on the PATH; apt-get install prometheus")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: reverie, static_configs: [{{targets: ['127.0.0.1:{stack.port}']}}]}}]\n"
    )
    port = free_port()
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as prometheus:
            _check_queries(prometheus, used, root)
    finally:
        process.terminate()
        process.wait(30)


def _check_queries(prometheus: httpx.Client, service: httpx.Client, root: Path) -> None:
    """Check that each query of the dashboard has a result once rates can be computed."""

    def answer(query: str) -> list[Any]:
        query = query.replace("$__rate_interval", "1m")
        try:
            response = prometheus.get("/api/v1/query", params={"query": query})
        except httpx.TransportError:
            return []
        if response.status_code == 503:
            return []
        body = response.json()
        assert body["status"] == "success", (query, body)
        found: list[Any] = body["data"]["result"]
        return found

    wait_until(lambda: answer("reverie_workers"), "Prometheus has scraped the service", 60)
    for _ in range(5):  # growing counters, so that each rate has a value
        assert service.post("/v1/samples", json={"model": TINY, "count": 1}).status_code == 200
        time.sleep(1)
    for query, _ in _queries(root):
        wait_until(lambda query=query: answer(query), f"{query} has a result", 30)  # type: ignore[misc]
