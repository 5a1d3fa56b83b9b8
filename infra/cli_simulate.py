"""`tidegate simulate`: a trace or a generator against policies, in simulated time."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from autoscaling.peers.registry import POLICY_NAMES
from autoscaling.simulator.generators import GENERATORS
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.traffic import Traffic
from cluster.errors import ConfigError
from infra.cli_options import Output, OutputOption, write_report
from infra.progress import console
from infra.simulate_choice import OURS, PARTS, USUAL_POLICIES, choose_variants, label_bought
from infra.simulate_demand import AskedTraffic, check_asked, prepare_traffic
from infra.simulate_report import write_html
from infra.simulate_run import Finished, run_variants
from infra.simulate_view import Subject, build_content, render_result
from infra.simulated_files import CLUSTER_FILE, SERVE_FILE, Choices, read_scenario
from infra.what_if import Payback, Purchase, find_payback

app = typer.Typer()

_INTERRUPTED = 130
_TRAFFIC, _CLUSTER, _RUNS, _BUY = "Traffic", "Cluster and promise", "What to run", "What if"


@app.command(
    epilog="Examples:  tidegate simulate bursty --load 20 --report burst.html  |  "
    "tidegate simulate azure.csv.gz --load 25 --policy all --seeds 5 -o json  |  "
    "tidegate simulate rate.csv --load 8 --hours 24 --restricted 0.3 --spot-heavy  |  "
    "tidegate simulate spike --load 30 --ablate forecast --ablate break-even  |  "
    "tidegate simulate azure.csv.gz --load 30 --buy onprem_a100 --node-usd 60000 "
    "--node-usd-per-month 700"
)
def simulate(  # noqa: PLR0913, PLR0917 - every option of the command line
    trace: Annotated[
        str, typer.Argument(help=f"A trace file, or a generator: {', '.join(GENERATORS)}.")
    ],
    rescale: Annotated[
        float | None, typer.Option(help="Multiply the rate by this.", rich_help_panel=_TRAFFIC)
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(
            help="Bring the mean rate to this many requests a second.", rich_help_panel=_TRAFFIC
        ),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Simulate so much of it, or make it.", rich_help_panel=_TRAFFIC),
    ] = None,
    restricted: Annotated[
        float,
        typer.Option(
            help="Share (0-1) of requests that must stay on owned sites.", rich_help_panel=_TRAFFIC
        ),
    ] = 0.0,
    prompt_scale: Annotated[
        float,
        typer.Option(
            help="Keep this share (0-1) of each prompt, for small models.", rich_help_panel=_TRAFFIC
        ),
    ] = 1.0,
    lengths: Annotated[
        Path | None,
        typer.Option(
            help="Archive of ServeGen length distributions, for rate curves.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    cluster_file: Annotated[
        Path,
        typer.Option(
            "--cluster",
            help="Cluster file: nodes, prices, limits.",
            show_default="a shipped one",
            rich_help_panel=_CLUSTER,
        ),
    ] = CLUSTER_FILE,
    serve_file: Annotated[
        Path,
        typer.Option(
            "--serve",
            help="Serve file: the model's pools.",
            show_default="a shipped one",
            rich_help_panel=_CLUSTER,
        ),
    ] = SERVE_FILE,
    model: Annotated[
        str | None,
        typer.Option(
            help="Which model of the serve file; else its first.", rich_help_panel=_CLUSTER
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="ACCELERATOR=ROW of the GPU table, repeatable.", rich_help_panel=_CLUSTER
        ),
    ] = None,
    spot_heavy: Annotated[  # noqa: FBT002 - a flag of the command line
        bool,
        typer.Option(
            "--spot-heavy",
            help="Spot is often sold out, and lost hourly.",
            rich_help_panel=_CLUSTER,
        ),
    ] = False,
    slo_ttft: Annotated[
        float | None,
        typer.Option(
            help="Promised seconds to the first token; else the serve file's.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    slo_tpot: Annotated[
        float | None,
        typer.Option(
            help="Promised seconds per token after it; else the serve file's.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    owned_usd_per_gpu_hour: Annotated[
        float,
        typer.Option(
            min=0,
            help="What an owned GPU costs an hour, used or not; shown beside the cloud's.",
            rich_help_panel=_CLUSTER,
        ),
    ] = 0.0,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Policy to run, repeatable: {', '.join(POLICY_NAMES)}, or all.",
            show_default=", ".join(USUAL_POLICIES),
            rich_help_panel=_RUNS,
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            help="Run ours also with this part of the brain, of admission or of routing switched "
            f"off, repeatable: {', '.join(PARTS)}, or all, each by itself.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=100, help="How many seeds, from --seed on.", rich_help_panel=_RUNS),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(help="The first seed; the same one, the same figures.", rich_help_panel=_RUNS),
    ] = 1,
    buy: Annotated[
        str | None,
        typer.Option(
            metavar="NODE_TYPE",
            help="Ask when one more node of this owned type would have paid for itself.",
            rich_help_panel=_BUY,
        ),
    ] = None,
    node_usd: Annotated[
        float | None, typer.Option(min=0, help="What that node costs.", rich_help_panel=_BUY)
    ] = None,
    node_usd_per_month: Annotated[
        float,
        typer.Option(
            min=0,
            help="What that node costs a month to run: power, cooling, hosting, service.",
            rich_help_panel=_BUY,
        ),
    ] = 0.0,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page with charts, every decision and its reasons: FILE.html."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Replay a trace, or traffic made on the spot, against policies in simulated time."""
    asked = AskedTraffic(trace, rescale, load, hours, restricted, prompt_scale, lengths)
    check_asked(asked)
    purchase = _read_purchase(buy, node_usd, node_usd_per_month)
    _check_report(report)
    scenario = read_scenario(
        Choices(
            cluster_file=cluster_file,
            serve_file=serve_file,
            model=model,
            rows=_read_rows(gpu or []),
            slo_ttft_s=slo_ttft,
            slo_tpot_s=slo_tpot,
            is_spot_heavy=spot_heavy,
            owned_usd_per_gpu_hour=owned_usd_per_gpu_hour,
        )
    )
    variants = choose_variants(scenario, policy or [], ablate or [], purchase)
    numbers = range(seed, seed + seeds)
    finished = run_variants(
        variants, partial(_prepare, asked, scenario), numbers, is_recorded=report is not None
    )
    payback = _find_payback(finished, scenario, purchase)
    subject = Subject(asked, scenario, seeds=tuple(numbers), payback=payback)
    content = build_content(finished, subject)
    write_report(output, content, render_result(content))
    if report is not None:
        write_html(report, finished, subject, content)
        console.print(f"report: {report}", markup=False)
    if finished.is_interrupted:
        found = "what was finished is above" if finished.outcomes else "nothing was finished"
        console.print(f"interrupted: {found}", markup=False)
        raise typer.Exit(_INTERRUPTED)


