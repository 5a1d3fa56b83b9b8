"""The table of `policy_table.py`: means with 95 % intervals, goals met and missed, and why."""

import statistics
from collections.abc import Sequence
from typing import Any

from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.timeline import Timeline
from autoscaling.simulator.traffic import Traffic

# Student's t for a 95 % interval of a mean, by number of seeds.
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
_LOSS_ECHO_S = 300.0
_GOAL = 0.99
_RAY_RATIO = 0.6
_ORACLE_RATIO = 1.25


def find_causes(
    line: Timeline, found: Outcome, traffic: Traffic, scenario: Scenario
) -> dict[str, float]:
    """Return the misses of a run by what the cluster was like when they arrived.

    start: before a node asked for in the first second serves. spot: up to 300 s after a loss. boot:
    rented replicas on their way. none: nothing on its way.
    """
    boot = scenario.boot
    first_s = boot.accepted_s + boot.running_s + boot.reachable_s + boot.joined_s
    first_s += boot.weights_s + boot.engine_s
    rented = [pool.name for pool in scenario.model.pools if not pool.owned]
    lost_s = [span.ended_s for span in line.spans.values() if span.end == "lost"]
    causes = dict.fromkeys(("start", "spot", "boot", "none"), 0.0)
    for at, (arrived, in_time) in enumerate(zip(line.arrivals, line.in_time, strict=True)):
        at_s = at * line.bin_s
        sample = line.samples.get(at)
        coming = 0
        if sample is not None:
            coming = sum(sample.planned[p] - sample.running[p] for p in rented)
        if at_s < first_s:
            name = "start"
        elif any(s is not None and s - 130 <= at_s <= s + _LOSS_ECHO_S for s in lost_s):
            name = "spot"
        else:
            name = "boot" if coming > 0 else "none"
        causes[name] += arrived - in_time
    causes["refused"] = found.rejected
    causes["requests"] = len(traffic.requests)
    return causes


def say_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean and half its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = _T95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def render_report(records: Sequence[dict[str, Any]]) -> str:
    """Return the table, then a line for each cell and goal: met, or missed and why.

    Policies of a cell are compared on the seeds that all of them have.
    """
    cells: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for record in records:
        trace, scenario, seed, policy = record["key"]
        cell = cells.setdefault((trace.split(".")[0], scenario), {})
        cell.setdefault(policy, {})[seed] = record
    lines = [
        "| trace | scenario | policy | seeds | SLO met % | cloud $ | TTFT p99 s | launches |",
        "|---|---|---|---|---|---|---|---|",
    ]
    verdicts: list[str] = []
    for (trace, scenario), policies in sorted(cells.items()):
        seeds = sorted(set.intersection(*(set(rows) for rows in policies.values())))
        common = {name: [rows[seed] for seed in seeds] for name, rows in policies.items()}
        if seeds:
            lines += [_render_row(trace, scenario, name, rows) for name, rows in common.items()]
            verdicts += [f"- {trace}, {scenario}: {verdict}" for verdict in _judge(common)]
    return "\n".join([*lines, "", *verdicts]) + "\n"


def _render_row(trace: str, scenario: str, name: str, rows: Sequence[dict[str, Any]]) -> str:
    figures = [row["figures"] for row in rows]
    ttft = [one["ttft_p99_s"] for one in figures if one["ttft_p99_s"] is not None]
    launches = say_mean([float(one["launches"]) for one in figures], 1) if ttft else "-"
    return (
        f"| {trace} | {scenario} | {name} | {len(rows)} "
        f"| {say_mean([100 * one['slo_attainment'] for one in figures], 1)} "
        f"| {say_mean([one['cloud_usd'] for one in figures], 2)} "
        f"| {say_mean(ttft, 1) if ttft else '-'} | {launches} |"
    )


def _judge(policies: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return one line for each goal, met or missed with what was found, and for foresight."""
    mean = {
        name: (
            statistics.fmean(row["figures"]["slo_attainment"] for row in rows),
            statistics.fmean(row["figures"]["cloud_usd"] for row in rows),
        )
        for name, rows in policies.items()
    }
    if "tidegate" not in mean:
        return []
    attained, usd = mean["tidegate"]
    found: list[str] = []
    if "ray-default" in mean:
        ray_attained, ray_usd = mean["ray-default"]
        is_met = attained >= ray_attained and usd <= _RAY_RATIO * ray_usd
        saved = f"${usd:.2f} against ${ray_usd:.2f}"
        found.append(
            f"{_word(is_met)} 40 % less than ray-default: {saved}, {attained:.1%} in time "
            f"against {ray_attained:.1%}"
        )
    if "oracle" in mean:
        reach, bound_usd = mean["oracle"]
        is_met = attained >= min(_GOAL, reach)
        why = "" if is_met else f"; {_say_causes(policies['tidegate'])}"
        found.append(f"{_word(is_met)} 99 % where the oracle has {reach:.1%}: {attained:.1%}{why}")
        is_met = usd <= _ORACLE_RATIO * bound_usd
        ratio = f", {usd / bound_usd:.2f} times" if bound_usd >= 0.01 else ""
        found.append(
            f"{_word(is_met)} 1.25 x the bound: ${usd:.2f} against ${bound_usd:.2f}{ratio}"
        )
    if "foresight" in mean:
        knowing, knowing_usd = mean["foresight"]
        found.append(
            f"beside foresight, which knows all arrivals: ${usd:.2f} against ${knowing_usd:.2f}, "
            f"{attained:.1%} in time against {knowing:.1%}"
        )
    return found


def _word(is_met: bool) -> str:  # noqa: FBT001 - a sentence's first word
    return "meets" if is_met else "MISSES"


def _say_causes(rows: Sequence[dict[str, Any]]) -> str:
    total: dict[str, float] = {}
    for row in rows:
        for name, value in row["causes"].items():
            total[name] = total.get(name, 0.0) + value
    missed = sum(total[name] for name in ("start", "spot", "boot", "none")) or 1.0
    return (
        f"of {missed / total['requests']:.1%} missed, {total['start'] / missed:.0%} arrived before "
        f"any node could serve, {total['spot'] / missed:.0%} around a lost node, "
        f"{total['boot'] / missed:.0%} while nodes were on their way, "
        f"{total['none'] / missed:.0%} with none on its way; {total['refused'] / missed:.0%} were "
        "refused"
    )
