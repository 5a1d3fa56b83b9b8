"""The shipped production file: loads, is what Ray accepts, and hands no secret around."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.config import load_cluster_file, read_cluster_file

HYBRID_FILE = Path(__file__).parents[2] / "cluster" / "hybrid.yaml"


@pytest.fixture
def raw() -> dict[str, Any]:
    return read_cluster_file(HYBRID_FILE)


def commands(raw: dict[str, Any]) -> list[str]:
    return [
        command
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        for command in raw[key]
    ]


def test_it_describes_owned_hosts_and_both_markets_of_the_cloud() -> None:
    settings = load_cluster_file(HYBRID_FILE)
    assert {site.backend.kind for site in settings.sites.values()} == {"ssh", "aws"}
    assert {kind.market for kind in settings.node_types.values()} == {"owned", "spot", "on_demand"}


def test_ray_accepts_it_as_it_is(raw: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(raw))
    validate_config(prepared)
    assert prepared["available_node_types"]["onprem_l40s"]["max_workers"] == 2


def test_every_command_is_shell_as_ray_and_the_keeper_will_run_it(raw: dict[str, Any]) -> None:
    for command in commands(raw):
        checked = subprocess.run(
            ["/bin/bash", "-nc", f"export A=b; ({command})"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"


def test_the_node_agent_starts_on_rented_nodes_only_and_never_holds_the_session(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """A background process that kept the session's output open would hang Ray's launcher."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@" >> ~/called\nexec sleep 60\n')
    stub.chmod(0o755)
    (tmp_path / ".tidegate").mkdir()
    start = raw["worker_start_ray_commands"][-1]

    def run(**extra: str) -> str:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), **extra}
        script = f"({start}); echo pid=$!; jobs -p"
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return done.stdout

    run()
    assert not (tmp_path / "called").exists()
    try:
        run(TIDEGATE_LOST_HEAD_S_MAX="300")
        for _ in range(200):
            if (tmp_path / "called").exists():
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert (tmp_path / "called").read_text() == "-m cluster.node_agent\n"
    finally:
        _end_children_with_home(tmp_path)


def test_the_token_travels_as_a_file_and_no_other_secret_does(raw: dict[str, Any]) -> None:
    """Every node gets what file_mounts name, so the SSH key must not be among them."""
    assert raw["file_mounts"]["~/.tidegate/auth_token"].endswith("/auth_token")
    key = raw["auth"]["ssh_private_key"]
    assert key not in [*raw["file_mounts"], *raw["file_mounts"].values()]
    text = yaml.safe_dump(raw).lower()
    for word in ("aws_secret", "aws_access_key", "password", "ray_auth_token="):
        assert word not in text


def _end_children_with_home(home: Path) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"HOME={home}".encode() in environment:
                subprocess.run(["kill", entry.name], check=False)
