"""Policies over traces, scenarios and seeds: figures as JSON lines, then a Markdown table.

    python tests/benchmarks/policy_table.py TRACE… --lengths ARCHIVE -o FILE.jsonl
        [--share 1.0] [--hours 0.5] [--seeds 5] [--policy NAME…] [--scenario NAME…] [--report]

TRACE is a file or a generator's name. One rule makes the traffic of all of them:

- window: `--hours` from the beginning; of rate curves over days, those around the highest rise from
  one bin to the next (bins of zero are missing data and have no rise);
- prompts: scaled so that the 99.9th percentile fits the context, then what is too long is cut;
- load: `--share` times the requests a second that all owned replicas would serve if they were busy
  all the time, for the traffic's own mean lengths (`autoscaling.peers.sizing`).

Scenarios: steady (the trace as it is), bursty (its rate times the bursty generator's spells),
spot-heavy, restricted (30 %). Nothing is tuned for a cell. Each figure is written when it is there,
all cells of a seed before the next seed; what the file holds already isn't run again.
"""

import argparse
import csv
import gzip
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from policy_table_report import find_causes, render_report

from autoscaling.peers.registry import POLICY_NAMES, run_policy
from autoscaling.peers.sizing import build_sizing
from autoscaling.simulator.generators import GENERATORS, Shape, generate
from autoscaling.simulator.scenario import SPOT_HEAVY, Scenario
from autoscaling.simulator.servegen import RateCurve, draw_servegen
from autoscaling.simulator.timeline import build_timeline
from autoscaling.simulator.traces import RateReading, read_trace
from autoscaling.simulator.traffic import (
    Traffic,
    build_random,
    build_traffic,
    clip_lengths,
    cut_traffic,
    mark_restricted,
    rescale_traffic,
    scale_prompts,
)
from infra.simulated_files import Choices, read_scenario

SCENARIOS = ("steady", "bursty", "spot-heavy", "restricted")
OURS = "tidegate"
_USUAL_POLICIES = (OURS, "ray-default", "oracle")
_PROBE_RPS = 5.0


def find_window(path: Path, hours: float) -> tuple[tuple[float, float], ...] | None:
    """Return the bins of a rate curve around its highest rise, from 0 s on; None = no curve."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    rows = list(csv.reader(text.splitlines())) if text.startswith("t_s,") else []
    if not rows or rows[0][:2] != ["t_s", "rate_rps"]:
        return None
    bins = [(float(row[0]), float(row[1])) for row in rows[1:]]
    bin_s = bins[1][0] - bins[0][0]
    wanted = max(2, round(hours * 3600 / bin_s))
    before = wanted // 2
    rises = [
        (b[1] / a[1], at)
        for at, (a, b) in enumerate(pairwise(bins), start=1)
        if before <= at <= len(bins) - (wanted - before)
        and all(rate > 0 for _, rate in bins[at - before : at - before + wanted])
    ]
    first = max(rises)[1] - before
    return tuple((at * bin_s, rate) for at, (_, rate) in enumerate(bins[first : first + wanted]))


def load_traffic(
    source: str, options: argparse.Namespace, scenario: Scenario, seed: int
) -> Traffic:
    """Return a trace's traffic by the rule in the module's docstring."""
    until_s = options.hours * 3600
    if source in GENERATORS:
        shape = Shape(mean_rps=_PROBE_RPS, duration_s=until_s)
        return _scale_load(generate(source, shape, seed=seed), options, scenario, seed)
    path = Path(source)
    window = find_window(path, options.hours)
    if window is not None:
        curve = RateCurve(path.name.split(".")[0], window)
        probe = draw_servegen(curve.scale_to(_PROBE_RPS), lengths=options.lengths, seed=seed)
        probe = _fit_prompts(probe, scenario)
        rps = options.share * find_owned_rps(probe, scenario)
        traffic = draw_servegen(curve.scale_to(rps), lengths=options.lengths, seed=seed)
        return _fit_prompts(traffic, scenario)
    traffic = cut_traffic(read_trace(path, seed=seed, rates=RateReading()), until_s)
    return _scale_load(_fit_prompts(traffic, scenario), options, scenario, seed)


def find_owned_rps(traffic: Traffic, scenario: Scenario) -> float:
    """Return what all owned replicas serve in a second if they never wait."""
    rates = build_sizing(traffic, scenario).replica_rps
    return sum(p.max_replicas * rates[p.name] for p in scenario.model.pools if p.owned)


def _scale_load(
    traffic: Traffic, options: argparse.Namespace, scenario: Scenario, seed: int
) -> Traffic:
    rps = options.share * find_owned_rps(traffic, scenario)
    return rescale_traffic(traffic, rps / traffic.mean_rps, seed=seed)


def _fit_prompts(traffic: Traffic, scenario: Scenario) -> Traffic:
    prompts = sorted(request.prompt_tokens for request in traffic.requests)
    longest = prompts[int(0.999 * (len(prompts) - 1))]
    context = scenario.model.context_tokens
    if longest > context:
        traffic = scale_prompts(traffic, context / longest)
    return clip_lengths(traffic, context_tokens=context)[0]


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
        return make_bursty(traffic, seed=seed), scenario
    if name == "restricted":
        return mark_restricted(traffic, 0.3, seed=seed), scenario
    if name == "spot-heavy":
        return traffic, replace(scenario, spot=SPOT_HEAVY)
    return traffic, scenario


def run_cells(options: argparse.Namespace, known: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yield the figures that aren't known yet, all cells of a seed before the next seed."""
    shipped = read_scenario(Choices())
    for seed in range(1, options.seeds + 1):
        for source in options.traces:
            loaded: Traffic | None = None
            for name in options.scenario or SCENARIOS:
                for policy in options.policy or _USUAL_POLICIES:
                    key = (Path(source).name, name, str(seed), policy)
                    if key in known:
                        continue
                    loaded = loaded or load_traffic(source, options, shipped, seed)
                    traffic, scenario = apply_scenario(name, loaded, shipped, seed=seed)
                    yield _run(key, traffic, scenario, seed)


def _run(key: tuple[str, ...], traffic: Traffic, scenario: Scenario, seed: int) -> dict[str, Any]:
    began_s = time.process_time()
    line = build_timeline(traffic)
    found = run_policy(key[3], traffic, scenario, seed=seed, recorder=line)
    causes = find_causes(line, found, traffic, scenario) if key[3] == OURS else {}
    return {
        "key": key,
        "requests": len(traffic.requests),
        "duration_s": traffic.duration_s,
        "figures": found.as_json(),
        "causes": causes,
        "cpu_s": round(time.process_time() - began_s, 1),
    }


def main() -> int:
    """Run what is missing, then print the report of everything the file holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", nargs="*", metavar="TRACE")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--policy", action="append", choices=POLICY_NAMES)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--report", action="store_true", help="run nothing, print the table")
    parser.add_argument("-o", dest="file", type=Path, required=True, help="JSON lines, added to")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8") if options.file.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]
    known = {tuple(record["key"]) for record in records}
    with options.file.open("a", encoding="utf-8") as file:
        for record in () if options.report else run_cells(options, known):
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
            figures = record["figures"]
            sys.stderr.write(
                f"{' '.join(record['key'])}: {figures['slo_attainment']:.2%}, "
                f"${figures['cloud_usd']:.2f}, {record['cpu_s']} s\n"
            )
    sys.stdout.write(render_report(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
