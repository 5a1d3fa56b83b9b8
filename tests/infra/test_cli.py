"""The command line explains itself, refuses bad input with exit code 2, and reports errors once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup as Group
from typer.main import get_group
from typer.testing import CliRunner

from cluster.config import load_cluster_file, render_json_schema
from infra.cli import app

TIDEGATE = Path(sys.executable).parent / "tidegate"
ROOT = Path(__file__).parents[2]


def list_commands(group: Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, Group):
            yield from list_commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(list_commands(get_group(app))), ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert f"tidegate {' '.join(words)}" in done.output.split("Example")[-1]


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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TIDEGATE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("drain", "cluster/hybrid.yaml", "l40s-2"),
        ("infra", "sweep", "cluster/hybrid.yaml", "--apply"),
    ],
    ids=" ".join,
)
def test_what_ends_nodes_needs_yes_without_a_terminal_and_says_so(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert f"tidegate {' '.join(words)} --yes" in " ".join(done.stderr.split())


def test_the_policy_of_the_shipped_file_is_printed_whole() -> None:
    done = run("infra", "policy", "cluster/hybrid.yaml")
    assert done.returncode == 0, done.stderr
    shipped = json.loads((ROOT / "infra" / "aws_policy.json").read_text())
    assert json.loads(done.stdout) == shipped


def test_a_plan_of_a_cluster_that_does_not_run_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    local = (ROOT / "cluster" / "local.yaml").read_text()
    file.write_text(local.replace("~/.tidegate", str(tmp_path / "state")))
    done = run("plan", str(file), "-o", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [change["node_type"] for change in plan["changes"]] == ["head", "onprem_gpu"]
    assert plan["nodes"] == {"onprem": 0, "cloud": 0}
    assert not (tmp_path / "state").exists()


def test_render_prints_a_file_that_loads(tmp_path: Path) -> None:
    done = run("render", "cluster/hybrid.yaml")
    assert done.returncode == 0, done.stderr
    (tmp_path / "rendered.yaml").write_text(done.stdout)
    settings = load_cluster_file(tmp_path / "rendered.yaml")
    assert settings == load_cluster_file(ROOT / "cluster" / "hybrid.yaml")


def test_building_an_image_asks_before_it_starts_a_builder(tmp_path: Path) -> None:
    """Nothing is started: without a terminal and --yes it ends before the first call."""
    wheel = tmp_path / "tidegate-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    url = "https://example.org/tidegate.whl"
    arguments = ("--base-image", "ami-1", "--wheel-url", url, "--wheel", str(wheel))
    done = run("infra", "image", "cluster/hybrid.yaml", *arguments)
    assert done.returncode == 1
    assert "Start a m7i.2xlarge in us-east-1" in " ".join(done.stderr.split())
