"""What the commands' options have in common, and how reports are written."""

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console, RenderableType

import cluster
from cluster.errors import ConfigError

LOCAL_CLUSTER_FILE = Path(cluster.__file__).parent / "local.yaml"


class Output(StrEnum):
    """How a report is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to write the report.")]
ClusterFile = Annotated[
    Path, typer.Argument(help="Cluster file; the embedded one is cluster/local.yaml.")
]
AnyClusterFile = Annotated[Path, typer.Argument(help="Cluster file, such as cluster/hybrid.yaml.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def write_report(output: Output, content: Mapping[str, Any], table: RenderableType) -> None:
    """Write a report to stdout as asked; `content` is ready for JSON."""
    if output is Output.TABLE:
        Console().print(table)
    elif output is Output.JSON:
        sys.stdout.write(f"{json.dumps(content, indent=1)}\n")
    else:
        sys.stdout.write(yaml.safe_dump(dict(content), sort_keys=False))


def confirm(question: str, *, yes: bool, command: str) -> None:
    """Return if the person agrees; `command` is what to type where nobody can be asked.

    Raises:
        ConfigError: there is no terminal and no `--yes`.
        Abort: the person says no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Without a terminal, say so: {command} --yes")
    typer.confirm(question, abort=True)
