import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaling.metrics import METRICS
from deployments.metrics import GatewayMetrics
from infra.dashboards import HYBRID_UID, build_hybrid_dashboard
from infra.panels import COLUMNS, Panel, Query, Row, lay_out

# Panel types that draw without Angular, all in Grafana's core since version 9.
CORE_TYPES = {"timeseries", "stat", "table", "state-timeline", "row"}
UNITS = {"short", "currencyUSD", "percentunit", "s", "dateTimeFromNow", "none"}
RAY_METRICS = {"ray_node_mem_used", "ray_node_mem_total"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return build_hybrid_dashboard()


def drawn(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in drawn(dashboard) for target in panel["targets"]]


def fill_in(expr: str) -> str:
    """What Grafana sends when everything is chosen."""
    return (
        expr.replace("$Cluster", ".*")
        .replace("$SessionName", ".*")
        .replace("$__rate_interval", "1m")
    )


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def test_it_is_a_dashboard_of_today_s_schema_with_a_lasting_uid(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"] == HYBRID_UID == "tidegate-hybrid-cost"
    assert dashboard["schemaVersion"] >= 39
    # These two are Grafana's: with them, a push to another server would miss or conflict.
    assert not {"id", "version"} & dashboard.keys()
    assert json.loads(json.dumps(dashboard)) == dashboard
    assert dashboard == build_hybrid_dashboard()


def test_its_variables_are_called_as_in_ray_s_dashboards(dashboard: dict[str, Any]) -> None:
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "Cluster", "SessionName"]
    used = set(re.findall(r"\$\{?(\w+)", " ".join(strings(dashboard["panels"]))))
    assert used - {"__rate_interval"} <= variables.keys()


def test_panels_have_numbers_of_their_own_and_a_core_type(dashboard: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers)) >= 30
    assert {panel["type"] for panel in dashboard["panels"]} <= CORE_TYPES


def test_no_panel_overlaps_another_or_leaves_the_grid(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= COLUMNS
        assert place["w"] > 0
        assert place["h"] > 0
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_has_a_unit_a_meaning_a_datasource_and_its_own_title(
    dashboard: dict[str, Any],
) -> None:
    panels = drawn(dashboard)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert letters
        for target in panel["targets"]:
            assert target["instant"] != target["range"]


def test_panels_ask_only_for_metrics_that_exist(dashboard: dict[str, Any]) -> None:
    known = {metric.name for metric in METRICS} | RAY_METRICS
    for family in GatewayMetrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        known.add(family.name + suffix)
        if family.type == "histogram":
            known.add(f"{family.name}_bucket")
    known |= {
        f"{m.name}{end}" for m in METRICS if m.kind == "summary" for end in ("_sum", "_count")
    }
    for expr in expressions(dashboard):
        names = set(re.findall(r"\b(?:tidegate|ray_node)_\w+", expr))
        assert names, expr
        assert names <= known, (expr, names - known)


def test_every_metric_of_the_list_is_on_the_dashboard(
    dashboard: dict[str, Any],
) -> None:
    shown = " ".join(expressions(dashboard))
    assert [metric.name for metric in METRICS if metric.name not in shown] == []


def test_every_expression_is_limited_to_the_chosen_cluster(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        selectors = re.findall(r"\{([^}]*)\}", expr)
        assert selectors, expr
        for selector in selectors:
            assert 'ray_io_cluster=~"$Cluster"' in selector, expr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool isn't installed")
def test_prometheus_parses_every_expression(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Each expression stands as a recording rule: what promtool parses, the server does."""
    rules = [
        {"record": f"panel:{number}", "expr": fill_in(expr)}
        for number, expr in enumerate(expressions(dashboard))
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    command = ["promtool", "check", "rules", "--lint=none", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_panels_that_do_not_fit_a_line_go_to_the_next() -> None:
    panel = Panel("a", "stat", "none", (Query("up"),), "Up.", width=16, height=3)
    placed = lay_out([Row("first", (panel, panel)), Row("second", (panel,))])
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in placed]
    assert places == [(0, 0), (0, 1), (0, 4), (0, 7), (0, 8)]


def test_the_documentation_lists_every_metric_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "observe.md").read_text(encoding="utf-8")
    for metric in METRICS:
        labels = ", ".join(metric.labels) or "-"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |" in text
    for family in GatewayMetrics().registry.collect():
        assert f"| `{family.name}" in text
