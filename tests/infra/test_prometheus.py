import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster.config import ClusterSettings, load_cluster_file
from cluster.errors import ConfigError
from infra.prometheus import (
    AUTOSCALER_JOB,
    GATEWAY_JOB,
    PROXY_JOB,
    RAY_JOB,
    Scraping,
    build_prometheus,
    render_prometheus,
)

FILES = Path(cluster.__file__).parent
TOKEN = Path("/home/me/.tidegate/c/auth_token")


@pytest.fixture(params=["local.yaml", "hybrid.yaml"])
def settings(request: pytest.FixtureRequest) -> ClusterSettings:
    return load_cluster_file(FILES / request.param)


@pytest.fixture
def hybrid() -> ClusterSettings:
    return load_cluster_file(FILES / "hybrid.yaml")


def jobs(settings: ClusterSettings) -> dict[str, Any]:
    content = build_prometheus(settings, Scraping(TOKEN))
    return {job["job_name"]: job for job in content["scrape_configs"]}


def relabel(job: dict[str, Any], address: str) -> dict[str, str] | None:
    """What Prometheus makes of a target of that address, for the actions we use."""
    labels = {"__address__": address}
    for rule in job["relabel_configs"]:
        text = ";".join(labels.get(name, "") for name in rule.get("source_labels", ()))
        match = re.fullmatch(rule.get("regex", "(.*)"), text)
        action = rule.get("action", "replace")
        if (action == "keep" and match is None) or (action == "drop" and match is not None):
            return None
        if action == "replace" and match is not None:
            replacement = rule.get("replacement", "$1").replace("$1", r"\1")
            labels[rule["target_label"]] = match.expand(replacement)
    return labels


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool isn't installed")
def test_prometheus_accepts_the_configuration(settings: ClusterSettings, tmp_path: Path) -> None:
    token, rules = tmp_path / "token", tmp_path / "rules.yml"
    token.write_text("secret")
    rules.write_text("groups: []\n")
    file = tmp_path / "prometheus.yml"
    file.write_text(render_prometheus(settings, Scraping(token, rule_files=(str(rules),))))
    command = ["promtool", "check", "config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_token_is_named_by_its_file_and_never_written(hybrid: ClusterSettings) -> None:
    found = jobs(hybrid)
    assert list(found) == [RAY_JOB, AUTOSCALER_JOB, GATEWAY_JOB, PROXY_JOB]
    for name in (RAY_JOB, AUTOSCALER_JOB):
        (discovery,) = found[name]["http_sd_configs"]
        assert discovery["url"] == "http://127.0.0.1:8265/api/prometheus/sd"
        assert discovery["authorization"] == {"type": "Bearer", "credentials_file": str(TOKEN)}


def test_each_target_that_ray_lists_belongs_to_one_job(hybrid: ClusterSettings) -> None:
    found = jobs(hybrid)
    assert relabel(found[RAY_JOB], "10.20.0.10:44217") is None
    autoscaler = relabel(found[AUTOSCALER_JOB], "10.20.0.10:44217")
    assert autoscaler is not None
    assert autoscaler["job"] == AUTOSCALER_JOB
    assert relabel(found[AUTOSCALER_JOB], "10.20.0.10:6412") is None
    assert relabel(found[RAY_JOB], "10.20.0.10:6412") is not None


def test_machines_of_our_own_carry_site_and_node_and_rented_ones_their_address(
    hybrid: ClusterSettings,
) -> None:
    ray = jobs(hybrid)[RAY_JOB]
    owned = relabel(ray, "10.20.0.21:6412")
    assert owned is not None
    assert (owned["site"], owned["node"]) == ("onprem", "l40s-1")
    rented = relabel(ray, "10.20.1.21:6412")
    assert rented is not None
    assert (rented["address"], rented.get("site")) == ("10.20.1.21", None)
    assert rented["ray_io_cluster"] == "tidegate-hybrid"


def test_our_own_site_label_is_never_overwritten(settings: ClusterSettings) -> None:
    """A target's `site` would push the `site` of our metrics aside, so these jobs set none."""
    found = jobs(settings)
    for name in (AUTOSCALER_JOB, GATEWAY_JOB, PROXY_JOB):
        written = {rule.get("target_label") for rule in found[name]["relabel_configs"]}
        assert written <= {None, "job", "ray_io_cluster"}


def test_a_file_without_ports_is_refused_with_what_to_add(hybrid: ClusterSettings) -> None:
    with pytest.raises(ConfigError, match=r"provider\.ports must be given"):
        build_prometheus(replace(hybrid, ports=None), Scraping(TOKEN))
