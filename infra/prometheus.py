"""A Prometheus configuration for one cluster: what to scrape, where, with which credentials.

Nodes come and go, so Ray's HTTP service discovery lists them; the dashboard asks for the cluster's
token, which Prometheus reads from a file. Ray lists node agents, the dashboard and the autoscaler
under one name; here the autoscaler is a job of its own, because `site` means something else there.
Metric ports themselves are plain HTTP: Prometheus belongs on the head or inside its network.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.backend_settings import SshBackendSettings
from cluster.config import ClusterSettings, PortSettings
from cluster.errors import ConfigError

RAY_JOB = "ray"
AUTOSCALER_JOB = "tidegate-autoscaler"
GATEWAY_JOB = "tidegate-gateway"
PROXY_JOB = "tidegate-haproxy"

_ADDRESS = "__address__"


@dataclass(frozen=True, slots=True)
class Scraping:
    """Where Prometheus finds the cluster. Hosts as Prometheus' machine reaches them.

    `dashboard_host` is where Ray's dashboard listens, `entry_host` where HAProxy does.
    """

    token_file: Path
    dashboard_host: str = "127.0.0.1"
    entry_host: str = "127.0.0.1"
    interval_s: int = 10
    rule_files: tuple[str, ...] = ()


def build_prometheus(settings: ClusterSettings, scraping: Scraping) -> dict[str, Any]:
    """Return the configuration's content.

    Raises:
        ConfigError: the cluster file pins no ports.
    """
    ports = settings.ports
    if ports is None:
        raise ConfigError(
            f"{settings.cluster_name}: provider.ports must be given; without pinned ports nothing "
            "says where to scrape. Add the section from cluster/hybrid.yaml."
        )
    autoscaler_only = rf".+:{ports.autoscaler_metrics}"
    discovery = _discover(scraping, ports)
    jobs = [
        {
            "job_name": RAY_JOB,
            "http_sd_configs": discovery,
            "relabel_configs": [
                {"source_labels": [_ADDRESS], "regex": autoscaler_only, "action": "drop"},
                *_name_nodes(settings),
                _name_cluster(settings),
            ],
        },
        {
            "job_name": AUTOSCALER_JOB,
            "http_sd_configs": discovery,
            "relabel_configs": [
                {"source_labels": [_ADDRESS], "regex": autoscaler_only, "action": "keep"},
                # Ray's discovery names its job itself; the job must be the one above.
                {"target_label": "job", "replacement": AUTOSCALER_JOB},
                _name_cluster(settings),
            ],
        },
        _scrape_entry(GATEWAY_JOB, f"{scraping.entry_host}:{ports.serve}", settings),
        _scrape_entry(PROXY_JOB, f"{scraping.entry_host}:{ports.proxy_metrics}", settings),
    ]
    return {
        "global": {
            "scrape_interval": f"{scraping.interval_s}s",
            "scrape_timeout": f"{min(10, scraping.interval_s)}s",
            "evaluation_interval": f"{scraping.interval_s}s",
        },
        "rule_files": list(scraping.rule_files),
        "scrape_configs": jobs,
    }


def render_prometheus(settings: ClusterSettings, scraping: Scraping) -> str:
    """Return the configuration as Prometheus reads it; raises as `build_prometheus` does."""
    content = build_prometheus(settings, scraping)
    return yaml.dump(content, Dumper=_WithoutAliases, sort_keys=False, width=100)


class _WithoutAliases(yaml.SafeDumper):
    """Writes a value that stands twice in full twice: people edit this file."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _discover(scraping: Scraping, ports: PortSettings) -> list[dict[str, Any]]:
    return [
        {
            "url": f"http://{scraping.dashboard_host}:{ports.dashboard}/api/prometheus/sd",
            "refresh_interval": f"{scraping.interval_s}s",
            "authorization": {"type": "Bearer", "credentials_file": str(scraping.token_file)},
        }
    ]


def _name_nodes(settings: ClusterSettings) -> list[dict[str, Any]]:
    """Return rules that put `address` on every target, `site` and `node` on machines of our own.

    Rented nodes have addresses that no file knows; `tidegate_node_info` joins them by `address`.
    """
    rules: list[dict[str, Any]] = [
        {"source_labels": [_ADDRESS], "regex": r"(.+):\d+", "target_label": "address"}
    ]
    for site, site_settings in settings.sites.items():
        if not isinstance(site_settings.backend, SshBackendSettings):
            continue
        for name, host in site_settings.backend.hosts.items():
            match = {
                "source_labels": [_ADDRESS],
                "regex": rf"{re.escape(host.address)}:\d+",
            }
            rules.append({**match, "target_label": "site", "replacement": str(site)})
            rules.append({**match, "target_label": "node", "replacement": name})
    return rules


def _name_cluster(settings: ClusterSettings) -> dict[str, str]:
    """Return the rule for the label by which Ray's dashboards tell clusters apart."""
    return {"target_label": "ray_io_cluster", "replacement": str(settings.cluster_name)}


def _scrape_entry(job: str, target: str, settings: ClusterSettings) -> dict[str, Any]:
    return {
        "job_name": job,
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [target]}],
        "relabel_configs": [_name_cluster(settings)],
    }
