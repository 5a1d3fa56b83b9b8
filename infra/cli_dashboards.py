"""`tidegate dashboards …`: what Prometheus and Grafana need to show a cluster."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.config import load_cluster_file
from infra.dashboards import build_hybrid_dashboard
from infra.grafana import find_access, push_dashboards
from infra.prometheus import Scraping, render_prometheus
from infra.rules import Thresholds, build_rules, render_rules

app = typer.Typer(
    no_args_is_help=True,
    help="Prometheus configuration, alert rules, and dashboards pushed to Grafana.",
)


@app.command(epilog="Example:  tidegate dashboards prometheus cluster/hybrid.yaml > prometheus.yml")
def prometheus(
    cluster_file: Annotated[Path, typer.Argument(help="The cluster file.")],
    token_file: Annotated[
        Path | None, typer.Option(help="The cluster's token, where Prometheus runs.")
    ] = None,
    rules: Annotated[
        list[str] | None, typer.Option(help="Rule file to load; may be given several times.")
    ] = None,
    head: Annotated[
        str, typer.Option(help="The head's address as Prometheus reaches its dashboard and entry.")
    ] = "127.0.0.1",
) -> None:
    """Print a Prometheus configuration for a cluster; it belongs on the head."""
    settings = load_cluster_file(cluster_file)
    token = token_file or settings.state_dir / settings.cluster_name / "auth_token"
    scraping = Scraping(
        token_file=token, dashboard_host=head, entry_host=head, rule_files=tuple(rules or ())
    )
    sys.stdout.write(render_prometheus(settings, scraping))


@app.command(epilog="Example:  tidegate dashboards rules > tidegate-rules.yml")
def rules(
    burst_minutes: Annotated[
        int, typer.Option(min=1, help="Minutes of burst after which somebody is told.")
    ] = 120,
) -> None:
    """Print the alert rules, as Prometheus reads them."""
    sys.stdout.write(render_rules(build_rules(Thresholds(burst_s_max=burst_minutes * 60))))


@app.command(name="json", epilog="Example:  tidegate dashboards json > hybrid-cost.json")
def print_json() -> None:
    """Print the dashboard, for a Grafana that takes it from a file."""
    sys.stdout.write(f"{json.dumps(build_hybrid_dashboard(), indent=1)}\n")


@app.command(
    epilog="Example:  GRAFANA_URL=https://grafana GRAFANA_TOKEN_FILE=~/.grafana-token "
    "tidegate dashboards push --prometheus-url http://10.20.0.10:9090"
)
def push(
    prometheus_url: Annotated[
        str | None, typer.Option(help="Prometheus as Grafana reaches it; makes the data source.")
    ] = None,
) -> None:
    """Bring the dashboards to Grafana; what is there already as it should be stays untouched."""
    pushed = push_dashboards(
        find_access(), [build_hybrid_dashboard()], prometheus_url=prometheus_url
    )
    table = Table("what", "name", "change", "address")
    for one in pushed:
        table.add_row(one.what, one.name, one.change, one.url)
    Console().print(table)
