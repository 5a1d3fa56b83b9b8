"""`tidegate simulate`: a trace or a generator against policies, in simulated time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autoscaling.peers.registry import POLICY_NAMES, run_policy
from autoscaling.simulator.generators import GENERATORS, Shape, generate
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.traces import RateReading, read_trace
from autoscaling.simulator.traffic import (
    Traffic,
    clip_lengths,
    cut_traffic,
    mark_restricted,
    rescale_traffic,
    scale_prompts,
)
from cluster.errors import ConfigError
from infra.cli_options import Output as AnyOutput
from infra.cli_options import write_report
from infra.progress import console
from infra.simulate_view import build_policy_rows, render_policy_table
from infra.simulated_files import CLUSTER_FILE, SERVE_FILE, Choices, read_scenario

app = typer.Typer()

_QUIET_S = 2.0
_S_PER_HOUR = 3600.0


class Output(StrEnum):
    """How the figures are written."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class _Demand:
    """What arrives, as asked for on the command line. Exactly one of the scalings, or none."""

    source: str
    rescale: float | None
    load_rps: float | None
    hours: float | None
    restricted: float
    prompt_scale: float
    lengths: Path | None


@app.command(
    epilog="Examples:  tidegate simulate bursty --load 20  |  "
    "tidegate simulate azure.csv.gz --rescale 4 --policy tidegate --policy ray-default --seeds 5  |"
    "  tidegate simulate rate.csv --load 8 --hours 24 --restricted 0.3 -o json"
)
def simulate(  # noqa: PLR0913, PLR0917 - every option of the command line
    trace: Annotated[
        str, typer.Argument(help=f"A trace file, or a generator: {', '.join(GENERATORS)}.")
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"Policy to run, repeatable: {', '.join(POLICY_NAMES)}, or all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many seeds, from --seed on.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed; the same one, the same figures.")] = 1,
    rescale: Annotated[float | None, typer.Option(help="Multiply the rate by this.")] = None,
    load: Annotated[
        float | None, typer.Option(help="Bring the mean rate to this many requests a second.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Simulate so much of it, or make it.")] = None,
    restricted: Annotated[
        float, typer.Option(help="Share (0-1) of requests that must stay on owned sites.")
    ] = 0.0,
    prompt_scale: Annotated[
        float, typer.Option(help="Keep this share (0-1) of each prompt, for small models.")
    ] = 1.0,
    lengths: Annotated[
        Path | None, typer.Option(help="Archive of ServeGen length distributions.")
    ] = None,
    spot_heavy: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--spot-heavy", help="Spot is often sold out, and lost hourly.")
    ] = False,
    slo_ttft: Annotated[
        float | None,
        typer.Option(help="Promised seconds to the first token; the serve file's otherwise."),
    ] = None,
    slo_tpot: Annotated[
        float | None,
        typer.Option(help="Promised seconds per token after it; the serve file's otherwise."),
    ] = None,
    cluster_file: Annotated[
        Path, typer.Option("--cluster", help="Cluster file: nodes, prices, limits.")
    ] = CLUSTER_FILE,
    serve_file: Annotated[
        Path, typer.Option("--serve", help="Serve file: the model's pools.")
    ] = SERVE_FILE,
    model: Annotated[str | None, typer.Option(help="Which model of the serve file.")] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="ACCELERATOR=ROW of the GPU table, repeatable.")
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to write it.")] = (
        Output.TABLE
    ),
) -> None:
    """Replay a trace, or traffic made on the spot, against policies in simulated time."""
    scenario = read_scenario(
        Choices(
            cluster_file=cluster_file,
            serve_file=serve_file,
            model=model,
            rows=_read_rows(gpu or []),
            slo_ttft_s=slo_ttft,
            slo_tpot_s=slo_tpot,
            is_spot_heavy=spot_heavy,
        )
    )
    demand = _Demand(trace, rescale, load, hours, restricted, prompt_scale, lengths)
    names = list(POLICY_NAMES) if policy == ["all"] else policy or ["tidegate"]
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    first: Traffic | None = None
    for number in range(seed, seed + seeds):
        traffic = _prepare(demand, scenario, seed=number)
        first = first or traffic
        for name in names:
            found[name].append(_run(name, traffic, scenario, seed=number))
    if first is not None:
        _write(output, first, seed=seed, seeds=seeds, found=found)


