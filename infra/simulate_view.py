"""How the figures of simulations are shown: means over seeds as a table, everything as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from infra.simulate_demand import AskedTraffic
from infra.simulate_run import Finished
from infra.what_if import Payback

_NUMBERS = (
    "slo_attainment",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "cloud_usd",
    "egress_usd",
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


@dataclass(frozen=True, slots=True)
class Subject:
    """What was simulated: the traffic as asked for, in which scenario, with which seeds."""

    asked: AskedTraffic
    scenario: Scenario
    seeds: tuple[int, ...]
    payback: Payback | None = None


def build_content(finished: Finished, subject: Subject) -> dict[str, Any]:
    """Return everything that was found, under the names that other programs read."""
    traffic, asked = finished.first, subject.asked
    content: dict[str, Any] = {
        "trace": traffic.name if traffic is not None else asked.source,
        "seed": subject.seeds[0],
        "seeds": list(subject.seeds),
        "requests": len(traffic.requests) if traffic is not None else 0,
        "duration_s": traffic.duration_s if traffic is not None else 0.0,
        "slo": {"ttft_s": subject.scenario.slo.ttft_s, "tpot_s": subject.scenario.slo.tpot_s},
        "interrupted": finished.is_interrupted,
        "policies": build_policy_rows(finished.outcomes),
    }
    if subject.payback is not None:
        content["what_if"] = subject.payback.as_json()
    return content


def build_policy_rows(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Return one row for each policy: means over the seeds, and each seed's own figures."""
    return [_build_row(name, found) for name, found in outcomes.items()]


def render_result(content: Mapping[str, Any]) -> RenderableType:
    """Return what was found for a person: the table, then what a node that is bought changes."""
    seeds, duration_s = len(content["seeds"]), content["duration_s"]
    rate = content["requests"] / duration_s if duration_s else 0.0
    title = (
        f"{content['trace']}: {content['requests']} requests in {duration_s:.0f} s, "
        f"{rate:.1f} a second, {seeds} seed{'s' if seeds > 1 else ''}"
    )
    parts: list[RenderableType] = [render_policy_table(title, content["policies"])]
    promise = content["slo"]
    parts.append(
        Text(
            f"SLO met: first token within {promise['ttft_s']:g} s and the rest at "
            f"{promise['tpot_s']:g} s a token, of all that arrived."
        )
    )
    parts += [Text(f"{row['name']}: {row['note']}") for row in content["policies"] if row["note"]]
    if "what_if" in content:
        found = content["what_if"]
        parts += [Text(), Text(found["answer"], style="bold")]
        parts += [Text(f"  {line}") for line in found["arithmetic"]]
        parts.append(Text(f"  {found['caution']}"))
    return Group(*parts)


def render_policy_table(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return the rows as a table for a person; owned GPUs' cost only where a price was given."""
    rows = list(rows)
    is_owned_priced = any(row["owned_usd"] for row in rows)
    table = Table(
        title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left"
    )
    # In a narrow window names are folded, figures never cut.
    table.add_column("policy", overflow="fold")
    names = ["SLO\nmet", "TTFT\np50 s", "TTFT\np99 s", "cloud\n$"]
    names += ["owned\n$"] if is_owned_priced else []
    for name in (*names, "re-\nfused", "failed", "laun-\nches", "turns"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        owned = [f"{row['owned_usd']:.2f}"] if is_owned_priced else []
        table.add_row(
            row["name"],
            f"{row['slo_attainment']:.1%}",
            _say(row["ttft_p50_s"], 2),
            _say(row["ttft_p99_s"], 2),
            f"{row['cloud_usd']:.2f}",
            *owned,
            f"{row['rejected']:.0f}",
            f"{row['failed'] + row['unfinished']:.0f}",
            f"{row['launches']:.0f}",
            f"{row['reversals']:.0f}",
        )
    return table


def _build_row(name: str, found: Sequence[Outcome]) -> dict[str, Any]:
    if len(found) == 1:
        return {**found[0].as_json(), "name": name}
    row: dict[str, Any] = {"name": name}
    for number in _NUMBERS:
        values = [getattr(outcome, number) for outcome in found]
        known = [value for value in values if value is not None]
        row[number] = fmean(known) if known else None
    row["note"] = found[0].note
    row["per_seed"] = [{**outcome.as_json(), "name": name} for outcome in found]
    return row


def _say(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
