"""Builds Grafana panels as plain JSON values, in the form of schema version 39 and later.

Panels are described in rows; `lay_out` gives each its number and its place, so that none overlap.
No panel is of a type that needs Angular. Decides nothing about what is shown: see
`infra.dashboards`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

COLUMNS = 24
PanelType = Literal["timeseries", "stat", "table", "state-timeline"]
Unit = Literal["short", "currencyUSD", "percentunit", "s", "dateTimeFromNow", "none"]

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and how its series are called. `is_instant` = only the newest values."""

    expr: str
    legend: str = ""
    is_instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `steps` colours values: (from this value on, colour), the first from None."""

    title: str
    type: PanelType
    unit: Unit
    queries: tuple[Query, ...]
    meaning: str
    width: int = 12
    height: int = 8
    is_stacked: bool = False
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    hidden_columns: tuple[str, ...] = ()
    mappings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side under a heading; too many for one line wrap."""

    title: str
    panels: tuple[Panel, ...]


def lay_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return all panels with numbers and places, rows' headings among them."""
    placed: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        placed.append(_render_heading(row.title, number=len(placed) + 1, top=top))
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            placed.append(_render_panel(panel, number=len(placed) + 1, place=place))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return placed


def _render_heading(title: str, *, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }


def _render_panel(panel: Panel, *, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    rendered = {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _DATASOURCE,
        "gridPos": dict(place),
        "targets": [_render_query(query, panel.type, at) for at, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _render_defaults(panel), "overrides": []},
        "options": _render_options(panel),
    }
    if panel.type == "table":
        excluded = dict.fromkeys(("Time", *panel.hidden_columns), True)
        rendered["transformations"] = [
            {"id": "organize", "options": {"excludeByName": excluded, "renameByName": {}}}
        ]
    return rendered


def _render_query(query: Query, panel_type: PanelType, at: int) -> dict[str, Any]:
    is_instant = query.is_instant or panel_type == "table"
    return {
        "refId": chr(ord("A") + at),
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": "table" if panel_type == "table" else "time_series",
        "instant": is_instant,
        "range": not is_instant,
        "editorMode": "code",
    }


def _render_defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if len(steps) > 1 else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "index": at}}}
            for at, (value, text) in enumerate(panel.mappings.items())
        ],
    }
    if panel.type == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["min"] = 0
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.is_stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
        }
    return defaults


def _render_options(panel: Panel) -> dict[str, Any]:
    if panel.type == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.type == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.type == "table":
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    return {
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single"},
    }
