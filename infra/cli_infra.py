"""`tidegate infra …`: what surrounds a cluster in AWS."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.backend_settings import AwsBackendSettings
from cluster.config import ClusterSettings, load_cluster_file, read_cluster_file
from cluster.errors import ConfigError
from cluster.ledger import Ledger
from cluster.model import SiteName
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
from infra.image_recipe import ImageRecipe
from infra.images import BuilderPlace, build_image
from infra.progress import step
from infra.sweep import GRACE_S, SweepReport, sweep

app = typer.Typer(
    no_args_is_help=True,
    help="What surrounds a cluster in AWS: node images, rights, and instances nobody knows.",
)

_WHEELS = Path("~/.tidegate/wheel")

ApplyOption = Annotated[bool, typer.Option("--apply", help="Adopt or end what is found.")]
EndWarmOption = Annotated[
    bool, typer.Option("--end-warm", help="End instances that are kept stopped, too.")
]


@app.command(
    epilog="Example:  TIDEGATE_WHEEL_URL=https://… tidegate infra image cluster/hybrid.yaml "
    "--base-image ami-… --model Qwen/Qwen3-8B@b968826 --yes"
)
def image(  # noqa: PLR0913, PLR0917 - each is an option of the command
    cluster_file: AnyClusterFile,
    base_image: Annotated[str, typer.Option(help="AMI to start from: Debian or Ubuntu.")],
    wheel_url: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_WHEEL_URL",
            help="https URL where the builder finds the wheel. A signed one is a secret: give it "
            "by the variable, which no process list shows.",
        ),
    ],
    wheel: Annotated[
        Path | None, typer.Option(help="The same wheel here; by default ~/.tidegate/wheel/*.whl.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Weights to include, owner/name@revision; repeatable.")
    ] = None,
    driver: Annotated[
        str | None, typer.Option(help="NVIDIA driver package, unless the base image has one.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="AWS site to build at, if the file has several.")
    ] = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag of the command line
    output: OutputOption = Output.TABLE,
) -> None:
    """Build a node image (AMI) with driver, wheel, vLLM and weights: nodes then join at once.

    Starts one builder instance and ends it again; the same content gives the same image. Put the
    id it prints into the site's `image`.
    """
    settings = load_cluster_file(cluster_file)
    backend = _choose_site(settings, site)
    recipe = ImageRecipe(
        base_image=base_image,
        wheel_url=wheel_url,
        wheel_sha256=hashlib.sha256(_find_wheel(wheel).read_bytes()).hexdigest(),
        models=tuple(model or ()),
        driver=driver,
        user=backend.ssh.user,
    )
    place = BuilderPlace(
        region=backend.region,
        subnet=next(iter(backend.subnets.values())),
        security_groups=backend.security_groups,
        endpoint_url=backend.endpoint_url,
    )
    question = f"Start a {place.instance_type} in {place.region} for an hour or so?"
    confirm(question, yes=yes, command="tidegate infra image …")
    with step(f"Image for {settings.cluster_name}") as current:
        built = build_image(recipe, place, on_progress=current.say)
    table = Table("image", "name", "new")
    table.add_row(built.image_id, built.name, "yes" if built.is_new else "no")
    write_report(output, asdict(built), table)


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


def _choose_site(settings: ClusterSettings, name: str | None) -> AwsBackendSettings:
    """Return the AWS site that is meant."""
    sites = {
        site: one.backend
        for site, one in settings.sites.items()
        if isinstance(one.backend, AwsBackendSettings)
    }
    if name is None and len(sites) == 1:
        return next(iter(sites.values()))
    chosen = sites.get(SiteName(name or ""))
    if chosen is None:
        known = ", ".join(sites) or "none in this file"
        raise typer.BadParameter(f"must name an aws site: {known}", param_hint="--site")
    return chosen


def _find_wheel(given: Path | None) -> Path:
    """Return the wheel whose content is meant: the one given, or what `make wheel` made."""
    if given is not None:
        return given
    wheels = sorted(_WHEELS.expanduser().glob("tidegate-*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"{_WHEELS} must hold one wheel; got {len(wheels)}. Type: make wheel")
    return wheels[0]


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
