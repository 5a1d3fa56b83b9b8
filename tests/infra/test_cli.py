"""The command line explains itself, refuses bad input with exit code 2, and reports errors once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.config import render_json_schema
from infra.cli import app

TIDEGATE = Path(sys.executable).parent / "tidegate"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["serve", "demo", "doctor", "status", "schema", "models"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"tidegate {command}" in done.output.split("Example")[-1]


def test_an_unknown_engine_is_a_usage_error() -> None:
    done = CliRunner().invoke(app, ["serve", "--engine", "magic"])
    assert done.exit_code == 2
    assert "magic" in done.output


def test_a_cluster_file_that_is_missing_is_one_clear_error() -> None:
    done = subprocess.run(
        [TIDEGATE, "doctor", "no-such-file.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no-such-file.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_shipped_for_editors_is_the_one_the_code_makes() -> None:
    """After a change of the settings: tidegate schema > cluster/schema.json."""
    shipped = json.loads((ROOT / "cluster" / "schema.json").read_text())
    assert shipped == json.loads(json.dumps(render_json_schema()))
