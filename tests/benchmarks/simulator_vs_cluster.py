"""The simulator against the embedded cluster: the same files and traffic, figures side by side.

    python tests/benchmarks/simulator_vs_cluster.py [--minutes 10] [--seed 1] [--repeat 1] [-o FILE]

Starts the embedded cluster with emulated engines (one owned replica, up to two in a pretended cloud
whose nodes are real Ray nodes), replays seeded traffic with sustained rises through proxy and
gateway, open loop, over HTTP, and takes everything down. Then simulates the same traffic with the
same cluster file and serve file. One thing is calibrated: the first rented node takes as long for
each boot stage as the run's first rented node did by the ledger, and so on, since the simulator
can't know how fast a machine starts processes. All else is the simulator's own.

`--measured FILE` takes what an earlier run measured (its -o) and simulates it anew.

Ends with status 1 if a figure is out of bounds. A run takes its minutes plus about two.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.progress import console
from tests.benchmarks.reality.cluster_run import (
    CloudNode,
    ClusterRun,
    Look,
    find_boots,
    run_on_cluster,
)
from tests.benchmarks.reality.figures import (
    Bound,
    count_attainment,
    find_tpot,
    find_ttft,
    judge,
    sum_overlap_s,
)
from tests.benchmarks.reality.files import TPOT_S_MAX, TTFT_S_MAX, write_files
from tests.benchmarks.reality.replay import list_errors
from tests.benchmarks.reality.simulated_run import SimulatedRun, run_simulated
from tests.benchmarks.reality.workload import Load, Rise, build_load
from tests.benchmarks.simulator_speed import describe_machine

BOUNDS = (
    Bound("attainment", "points", 3.0),
    Bound("ttft_p50_s", "ratio", 15.0),
    Bound("cloud_node_s", "ratio", 15.0),
    Bound("launches", "count", 1.0),
)
_TRAFFIC = "rises"
_LONG_MINUTES = 6.0
_ONE_RISE = (Rise(0.15, 0.5, 1.6),)
_TWO_RISES = (Rise(0.1, 0.3, 1.6), Rise(0.55, 0.75, 1.6))


def build_traffic_load(minutes: float) -> Load:
    """Return a third of what the owned replica can do, with rises that need the cloud."""
    return Load(
        base_rps=0.35,
        duration_s=60 * minutes,
        prompt_tokens=(400, 800),
        output_tokens=(40, 80),
        rises=_TWO_RISES if minutes >= _LONG_MINUTES else _ONE_RISE,
    )


def measure(run: ClusterRun, *, duration_s: float) -> dict[str, float | None]:
    """Return the figures of a run on the cluster."""
    spans = [(node.charged_s, node.ended_s) for node in run.nodes]
    return {
        "attainment": count_attainment(run.answers, ttft_s=TTFT_S_MAX, tpot_s=TPOT_S_MAX),
        "ttft_p50_s": find_ttft(run.answers, 50),
        "ttft_p90_s": find_ttft(run.answers, 90),
        "ttft_p99_s": find_ttft(run.answers, 99),
        "tpot_p50_s": find_tpot(run.answers, 50),
        "cloud_node_s": sum_overlap_s(spans, until_s=duration_s),
        "launches": len(run.nodes),
        "completed": sum(answer.is_complete for answer in run.answers),
    }


def read_simulated(run: SimulatedRun) -> dict[str, float | None]:
    """Return the same figures of a simulated run."""
    outcome = run.outcome
    return {
        "attainment": outcome.slo_attainment,
        "ttft_p50_s": outcome.ttft_p50_s,
        "ttft_p99_s": outcome.ttft_p99_s,
        "tpot_p50_s": outcome.tpot_p50_s,
        "cloud_node_s": run.cloud_node_s,
        "launches": outcome.launches,
        "completed": outcome.completed,
    }


def measure_once(*, minutes: float, seed: int, port_offset: int) -> dict[str, Any]:
    """Return what one run on the cluster showed, ready for JSON."""
    load = build_traffic_load(minutes)
    traffic = build_load(_TRAFFIC, load, seed=seed)
    with tempfile.TemporaryDirectory(prefix="tidegate-reality-") as name:
        files = write_files(Path(name))
        run = run_on_cluster(traffic, files, port_offset=port_offset, say=console.print)
    return {
        "seed": seed,
        "minutes": minutes,
        "requests": len(traffic.requests),
        "sent_late_s_max": run.lag_s,
        "start_s": run.start_s,
        "errors": list_errors(run.answers),
        "measured": measure(run, duration_s=load.duration_s),
        "nodes": [dataclasses.asdict(node) for node in run.nodes],
        "changes": [dataclasses.asdict(look) for look in list_changes(run.looks)],
        "answers": [dataclasses.asdict(answer) for answer in run.answers],
    }


def add_simulated(found: dict[str, Any]) -> dict[str, Any]:
    """Return a measured run with what the simulator says of the same traffic, and the verdicts."""
    traffic = build_load(_TRAFFIC, build_traffic_load(found["minutes"]), seed=found["seed"])
    boots_s = find_boots([CloudNode(**node) for node in found["nodes"]])
    with tempfile.TemporaryDirectory(prefix="tidegate-reality-") as name:
        run = run_simulated(traffic, write_files(Path(name)), boots_s=boots_s, seed=found["seed"])
    told = read_simulated(run)
    return {
        **found,
        "boots_s": boots_s,
        "simulated": told,
        "simulated_changes": [dataclasses.asdict(look) for look in run.looks],
        "verdicts": [one.as_json() for one in judge(found["measured"], told, BOUNDS)],
    }


def list_changes(looks: Sequence[Look]) -> list[Look]:
    """Return the first look and each at which targets, replicas or nodes had changed."""
    kept: list[Look] = []
    for look in looks:
        shape = (look.wanted, look.running, look.cloud_nodes)
        if not kept or (kept[-1].wanted, kept[-1].running, kept[-1].cloud_nodes) != shape:
            kept.append(look)
    return kept


def render(found: dict[str, Any]) -> str:
    """Return one run's figures as text."""
    boots = ", ".join(f"{sum(boot.values()):.1f}" for boot in found["boots_s"])
    lines = [
        f"seed {found['seed']}, {found['minutes']:g} minutes, {found['requests']} requests",
        f"sent at most {found['sent_late_s_max']:.2f} s late",
        f"seconds from a node's request to serving, as recorded: {boots or 'there was no node'}",
        f"{'':>14} {'cluster':>10} {'simulator':>10} {'difference':>12}   bound",
    ]
    judged = {verdict["figure"]: verdict for verdict in found["verdicts"]}
    for name, value in found["measured"].items():
        lines.append(_render_figure(name, value, found["simulated"].get(name), judged.get(name)))
    return "\n".join([*lines, *(f"error: {error}" for error in found["errors"])])


