"""Doctor on SSH hosts and EC2: every obstacle has its fix; hosts are asked over real SSH."""

import copy
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from cluster.backends.ssh_access import SshTarget, resolve_access
from cluster.config import ClusterSettings, parse_cluster_config, read_cluster_file
from cluster.model import SiteName
from infra.preflight import RAY_VERSION, Finding
from infra.preflight_aws import inspect_aws
from infra.preflight_file import find_downloads, inspect_file
from infra.preflight_hosts import (
    HostToCheck,
    _inspect_pair,
    inspect_hosts,
    judge_facts,
    list_hosts,
)
from infra.preflight_ports import find_closed, list_head_ports, listen_on
from tests.cluster.sshd_hosts import (
    SshdHost,
    build_ssh_settings,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
)

pytestmark = pytest.mark.daemon

HYBRID = Path(__file__).parents[2] / "cluster" / "hybrid.yaml"


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """Return the shipped file with its key, token and wheel in a folder of the test."""
    raw = copy.deepcopy(read_cluster_file(HYBRID))
    key = tmp_path / "key"
    key.write_text("not a key")
    key.chmod(0o600)
    raw["auth"]["ssh_private_key"] = str(key)
    for site in raw["provider"]["sites"].values():
        site["backend"]["ssh"]["private_key"] = str(key)
    raw["provider"]["state_dir"] = str(tmp_path / "state")
    wheels = tmp_path / "wheel"
    wheels.mkdir()
    (wheels / "tidegate-0.1.0-py3-none-any.whl").touch()
    raw["file_mounts"] = {
        "~/.tidegate/auth_token": str(tmp_path / "state" / "auth_token"),
        "~/.tidegate/wheel": str(wheels),
    }
    return raw


def find(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def inspect(raw: dict[str, Any]) -> list[Finding]:
    return list(inspect_file(raw, parse_cluster_config(raw)))


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("sudo apt-get -y install nvidia-driver", "apt-get -y install"),
        ("curl -LO https://example.org/x", "curl"),
        ("test -x y || { pip install -q ray; }", "pip install -q ray"),
        ("python -m pip install --no-index --no-deps x.whl", None),
        ("chmod 600 ~/.tidegate/auth_token", None),
    ],
)
def test_a_command_that_downloads_while_a_node_boots_is_found(
    command: str, part: str | None
) -> None:
    assert find_downloads(command) == part


def test_the_shipped_file_is_warned_of_its_fallback_and_its_placeholders(
    raw: dict[str, Any],
) -> None:
    findings = inspect(raw)
    boot = find(findings, "boot")
    assert boot.verdict == "warn"
    assert "tidegate infra image" in boot.fix
    site = find(findings, "site aws-us-east-1")
    assert (site.verdict, site.fix) == ("fail", "Edit provider.sites.aws-us-east-1.backend.")
    assert [f.check for f in findings if f.verdict == "fail"] == ["site aws-us-east-1"]


