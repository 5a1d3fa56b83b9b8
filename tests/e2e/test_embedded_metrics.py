"""A real Prometheus with our configuration scrapes a cluster, and every panel has data.

Earns its minute: only here do Ray's service discovery with its token, the autoscaler's metrics
server, the gateway, the ledger and the dashboard's expressions meet. Skipped without Debian's
`prometheus`. The cluster is that of `test_embedded_under_load.py`, which comes after it by name:
the burst there fires alerts.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import cluster
from cluster.ledger import Ledger
from cluster.model import NodeTypeName, SiteName, SoldOut
from infra.dashboards import build_hybrid_dashboard
from infra.embedded import resolve_cluster
from infra.prometheus import (
    AUTOSCALER_JOB,
    GATEWAY_JOB,
    PROXY_JOB,
    RAY_JOB,
    Scraping,
    render_prometheus,
)
from infra.rules import Thresholds, build_rules, render_rules
from tests.e2e.prometheus_server import PrometheusServer, run_prometheus, wait_until
from tests.e2e.served import Served

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(700),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="Debian's prometheus isn't installed"
    ),
]

MODEL = "llama-3.1-8b-emulated"
JOBS = {RAY_JOB, AUTOSCALER_JOB, GATEWAY_JOB, PROXY_JOB}
CLOUD = SiteName("cloud")


@pytest.fixture(scope="module")
def prometheus(
    emulated: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    """Prometheus, once it has scraped every job; something is sold out and held back."""
    folder = tmp_path_factory.mktemp("prometheus")
    file = Path(cluster.__file__).parent / "local.yaml"
    _, settings = resolve_cluster(file, port_offset=emulated.port_offset)
    state = settings.state_dir / settings.cluster_name
    rules = folder / "rules.yml"
    rules.write_text(render_rules(build_rules(Thresholds())))
    scraping = Scraping(state / "auth_token", interval_s=2, rule_files=(str(rules),))
    ask(emulated)
    configuration = render_prometheus(settings, scraping)
    with sold_out_cloud(state / "ledger.db"), run_prometheus(folder, configuration) as server:

        def is_scraped() -> bool:
            found = server.targets()
            return found.keys() == JOBS and all(
                said.startswith("up") for targets in found.values() for said in targets
            )

        assert wait_until(is_scraped, timeout_s=90), server.targets()
        yield server


def ask(emulated: Served) -> None:
    answer = httpx.post(
        f"{emulated.url}/v1/chat/completions",
        json={
            "model": MODEL,
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "hello"}],
        },
        headers={"Authorization": f"Bearer {emulated.key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


@contextmanager
def sold_out_cloud(file: Path) -> Iterator[None]:
    """Note a sold-out offering and a hold, which the embedded cloud never has by itself.

    The ledger outlives the cluster: what was noted is taken back.
    """
    until_s = time.time() + 3600
    ledger = Ledger(file)
    held = NodeTypeName("cloud_gpu")
    offering = SoldOut(CLOUD, "g6e.2xlarge", "a", "on_demand", "InsufficientCapacity", until_s)
    ledger.replace_sold_out(CLOUD, [offering])
    ledger.hold_type(CLOUD, held, until_s, "all of it is sold out")
    try:
        yield
    finally:
        ledger.replace_sold_out(CLOUD, [])
        ledger.lift_hold(CLOUD, held)
        ledger.close()


def fill_in(expr: str) -> str:
    """What Grafana sends when everything is chosen and the page is zoomed in."""
    return (
        expr.replace("$Cluster", ".*")
        .replace("$SessionName", ".*")
        .replace("$__rate_interval", "30s")
    )


def test_every_panel_has_data(emulated: Served, prometheus: PrometheusServer) -> None:
    """Rates need two scrapes with requests between them: some are sent until all have answered."""
    waiting = {
        fill_in(target["expr"]): panel["title"]
        for panel in build_hybrid_dashboard()["panels"]
        for target in panel.get("targets", ())
    }
    count = len(waiting)
    assert count >= 35

    def all_answered() -> bool:
        ask(emulated)
        for expr in [expr for expr in waiting if prometheus.query(expr)]:
            del waiting[expr]
        return not waiting

    assert wait_until(all_answered, timeout_s=30), waiting


def test_nodes_are_joined_with_what_the_ledger_knows_of_them(prometheus: PrometheusServer) -> None:
    panels = {panel["title"]: panel for panel in build_hybrid_dashboard()["panels"]}
    (target,) = panels["Memory used by node"]["targets"]
    found = prometheus.query(fill_in(target["expr"]))
    labels = {(one["metric"]["site"], one["metric"]["node_type"]) for one in found}
    assert ("onprem", "head") in labels
    assert ("onprem", "onprem_gpu") in labels


def test_figures_are_those_of_the_cluster(prometheus: PrometheusServer) -> None:
    def value(expr: str) -> float:
        (found,) = prometheus.query(expr)
        return float(found["value"][1])

    assert value('tidegate_nodes{node_type="head", phase="running"}') == 1
    assert value('tidegate_limit_usd{limit="usd_per_hour"}') == 4
    assert value('tidegate_sold_out_offerings{site="cloud"}') == 1
    assert value('sum(tidegate_requests_total{site="onprem"})') >= 1
    assert value("min(tidegate_source_readable)") == 1


def test_a_healthy_cluster_fires_no_alert_but_the_one_about_sold_out_types(
    prometheus: PrometheusServer,
) -> None:
    answer = httpx.get(f"{prometheus.url}/api/v1/alerts", timeout=10).json()
    names = {alert["labels"]["alertname"] for alert in answer["data"]["alerts"]}
    assert names <= {"TidegateCapacityErrors"}


def test_service_discovery_gives_nothing_without_the_token(emulated: Served) -> None:
    dashboard = f"http://127.0.0.1:{8265 + emulated.port_offset}"
    assert httpx.get(f"{dashboard}/api/prometheus/sd", timeout=10).status_code == 401
