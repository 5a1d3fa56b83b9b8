"""Every policy over traces and scenarios: means over seeds with 95 % intervals, as a table.

    python tests/benchmarks/policy_table.py TRACE=LOAD… [--seeds 5] [--hours 1] [--policy NAME…]
        [--lengths ARCHIVE] [--scenario NAME…] [-o FILE]

TRACE is a file or a generator's name, LOAD its mean requests a second, for example
`azure.csv.gz=25 bursty=25`. Scenarios: steady (the trace as it is), bursty (its rate times the
bursty generator's spells), spot-heavy, restricted (30 %). Nothing is tuned for a cell. A cell that
misses a goal says so: at least 40 % less cloud cost than ray-default at equal or better attainment,
99 % attainment where the oracle reaches it, cost at most 1.25 times the oracle's bound.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoscaling.peers.registry import POLICY_NAMES, run_policy
from autoscaling.simulator.generators import GENERATORS, Shape, generate
from autoscaling.simulator.scenario import SPOT_HEAVY, Scenario
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.traces import RateReading, read_trace
from autoscaling.simulator.traffic import (
    Traffic,
    build_random,
    build_traffic,
    clip_lengths,
    cut_traffic,
    mark_restricted,
    rescale_traffic,
)
from infra.simulated_files import Choices, read_scenario

SCENARIOS = ("steady", "bursty", "spot-heavy", "restricted")
# Student's t for a 95 % interval of a mean, by number of seeds.
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def load_traffic(text: str, options: argparse.Namespace, *, seed: int) -> Traffic:
    """Return the traffic that TRACE=LOAD names."""
    source, _, load = text.partition("=")
    load_rps, until_s = float(load), options.hours * 3600
    if source in GENERATORS:
        traffic = generate(source, Shape(mean_rps=load_rps, duration_s=until_s), seed=seed)
    else:
        reading = RateReading(options.lengths, load_rps, until_s)
        traffic = cut_traffic(read_trace(Path(source), seed=seed, rates=reading), until_s)
    return rescale_traffic(traffic, load_rps / traffic.mean_rps, seed=seed)


def make_bursty(traffic: Traffic, *, seed: int) -> Traffic:
    """Return the same requests with quiet and loud spells, at the same mean rate."""
    chance = build_random(seed, "bursty rescale")
    rate_at, peak = GENERATORS["bursty"](chance, traffic.duration_s)
    louder = rescale_traffic(traffic, peak, seed=seed)
    kept = [r for r in louder.requests if chance.random() * peak <= rate_at(r.arrival_s)]
    spelled = build_traffic(traffic.name, kept, traffic.duration_s)
    return rescale_traffic(spelled, traffic.mean_rps / spelled.mean_rps, seed=seed)


def apply_scenario(
    name: str, traffic: Traffic, scenario: Scenario, *, seed: int
) -> tuple[Traffic, Scenario]:
    """Return traffic and scenario as the named scenario changes them."""
    if name == "bursty":
        traffic = make_bursty(traffic, seed=seed)
    if name == "restricted":
        traffic = mark_restricted(traffic, 0.3, seed=seed)
    if name == "spot-heavy":
        scenario = replace(scenario, spot=SPOT_HEAVY)
    traffic, _ = clip_lengths(traffic, context_tokens=scenario.model.context_tokens)
    return traffic, scenario


def say_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean and half its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = _T95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def judge(found: dict[str, list[Outcome]]) -> list[str]:
    """Return what our policy misses in this cell, and whether it meets each goal."""
    mean = {
        name: (
            statistics.fmean(one.slo_attainment for one in outcomes),
            statistics.fmean(one.cloud_usd for one in outcomes),
        )
        for name, outcomes in found.items()
    }
    if "tidegate" not in mean:
        return []
    attained, usd = mean["tidegate"]
    lines: list[str] = []
    if "ray-default" in mean:
        ray_attained, ray_usd = mean["ray-default"]
        is_met = attained >= ray_attained and usd <= 0.6 * ray_usd
        saved = f"{1 - usd / ray_usd:.0%} less" if ray_usd else "ray-default spent nothing"
        lines.append(
            f"{'meets' if is_met else 'MISSES'} ray-default: {saved}, "
            f"attainment {attained:.1%} against {ray_attained:.1%}"
        )
    if "oracle" in mean:
        reach, bound_usd = mean["oracle"]
        is_met = attained >= min(0.99, reach)
        lines.append(f"{'meets' if is_met else 'MISSES'} 99 % where the oracle has {reach:.1%}")
        is_met = usd <= 1.25 * bound_usd
        lines.append(f"{'meets' if is_met else 'MISSES'} 1.25 x the bound of ${bound_usd:.2f}")
    return lines


def main() -> int:
    """Print the table cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", nargs="+", metavar="TRACE=LOAD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--policy", action="append", choices=POLICY_NAMES)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("-o", dest="file", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    shipped = read_scenario(Choices())
    cells: list[dict[str, object]] = []
    for text in options.traces:
        for name in options.scenario or SCENARIOS:
            found: dict[str, list[Outcome]] = {p: [] for p in options.policy or POLICY_NAMES}
            for seed in range(1, options.seeds + 1):
                traffic = load_traffic(text, options, seed=seed)
                traffic, scenario = apply_scenario(name, traffic, shipped, seed=seed)
                for policy, outcomes in found.items():
                    outcomes.append(run_policy(policy, traffic, scenario, seed=seed))
            print_cell(Path(text).name, name, found)
            rows = {p: [one.as_json() for one in outcomes] for p, outcomes in found.items()}
            cells.append({"trace": Path(text).name, "scenario": name, "policies": rows})
    if options.file is not None:
        options.file.write_text(json.dumps(cells, indent=1), encoding="utf-8")
    return 0


def print_cell(trace: str, scenario: str, found: dict[str, list[Outcome]]) -> None:
    """Print one cell as a Markdown table with what it shows."""
    lines = [
        f"\n### {trace}, {scenario}\n",
        "| policy | SLO met % | cloud $ | TTFT p99 s | launches |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, outcomes in found.items():
        ttft = [one.ttft_p99_s for one in outcomes if one.ttft_p99_s is not None]
        lines.append(
            f"| {name} | {say_mean([100 * one.slo_attainment for one in outcomes], 1)} "
            f"| {say_mean([one.cloud_usd for one in outcomes], 2)} "
            f"| {say_mean(ttft, 2) if ttft else '-'} "
            f"| {say_mean([float(one.launches) for one in outcomes], 1)} |"
        )
    lines += ["", *(f"- {line}" for line in judge(found))]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