def _render_figure(
    name: str, measured: float | None, simulated: float | None, verdict: dict[str, Any] | None
) -> str:
    left = "-" if measured is None else f"{measured:.3f}"
    right = "-" if simulated is None else f"{simulated:.3f}"
    line = f"{name:>14} {left:>10} {right:>10}"
    if verdict is None:
        return line
    difference, unit = verdict["difference"], verdict["unit"]
    said = "-" if difference is None else f"{difference:+.1f} {unit}".strip()
    held = {True: "within", False: "OUT OF", None: "says nothing,"}[verdict["is_within"]]
    return f"{line} {said:>12}   {held} {verdict['most']:g} {unit}".rstrip()


def read_options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="runs, each with the next seed")
    parser.add_argument("--port-offset", type=int, default=4300)
    parser.add_argument("--measured", type=Path, help="an earlier run's JSON: only simulate")
    parser.add_argument("-o", dest="file", type=Path, help="also write everything as JSON")
    return parser.parse_args()


def list_measured(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the machine and what each run on the cluster showed, running it unless it was given."""
    if options.measured is not None:
        content = json.loads(options.measured.read_text(encoding="utf-8"))
        yield from ((content["machine"], found) for found in content["runs"])
        return
    for seed in range(options.seed, options.seed + options.repeat):
        machine = describe_machine()
        yield (
            machine,
            measure_once(minutes=options.minutes, seed=seed, port_offset=options.port_offset),
        )


def main() -> int:
    """Print the figures; return 0 if all are within their bounds."""
    options = read_options()
    runs: list[dict[str, Any]] = []
    for machine, measured in list_measured(options):
        runs.append(measured)
        content = {"machine": machine, "runs": runs}
        _write(options.file, content)
        runs[-1] = add_simulated(measured)
        _write(options.file, content)
        sys.stdout.write(f"machine: {machine}\n{render(runs[-1])}\n")
        sys.stdout.flush()
    verdicts = [verdict for found in runs for verdict in found["verdicts"]]
    return 1 if any(verdict["is_within"] is False for verdict in verdicts) else 0


def _write(file: Path | None, content: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
