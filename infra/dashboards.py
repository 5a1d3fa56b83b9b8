"""The dashboard "hybrid & cost" as code; its rows are in `dashboard_demand` and `dashboard_supply`.

Its uid never changes, so links keep working; its variables are named as in Ray's dashboards, so
that a link from there carries the choice over. `infra.grafana` sends it to Grafana.
"""

from typing import Any

from autoscaling import metrics as m
from infra.dashboard_demand import show_burst, show_demand, show_now
from infra.dashboard_supply import show_autoscaler, show_money, show_nodes, show_sites
from infra.panels import lay_out
from infra.queries import CLUSTER

HYBRID_UID = "tidegate-hybrid-cost"
SCHEMA_VERSION = 39


def build_hybrid_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana stores it, without `id` and `version`, which are its own."""
    rows = (
        show_now(),
        show_demand(),
        show_burst(),
        show_money(),
        show_nodes(),
        show_sites(),
        show_autoscaler(),
    )
    return {
        "uid": HYBRID_UID,
        "title": "Tidegate: hybrid & cost",
        "description": "Owned and rented capacity against demand, and what the rented part costs.",
        "tags": ["tidegate", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _build_variables()},
        "panels": lay_out(rows),
    }


def _build_variables() -> list[dict[str, Any]]:
    datasource = {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }
    return [
        datasource,
        _build_variable("Cluster", f"label_values({m.LEASE_HELD.name}, ray_io_cluster)"),
        _build_variable(
            "SessionName", f"label_values(ray_node_mem_used{{{CLUSTER}}}, SessionName)"
        ),
    ]


def _build_variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query,
        "query": {"query": query, "refId": f"Prometheus-{name}-Variable-Query"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "allValue": ".*",
        "multi": False,
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }
