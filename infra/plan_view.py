"""A plan as a table and as data for other programs."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from cluster.config import ClusterSettings
from infra.plan import UNKNOWN_COUNT, Change, ChangePlan


def describe_plan(settings: ClusterSettings, plan: ChangePlan) -> Mapping[str, Any]:
    """Return the plan ready for JSON; money as numbers, null = unknown."""
    return {
        "cluster": settings.cluster_name,
        "changes": [
            {
                "action": change.action,
                "node_type": change.node_type,
                "site": change.site,
                "node": change.node,
                "usd_per_hour": _number(change.usd_per_hour),
                "why": change.why,
            }
            for change in plan.changes
        ],
        "refused": list(plan.refusals),
        "usd_per_hour_now": _number(plan.usd_per_hour_now),
        "usd_per_hour_after": _number(plan.usd_per_hour_after),
        "usd_per_hour_delta": _number(_delta(plan)),
        "limits": {
            "usd_per_hour": _number(settings.limits.usd_per_hour),
            "usd_per_day": _number(settings.limits.usd_per_day),
            "usd_per_month": _number(settings.limits.usd_per_month),
        },
        "nodes": {
            site: None if count == UNKNOWN_COUNT else count for site, count in plan.nodes.items()
        },
        "reasons": list(plan.reasons),
        "notes": list(plan.notes),
    }


def render_plan(plan: ChangePlan) -> RenderableType:
    """Return what `tidegate plan` shows."""
    table = Table("action", "node type", "site", "$/h", "why")
    for change in plan.changes:
        table.add_row(
            "[green]launch[/]" if change.action == "launch" else "[yellow]release[/]",
            change.node_type,
            change.site,
            _show_signed(change),
            escape(change.why if change.node is None else f"{change.node}: {change.why}"),
        )
    there = ", ".join(
        f"{site} {'unknown' if count == UNKNOWN_COUNT else count}"
        for site, count in plan.nodes.items()
    )
    now, after = _show(plan.usd_per_hour_now), _show(plan.usd_per_hour_after)
    lines = [
        f"nodes now: {there}",
        f"money: {now} $/h now, {after} $/h after, a change of {_show(_delta(plan))} $/h",
        *(f"refused     {text}" for text in plan.refusals),
        *(f"autoscaler  {text}" for text in plan.reasons),
        *(f"note        {text}" for text in plan.notes),
    ]
    if not plan.changes:
        lines.insert(0, "Nothing would be launched or released now.")
        return escape("\n".join(lines))
    return Group(table, escape("\n".join(lines)))


def _delta(plan: ChangePlan) -> Decimal | None:
    if plan.usd_per_hour_now is None or plan.usd_per_hour_after is None:
        return None
    return plan.usd_per_hour_after - plan.usd_per_hour_now


def _show_signed(change: Change) -> str:
    if change.usd_per_hour is None:
        return "unknown"
    sign = "+" if change.action == "launch" else "-"
    return f"{sign}{change.usd_per_hour:.2f}"


def _show(usd: Decimal | None) -> str:
    return "unknown" if usd is None else f"{usd:.2f}"


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)
