"""`tidegate infra …`: what surrounds a cluster in AWS."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.config import ClusterSettings, load_cluster_file, read_cluster_file
from cluster.ledger import Ledger
from cluster.store_place import find_place
from infra.aws_policy import render_policy
from infra.cli_options import (
    AnyClusterFile,
    Output,
    OutputOption,
    YesOption,
    confirm,
    write_report,
)
from infra.progress import step
from infra.sweep import GRACE_S, SweepReport, sweep

app = typer.Typer(
    no_args_is_help=True,
    help="What surrounds a cluster in AWS: node images, rights, and instances nobody knows.",
)

ApplyOption = Annotated[bool, typer.Option("--apply", help="Adopt or end what is found.")]
EndWarmOption = Annotated[
    bool, typer.Option("--end-warm", help="End instances that are kept stopped, too.")
]


@app.command(
    name="sweep",
    epilog="Examples:  tidegate infra sweep cluster/hybrid.yaml  |  "
    "tidegate infra sweep cluster/hybrid.yaml --apply --yes",
)
def sweep_leaks(
    cluster_file: AnyClusterFile,
    apply: ApplyOption = False,  # noqa: FBT002 - a flag of the command line
    end_warm: EndWarmOption = False,  # noqa: FBT002 - as above
    older_than_s: Annotated[
        float, typer.Option(min=0, help="Leave younger instances alone; seconds.")
    ] = GRACE_S,
    yes: YesOption = False,  # noqa: FBT002 - as above
    output: OutputOption = Output.TABLE,
) -> None:
    """Find EC2 instances with this cluster's tag that its ledger doesn't know, in all regions.

    Without --apply it only reports. Exit code 1 if a region couldn't be searched.
    """
    settings = load_cluster_file(cluster_file)
    if apply:
        command = f"tidegate infra sweep {cluster_file} --apply"
        question = "Adopt or end the instances that nobody knows?"
        confirm(question, yes=yes, command=command)
    with (
        step(f"Instances of {settings.cluster_name}"),
        _open_ledger(settings, writes=apply) as book,
    ):
        report = sweep(settings, book, applies=apply, ends_warm=end_warm, grace_s=older_than_s)
    write_report(output, report.as_data(), _render_sweep(report))
    for region, error in report.errors.items():
        typer.echo(f"{region} couldn't be searched: {error}", err=True)
    if report.errors:
        raise typer.Exit(1)


@app.command(epilog="Example:  tidegate infra policy cluster/hybrid.yaml --account 123456789012")
def policy(
    cluster_file: AnyClusterFile,
    account: Annotated[
        str, typer.Option(help="AWS account id; without it, resources of any account match.")
    ] = "*",
) -> None:
    """Print the IAM policy that the head needs for a cluster file, and no more."""
    rendered = render_policy(read_cluster_file(cluster_file), account=account)
    sys.stdout.write(f"{json.dumps(rendered, indent=1)}\n")


@contextmanager
def _open_ledger(settings: ClusterSettings, *, writes: bool) -> Iterator[Ledger]:
    """Open the cluster's ledger; a look from a machine that has none gets an empty one."""
    place = find_place(
        settings.store,
        state_dir=settings.state_dir,
        cluster=settings.cluster_name,
        environment=os.environ,
    )
    with tempfile.TemporaryDirectory() as folder:
        is_missing = isinstance(place, Path) and not place.exists()
        if is_missing and not writes:
            ledger = Ledger(Path(folder) / "ledger.db")
        else:
            ledger = Ledger(place, reads_only=not writes)
        try:
            yield ledger
        finally:
            ledger.close()


def _render_sweep(report: SweepReport) -> Table:
    done = {"keep": "kept", "adopt": "adopted", "end": "ended"}
    table = Table("region", "instance", "type", "state", "node", "what", "why")
    for one in report.findings:
        what = done[one.fate] if report.is_applied else one.fate
        node = one.node_id or "none"
        table.add_row(
            one.region, one.instance_id, one.instance_type, one.state, node, what, escape(one.why)
        )
    return table
