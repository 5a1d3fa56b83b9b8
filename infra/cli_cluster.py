"""Commands about one cluster: what it would do, what it is, what is wanted of its nodes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.config import load_cluster_file, read_cluster_file
from cluster.model import Cordon
from infra.cli_options import (
    LOCAL_CLUSTER_FILE,
    AnyClusterFile,
    Output,
    OutputOption,
    YesOption,
    confirm,
    write_report,
)
from infra.deploy import deploy_changed
from infra.embedded import resolve_cluster
from infra.plan import plan_changes
from infra.plan_view import describe_plan, render_plan
from infra.preflight import Finding, inspect
from infra.preflight_remote import inspect_remote, needs_remote
from infra.preflight_view import describe_findings, render_findings
from infra.progress import step
from infra.render import render_cluster_file
from infra.status import read_status
from infra.status_view import describe_status, render_status

app = typer.Typer()

NodeName = Annotated[str, typer.Argument(help="Node id as `tidegate status` shows it, or a host.")]
PortOffset = Annotated[
    int, typer.Option(min=0, max=20000, help="As it was given to `tidegate serve`.")
]
WithEngine = Annotated[
    str, typer.Option("--engine", help="Engine the embedded cluster would run: vllm or emulated.")
]


@app.command(epilog="Examples:  tidegate doctor  |  tidegate doctor cluster/hybrid.yaml -o json")
def doctor(
    cluster_file: AnyClusterFile = LOCAL_CLUSTER_FILE,
    engine: WithEngine = "vllm",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check what a start needs, and say how to mend what is missing. Changes nothing.

    Embedded: packages, ports, memory. SSH and AWS: keys, hosts, the pinned ports both ways, what is
    installed at boot, the token, credentials.
    """
    if engine not in {"vllm", "emulated"}:
        raise typer.BadParameter(f"must be vllm or emulated; got {engine}", param_hint="--engine")
    findings = _inspect(cluster_file, engine=engine)
    write_report(output, describe_findings(findings), render_findings(findings))
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Examples:  tidegate plan cluster/hybrid.yaml  |  … plan hybrid.yaml -o json")
def plan(cluster_file: AnyClusterFile, output: OutputOption = Output.TABLE) -> None:
    """Show what would be launched or released now, what it costs, and why. Changes nothing.

    Exit code 1 if a site couldn't be asked: the plan lacks it then.
    """
    from infra.look import look_at  # noqa: PLC0415 - imports backends, and they Ray

    settings = load_cluster_file(cluster_file)
    with step(f"Sites: {', '.join(settings.sites)}") as current:
        observed = look_at(cluster_file, settings, on_progress=current.say)
    changes = plan_changes(settings, observed)
    write_report(output, describe_plan(settings, changes), render_plan(changes))
    sys.stdout.flush()
    if not changes.is_complete:
        _leave_at_once(1)


@app.command(epilog="Example:  tidegate render cluster/hybrid.yaml")
def render(cluster_file: AnyClusterFile) -> None:
    """Print the cluster file with every default and no secret."""
    load_cluster_file(cluster_file)
    rendered = render_cluster_file(read_cluster_file(cluster_file))
    sys.stdout.write(yaml.safe_dump(rendered, sort_keys=False, width=100))


@app.command(epilog="Examples:  tidegate status  |  tidegate status cluster/hybrid.yaml -o json")
def status(
    cluster_file: AnyClusterFile = LOCAL_CLUSTER_FILE,
    port_offset: PortOffset = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show nodes, pools, burst state, limits and spend, what is sold out, and the reasons."""
    file, settings = resolve_cluster(cluster_file, port_offset=port_offset)
    with step(f"Status of {settings.cluster_name}"):
        found = read_status(file, settings)
    write_report(output, describe_status(found), render_status(found))


@app.command(epilog="Example:  tidegate deploy my-serve.yaml cluster/hybrid.yaml")
def deploy(
    serve_file: Annotated[Path, typer.Argument(help="Serve file to put into force.")],
    cluster_file: AnyClusterFile = LOCAL_CLUSTER_FILE,
    port_offset: PortOffset = 0,
) -> None:
    """Put a changed serve file into force while requests go on; a bad one changes nothing.

    A cluster elsewhere is reached through `ray dashboard CLUSTER_FILE`, which forwards the port.
    """
    _, settings = resolve_cluster(cluster_file, port_offset=port_offset)
    with step(f"Applications of {settings.cluster_name}") as current:
        deployed = deploy_changed(serve_file, settings, on_progress=current.say)
    sys.stdout.write(f"in force: {', '.join(deployed.application_names)}\n")


@app.command(epilog="Example:  tidegate cordon cluster/hybrid.yaml l40s-2")
def cordon(cluster_file: AnyClusterFile, node: NodeName) -> None:
    """Give a node or host no new work; what runs there goes on."""
    _set_cordon(cluster_file, node, Cordon.CORDONED)


@app.command(epilog="Example:  tidegate drain cluster/hybrid.yaml l40s-2 --yes")
def drain(
    cluster_file: AnyClusterFile,
    node: NodeName,
    yes: YesOption = False,  # noqa: FBT002 - a flag of the command line
) -> None:
    """Move what runs on a node or host elsewhere; it goes home when nothing is left on it."""
    command = f"tidegate drain {cluster_file} {node}"
    confirm(f"Drain {node}? Its replicas move; the node goes home.", yes=yes, command=command)
    _set_cordon(cluster_file, node, Cordon.DRAINING)


@app.command(epilog="Example:  tidegate uncordon cluster/hybrid.yaml l40s-2")
def uncordon(cluster_file: AnyClusterFile, node: NodeName) -> None:
    """Let a node or host take work again."""
    _set_cordon(cluster_file, node, None)


def _inspect(cluster_file: Path, *, engine: str) -> list[Finding]:
    settings = load_cluster_file(cluster_file)
    if not needs_remote(settings):
        is_real = engine == "vllm"
        return inspect(settings, engine=engine, replicas=1, needs_embedded_model=is_real)
    with step(f"Checks of {settings.cluster_name}") as current:
        return inspect_remote(read_cluster_file(cluster_file), settings, on_progress=current.say)


def _set_cordon(cluster_file: Path, node: str, wanted: Cordon | None) -> None:
    """Mark a node where its site keeps the mark, so that it outlives the head."""
    from cluster.provider import HybridNodeProvider  # noqa: PLC0415 - `tidegate --help` needs no Ray

    settings = load_cluster_file(cluster_file)
    raw = read_cluster_file(cluster_file)
    word = "uncordoned" if wanted is None else wanted.value
    with step(f"{node}: {word}"):
        provider = HybridNodeProvider(dict(raw["provider"]), settings.cluster_name)
        try:
            provider.cordon(node, wanted)
        finally:
            provider.close()


def _leave_at_once(code: int) -> None:
    """End without waiting for a site's call that hangs: Python joins its threads otherwise."""
    sys.stderr.flush()
    os._exit(code)
