"""How the figures of simulations are shown: means over seeds as a table, everything as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoscaling.simulator.tally import Outcome

_NUMBERS = (
    "slo_attainment",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "cloud_usd",
    "owned_usd",
    "cloud_gpu_hours",
    "completed",
    "rejected",
    "residency_violations",
    "launches",
    "reversals",
    "wall_s",
    "failed",
    "unfinished",
    "lost_nodes",
)


def build_policy_rows(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Return one row for each policy: means over the seeds, and each seed's own figures."""
    return [_build_row(name, found) for name, found in outcomes.items()]


def render_policy_table(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return the rows as a table for a person."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for name in ("SLO met", "TTFT\np50 s", "TTFT\np99 s", "cloud $", "done"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("re-\nfused", "failed", "laun-\nches", "turns"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['slo_attainment']:.1%}",
            _say(row["ttft_p50_s"], 3),
            _say(row["ttft_p99_s"], 2),
            f"{row['cloud_usd']:.2f}",
            f"{row['completed']:.0f}",
            f"{row['rejected']:.0f}",
            f"{row['failed'] + row['unfinished']:.0f}",
            f"{row['launches']:.0f}",
            f"{row['reversals']:.0f}",
        )
    return table


def _build_row(name: str, found: Sequence[Outcome]) -> dict[str, Any]:
    if len(found) == 1:
        return found[0].as_json()
    row: dict[str, Any] = {"name": name}
    for number in _NUMBERS:
        values = [getattr(outcome, number) for outcome in found]
        known = [value for value in values if value is not None]
        row[number] = fmean(known) if known else None
    row["note"] = found[0].note
    row["per_seed"] = [outcome.as_json() for outcome in found]
    return row


def _say(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
