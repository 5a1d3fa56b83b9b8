"""Preflight names every obstacle with its fix, before anything is started."""

import importlib.util
import socket
from pathlib import Path

import pytest

from cluster.config import (
    ClusterSettings,
    load_cluster_file,
    parse_cluster_config,
    read_cluster_file,
    with_ports,
)
from infra.preflight import Finding, PreflightFailed, _check_memory, insist, inspect

LOCAL = Path(__file__).parents[2] / "cluster" / "local.yaml"
GIB = 1024**3


@pytest.fixture
def settings() -> ClusterSettings:
    return load_cluster_file(LOCAL)


def find(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_busy_port_is_named_with_the_command_that_shows_who_holds_it() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        raw = with_ports(read_cluster_file(LOCAL), 1)
        raw["provider"]["ports"]["serve"] = port
        found = find(
            inspect(
                parse_cluster_config(raw), engine="emulated", replicas=1, needs_embedded_model=True
            ),
            "port serve",
        )
    assert found.verdict == "fail"
    assert f"sport = :{port}" in found.fix


def test_too_little_memory_for_vllm_suggests_the_emulated_engine() -> None:
    """3 GiB for the cluster + 1 x 3.6 GiB for vLLM = 6.6 GiB > 5 GiB."""
    found = _check_memory({"MemAvailable": 5 * GIB}, engine="vllm", replicas=1)
    assert found.verdict == "fail"
    assert found.detail == "5.0 GiB available, 6.6 GiB needed"
    assert "--engine emulated" in found.fix


def test_the_same_memory_is_enough_for_emulated_replicas() -> None:
    """3 GiB + 4 x 0.3 GiB = 4.2 GiB <= 5 GiB."""
    assert _check_memory({"MemAvailable": 5 * GIB}, engine="emulated", replicas=4).verdict == "pass"


def test_a_missing_package_says_make_setup(
    settings: ClusterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find_spec(name)
    )
    found = find(inspect(settings, engine="vllm", replicas=1, needs_embedded_model=True), "vllm")
    assert (found.verdict, found.fix) == ("fail", "Type: make setup")


def test_every_failure_is_in_the_one_error_and_warnings_are_not() -> None:
    findings = [
        Finding("a", "pass", "fine"),
        Finding("b", "warn", "odd"),
        Finding("c", "fail", "broken", "Mend c."),
        Finding("d", "fail", "gone", "Find d."),
    ]
    with pytest.raises(PreflightFailed) as refused:
        insist(findings)
    assert str(refused.value) == "c: broken. Mend c.\nd: gone. Find d."