def _prepare(asked: AskedTraffic, scenario: Scenario, seed: int) -> Traffic:
    traffic, note = prepare_traffic(asked, scenario, seed=seed)
    if note:
        console.print(note, markup=False)
    return traffic


def _find_payback(
    finished: Finished, scenario: Scenario, purchase: Purchase | None
) -> Payback | None:
    """Return the answer to what the node would have changed, None if it can't be told."""
    if purchase is None or finished.first is None:
        return None
    having = finished.outcomes.get(label_bought(purchase), [])
    if not having:
        return None
    return find_payback(
        purchase,
        without=finished.outcomes[OURS][: len(having)],
        having=having,
        requests=finished.requests[: len(having)],
        traffic_s=finished.first.duration_s,
        usd_per_late_request=scenario.model.objective.usd_per_late_request,
    )


def _read_purchase(
    node_type: str | None, usd: float | None, usd_per_month: float
) -> Purchase | None:
    if node_type is None:
        if usd is not None or usd_per_month:
            raise ConfigError("--node-usd must come with the node's type: --buy NODE_TYPE.")
        return None
    if not usd:
        raise ConfigError(f"--buy {node_type} must come with a price above 0: --node-usd PRICE.")
    return Purchase(node_type, usd, usd_per_month)


def _check_report(report: Path | None) -> None:
    """Return if a page can be written there: known before hours are simulated, not after."""
    if report is None:
        return
    if report.is_dir() or not report.parent.is_dir():
        raise ConfigError(
            f"--report must be a file in a folder that is there; got {str(report)!r}."
        )


def _read_rows(given: list[str]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for text in given:
        accelerator, equals, row = text.partition("=")
        if not (accelerator and equals and row):
            raise ConfigError(f"--gpu must be ACCELERATOR=ROW, such as l40s=l40s-8b; got {text!r}.")
        rows[accelerator] = row
    return rows