def _write(
    output: Output, traffic: Traffic, *, seed: int, seeds: int, found: Mapping[str, list[Outcome]]
) -> None:
    rows = build_policy_rows(found)
    content = {
        "trace": traffic.name,
        "seed": seed,
        "seeds": list(range(seed, seed + seeds)),
        "requests": len(traffic.requests),
        "duration_s": traffic.duration_s,
        "policies": rows,
    }
    title = (
        f"{traffic.name}: {len(traffic.requests)} requests in {traffic.duration_s:.0f} s, "
        f"{traffic.mean_rps:.1f} a second, {seeds} seed{'s' if seeds > 1 else ''}"
    )
    write_report(AnyOutput(output.value), content, render_policy_table(title, rows))


def _prepare(demand: _Demand, scenario: Scenario, *, seed: int) -> Traffic:
    """Return the traffic as asked for, cut to what the model can take."""
    if demand.rescale is not None and demand.load_rps is not None:
        raise ConfigError("--rescale and --load must not be given together: each sets the rate.")
    until_s = None if demand.hours is None else demand.hours * _S_PER_HOUR
    traffic = _load(demand, until_s, seed=seed)
    if until_s is not None:
        traffic = cut_traffic(traffic, until_s)
    if not traffic.requests:
        raise ConfigError(f"{demand.source} must hold at least one request; got none.")
    factor = demand.rescale
    if demand.load_rps is not None:
        factor = demand.load_rps / traffic.mean_rps
    # What was drawn for a load is within chance of it already.
    if factor is not None and not (demand.load_rps and 0.9 < factor < 1.1):  # noqa: PLR2004
        traffic = rescale_traffic(traffic, factor, seed=seed)
    if demand.prompt_scale != 1.0:
        traffic = scale_prompts(traffic, demand.prompt_scale)
    traffic, cut = clip_lengths(traffic, context_tokens=scenario.model.context_tokens)
    if cut:
        console.print(
            f"{cut} of {len(traffic.requests)} requests were cut to the model's context of "
            f"{scenario.model.context_tokens} tokens"
        )
    if demand.restricted:
        traffic = mark_restricted(traffic, demand.restricted, seed=seed)
    return traffic


def _load(demand: _Demand, until_s: float | None, *, seed: int) -> Traffic:
    if demand.source in GENERATORS:
        usual = Shape()
        shape = Shape(
            mean_rps=demand.load_rps or usual.mean_rps,
            duration_s=until_s or usual.duration_s,
        )
        return generate(demand.source, shape, seed=seed)
    path = Path(demand.source)
    if not path.exists():
        raise ConfigError(
            f"TRACE must be a file or one of {', '.join(GENERATORS)}; got {demand.source!r}."
        )
    reading = RateReading(lengths=demand.lengths, load_rps=demand.load_rps, until_s=until_s)
    return read_trace(path, seed=seed, rates=reading)


def _run(name: str, traffic: Traffic, scenario: Scenario, *, seed: int) -> Outcome:
    """Return one run's figures; what takes long says on stderr how far it is."""
    began_s = said_s = time.monotonic()

    def say(now_s: float) -> None:
        nonlocal said_s
        spent_s = time.monotonic()
        if spent_s - said_s >= _QUIET_S:
            said_s = spent_s
            share = now_s / traffic.duration_s
            console.print(f"  {name}, seed {seed}: {share:.0%}, {spent_s - began_s:.0f} s")

    return run_policy(name, traffic, scenario, seed=seed, say=say)


def _read_rows(given: list[str]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for text in given:
        accelerator, equals, row = text.partition("=")
        if not (accelerator and equals and row):
            raise ConfigError(f"--gpu must be ACCELERATOR=ROW, such as l40s=l40s-8b; got {text!r}.")
        rows[accelerator] = row
    return rows