def test_a_key_and_a_token_that_others_can_read_are_failures(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    key, token = tmp_path / "key", tmp_path / "state" / "auth_token"
    key.chmod(0o644)
    token.parent.mkdir()
    token.write_text("x")
    token.chmod(0o640)
    findings = inspect(raw)
    assert find(findings, f"key {key}").fix == f"Type: chmod 600 {key}"
    assert find(findings, "token").fix.startswith(f"Type: chmod 600 {token}")


def test_what_is_missing_and_what_is_open_to_everybody_is_said(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "key").unlink()
    (tmp_path / "wheel" / "tidegate-0.1.0-py3-none-any.whl").unlink()
    raw["head_start_ray_commands"] = ["ray start --head --dashboard-host=0.0.0.0"]
    raw["provider"]["limits"]["usd_per_hour"] = 5
    env = raw["provider"]["sites"]["aws-us-east-1"]["backend"]["env"]
    env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "900"
    findings = inspect(raw)
    assert "ssh-keygen" in find(findings, f"key {tmp_path / 'key'}").fix
    assert find(findings, "mount ~/.tidegate/wheel").fix == "Type: make wheel"
    assert find(findings, "dashboard").verdict == "warn"
    assert "aws_l40s_x4" in find(findings, "limits").detail
    assert "300 s" in [f for f in findings if f.check == "site aws-us-east-1"][1].detail


def build_host(gpus: int = 2) -> HostToCheck:
    settings = parse_cluster_config(read_cluster_file(HYBRID))
    host = next(host for host in list_hosts(settings) if host.name == "l40s-1")
    assert host.gpus == gpus
    return host


FACTS = {
    "rsync": "/usr/bin/rsync",
    "python3": "/usr/bin/python3",
    "now_s": "1000",
    "token_mode": "600",
    "free_kib": str(100 * 1024**2),
    "gpus": "2",
    "python": "3.11",
    "ray": RAY_VERSION,
    "vllm": "0.29.0",
}


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({}, "pass", "ray 2.60.0"),
        ({"ray": ""}, "fail", "has no Ray"),
        ({"ray": "", "sudo": "yes"}, "warn", "has no Ray"),
        ({"ray": "2.50.0"}, "fail", "all nodes need 2.60.0"),
        ({"rsync": ""}, "fail", "has no rsync"),
        ({"token_mode": "644"}, "fail", "can read the token"),
        ({"gpus": "1"}, "warn", "shows 1 GPUs, its node type promises 2"),
        ({"now_s": "1100"}, "warn", "100 s off"),
        ({"free_kib": "1048576"}, "warn", "1.0 GiB free"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_a_host_says_of_itself_is_judged(
    changed: dict[str, str], verdict: str, said: str
) -> None:
    findings = list(judge_facts(build_host(), {**FACTS, **changed}, here_s=1000.0))
    judged = [(f.verdict, said in f.detail) for f in findings]
    assert (verdict, True) in judged
    assert all(f.fix for f in findings if f.verdict != "pass")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[SshdHost]]:
    skip_without_sshd()
    with open_hosts(tmp_path, 1) as opened:
        yield opened
    remove_ssh_folder(tmp_path / "state")


def test_ports_are_tried_with_a_listener_that_ends_with_its_session(
    hosts: list[SshdHost], tmp_path: Path
) -> None:
    """Two free ports: closed before, open while the listener runs, closed again after."""
    settings = build_ssh_settings(hosts)
    target = SshTarget(
        resolve_access(settings.ssh, settings.hosts["h1"]), hosts[0].address, tmp_path / "state"
    )
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [first.getsockname()[1], second.getsockname()[1]]
    assert find_closed(target, hosts[0].address, ports) == ports
    with listen_on(target, ports):
        assert find_closed(target, hosts[0].address, ports) == []
    assert find_closed(target, hosts[0].address, ports) == ports


def test_the_ports_of_the_head_hold_both_ends_of_the_workers_range() -> None:
    settings = parse_cluster_config(read_cluster_file(HYBRID))
    assert settings.ports is not None
    tried = list_head_ports(settings.ports)
    assert tried == [6379, 6410, 6411, 6412, 6413, 6414, 6415, 20000, 20999]


def look_at_aws(raw: dict[str, Any], settings: ClusterSettings) -> list[Finding]:
    backend: Any = settings.sites[SiteName("aws-us-east-1")].backend
    return list(
        inspect_aws(
            raw, settings, SiteName("aws-us-east-1"), backend, on_progress=lambda _text: None
        )
    )


def test_aws_launches_are_tried_as_dry_runs(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    raw["provider"]["sites"]["aws-us-east-1"]["backend"]["calls_per_s"] = 100.0
    with mock_aws():
        findings = look_at_aws(raw, parse_cluster_config(raw))
    assert [f.verdict for f in findings] == ["pass"] * 4, findings
    assert "g6e.xlarge" in find(findings, "site aws-us-east-1: aws_l40s").detail


def test_without_credentials_aws_is_one_failure_with_the_way_to_get_some(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    findings = look_at_aws(raw, parse_cluster_config(raw))
    assert [(f.verdict, "aws configure" in f.fix) for f in findings] == [("fail", True)]


def test_hosts_are_asked_for_real_and_a_head_that_lacks_ray_ends_the_port_checks(
    hosts: list[SshdHost], raw: dict[str, Any]
) -> None:
    """The machine answers and has no Ray where its site says, so its ports aren't tried."""
    settings = build_hybrid_settings(raw, hosts[0])
    assert settings.ports is not None
    said: list[str] = []
    findings = list(inspect_hosts(settings, settings.ports, on_progress=said.append))
    head = find(findings, "host head-1")
    assert (head.detail, "docs/hybrid.md" in head.fix) == ("has no Ray in /nowhere", True)
    assert said == ["hosts 1 of 1"]


def test_the_head_and_a_host_are_tried_both_ways(
    hosts: list[SshdHost], raw: dict[str, Any]
) -> None:
    """Nobody listens on the head here, so that way is closed; the other is tried and open."""
    settings = build_hybrid_settings(raw, hosts[0])
    assert settings.ports is not None
    head = list_hosts(settings)[0]
    findings = _inspect_pair(head, replace(head, name="l40s-1"), settings.ports)
    closed = [(finding.check, finding.verdict) for finding in findings]
    assert closed == [("ports l40s-1 → head-1", "fail"), ("ports head-1 → l40s-1", "pass")]
    assert str(settings.ports.gcs) in findings[0].detail


def build_hybrid_settings(raw: dict[str, Any], host: SshdHost) -> ClusterSettings:
    """Return the shipped file with one host, the head, and ports that are free."""
    backend = raw["provider"]["sites"]["onprem"]["backend"]
    site = build_ssh_settings([host])
    backend["ssh"] |= {"user": site.ssh.user, "private_key": site.ssh.private_key}
    backend["hosts"] = {
        "head-1": {"address": host.address, "port": host.port, "node_type": "head"},
    }
    backend["env"]["TIDEGATE_VENV"] = "/nowhere"
    raw["auth"]["ssh_private_key"] = site.ssh.private_key
    raw["provider"]["sites"]["aws-us-east-1"]["backend"]["ssh"]["private_key"] = (
        site.ssh.private_key
    )
    for node_type in ("onprem_l40s", "onprem_a100"):
        raw["available_node_types"][node_type] |= {"min_workers": 0, "max_workers": 0}
    # Below those that the kernel gives to outgoing connections of whatever else runs here.
    raw["provider"]["ports"] |= {"gcs": 28379, "nodes": 28410, "workers": 29000}
    return parse_cluster_config(raw)
