"""Cordon, drain and uncordon from the command line reach the mark on a real SSH host."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cluster.config import read_cluster_file
from cluster.errors import TidegateError
from infra.cli import app
from tests.cluster.sshd_hosts import (
    SshdHost,
    build_ssh_settings,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
)

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    skip_without_sshd()
    with open_hosts(tmp_path, 1) as (opened,):
        yield opened
    remove_ssh_folder(tmp_path / "state" / "tidegate-hybrid")


@pytest.fixture
def file(host: SshdHost, tmp_path: Path) -> Path:
    """Return the shipped file with one host and no cloud."""
    raw: dict[str, Any] = read_cluster_file(ROOT / "cluster" / "hybrid.yaml")
    ssh = build_ssh_settings([host]).ssh
    provider, types = raw["provider"], raw["available_node_types"]
    provider["state_dir"] = str(tmp_path / "state")
    del provider["sites"]["aws-us-east-1"]
    for name in [name for name in types if name != "head"]:
        del types[name], provider["node_types"][name]
    backend = provider["sites"]["onprem"]["backend"]
    backend["ssh"] |= {"user": ssh.user, "private_key": ssh.private_key}
    backend["hosts"] = {"head-1": {"address": host.address, "port": host.port, "node_type": "head"}}
    raw["auth"]["ssh_private_key"] = ssh.private_key
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_mark_is_set_changed_and_removed_on_the_host_itself(file: Path, host: SshdHost) -> None:
    mark = host.home / ".tidegate" / "cordon"
    for words, left in (
        (("cordon", file, "head-1"), "cordoned"),
        (("drain", file, "head-1", "--yes"), "draining"),
        (("uncordon", file, "head-1"), None),
    ):
        done = run(*words)
        assert done.exit_code == 0, done.output
        found = mark.read_text().strip() if mark.exists() else None
        assert found == left


def test_an_unknown_name_is_one_clear_error(file: Path) -> None:
    done = run("cordon", file, "no-such-host")
    assert isinstance(done.exception, TidegateError)
    assert "no-such-host" in str(done.exception)


def test_a_plan_with_the_host_free_launches_the_head_there(file: Path) -> None:
    done = run("plan", file, "-o", "json")
    assert done.exit_code == 0, done.output
    plan = yaml.safe_load(done.stdout)
    assert [(c["action"], c["node_type"]) for c in plan["changes"]] == [("launch", "head")]
    assert plan["nodes"] == {"onprem": 0}
