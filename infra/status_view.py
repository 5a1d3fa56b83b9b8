"""The state of a running cluster as tables and as data for other programs."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from infra.observe import ClusterView

_LEVEL_COLOURS = {"ok": "green", "soft": "yellow", "hard": "red"}


def describe_status(view: ClusterView) -> Mapping[str, Any]:
    """Return the state ready for JSON: the decision record and the gateways' signals."""
    return {
        "decision": dict(view.decision),
        "signals": [asdict(signals) for signals in view.signals],
    }


def render_status(view: ClusterView) -> Group:
    """Return what `tidegate status` shows: nodes, pools, money, sold out, burst, the reasons."""
    parts: list[RenderableType] = [_render_nodes(view), _render_pools(view)]
    if view.decision.get("budget"):
        parts.append(_render_budget(view.decision))
    if view.decision.get("sold_out"):
        parts.append(_render_sold_out(view.decision))
    parts.append(escape("\n".join(_list_lines(view))))
    return Group(*parts)


def _render_nodes(view: ClusterView) -> Table:
    cordons: Mapping[str, str] = view.decision.get("cordons") or {}
    table = Table("node", "type", "site", "state")
    for node in view.nodes:
        cordon = cordons.get(node["id"])
        state = node["state"] if cordon is None else f"{node['state']}, {cordon}"
        table.add_row(node["id"], node["type"], node["site"], state)
    return table


def _render_pools(view: ClusterView) -> Table:
    table = Table("pool", "site", "replicas", "slots", "streams")
    for pool in view.pools:
        slots = pool.replicas_running * pool.slots_per_replica
        streams = view.streams_running(pool)
        table.add_row(pool.pool, pool.site, str(pool.replicas_running), str(slots), str(streams))
    return table


def _render_budget(decision: Mapping[str, Any]) -> Table:
    table = Table("limit", "$", "used", "level", "because")
    for use in decision["budget"]:
        level = str(use.get("level", "ok"))
        used = use.get("used_usd")
        table.add_row(
            str(use["limit"]),
            str(use["limit_usd"]),
            "unknown" if used is None else f"{float(used):.2f}",
            f"[{_LEVEL_COLOURS.get(level, 'white')}]{level}[/]",
            escape(str(use.get("reason", ""))),
        )
    return table


def _render_sold_out(decision: Mapping[str, Any]) -> Table:
    now_s = time.time()
    table = Table("sold out", "zone", "market", "asked again in")
    for one in decision["sold_out"]:
        left_s = max(0.0, float(one["until_s"]) - now_s)
        table.add_row(one["instance_type"], one["zone"], one["market"], f"{left_s:.0f} s")
    return table


def _list_lines(view: ClusterView) -> Iterator[str]:
    decision = view.decision
    burst = decision.get("burst", "unknown")
    yield f"burst {burst}, waiting {view.waiting}, ${view.usd_per_hour:.2f}/h"
    if decision.get("is_leader") is False:
        yield "watching: another autoscaler holds the lease"
    for word, key in (
        ("because", "reasons"),
        ("limit  ", "limits"),
        ("warning", "warnings"),
        ("unmet  ", "unmet"),
    ):
        yield from (f"{word} {text}" for text in decision.get(key) or ())
    for hold in decision.get("holds") or ():
        yield f"held    {hold['node_type']} at {hold['site']}: {hold['why']}"
