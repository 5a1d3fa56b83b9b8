"""The state of a running cluster as tables and as data for other programs."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from infra.observe import ClusterView
from infra.status import Status

_LEVEL_COLOURS = {"ok": "green", "soft": "yellow", "hard": "red"}


def describe_status(status: Status) -> Mapping[str, Any]:
    """Return the state ready for JSON: decision record, gateways' signals, ledger."""
    return {
        "decision": dict(status.view.decision),
        "signals": [asdict(signals) for signals in status.view.signals],
        "ledger": dict(status.ledger),
        "errors": list(status.errors),
    }


def render_status(status: Status) -> Group:
    """Return what `tidegate status` shows: nodes, pools, money, sold out, burst, the reasons."""
    parts: list[RenderableType] = [_render_nodes(status.view), _render_pools(status.view)]
    if status.ledger.get("budget"):
        parts.append(_render_budget(status.ledger))
    if status.ledger.get("sold_out"):
        parts.append(_render_sold_out(status.ledger))
    parts.append(escape("\n".join(_list_lines(status))))
    return Group(*parts)


def _render_nodes(view: ClusterView) -> Table:
    table = Table("node", "type", "site", "state")
    for node in view.nodes:
        states = [
            node["state"],
            node.get("cordon"),
            "leaving soon" if node.get("noticed") else None,
        ]
        table.add_row(node["id"], node["type"], node["site"], ", ".join(filter(None, states)))
    return table


def _render_pools(view: ClusterView) -> Table:
    table = Table("pool", "site", "replicas", "slots", "streams")
    for pool in view.pools:
        slots = pool.replicas_running * pool.slots_per_replica
        streams = view.streams_running(pool)
        table.add_row(pool.pool, pool.site, str(pool.replicas_running), str(slots), str(streams))
    return table


def _render_budget(ledger: Mapping[str, Any]) -> Table:
    table = Table("limit", "$", "used", "level", "because")
    for use in ledger["budget"]:
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


def _render_sold_out(ledger: Mapping[str, Any]) -> Table:
    now_s = time.time()
    table = Table("sold out", "zone", "market", "asked again in")
    for one in ledger["sold_out"]:
        left_s = max(0.0, float(one["until_s"]) - now_s)
        table.add_row(one["instance_type"], one["zone"], one["market"], f"{left_s:.0f} s")
    return table


def _list_lines(status: Status) -> Iterator[str]:
    view, decision = status.view, status.view.decision
    burst = decision.get("burst", "unknown")
    yield f"burst {burst}, waiting {view.waiting}, ${view.usd_per_hour:.2f}/h{_say_spend(status)}"
    if decision.get("mode") == "shadow":
        yield "shadow: decided as always, nothing is asked of sites that aren't owned"
        yield from (f"shadow  {text}" for text in (decision.get("shadow") or {}).get("says", ()))
    if decision.get("is_leader") is False:
        yield "watching: another autoscaler holds the lease"
    yield from (f"{_say_time(change)} {change['why']}" for change in decision.get("changes") or ())
    for word, key in (("because", "reasons"), ("limit  ", "limits"), ("unmet  ", "unmet")):
        yield from (f"{word} {text}" for text in decision.get(key) or ())
    for hold in status.ledger.get("holds") or ():
        yield f"held    {hold['node_type']} at {hold['site']}: {hold['why']}"
    for site in status.ledger.get("sites") or ():
        if site.get("error"):
            yield f"site    {site['site']} can't be asked: {site['error']}"
    yield from (f"error   {text}" for text in status.errors)


def _say_time(change: Mapping[str, Any]) -> str:
    return f"{datetime.fromtimestamp(float(change['at_s']), UTC):%H:%M:%S} UTC"


def _say_spend(status: Status) -> str:
    spend = status.ledger.get("spend")
    if not spend:
        return ""
    day, month = (
        "unknown" if usd is None else f"${float(usd):.2f}"
        for usd in (spend["day_usd"], spend["month_usd"])
    )
    return f", spent today {day}, this month {month} (UTC)"
