"""A node on a machine of its own gets the variables that the commands are written with."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from cluster.backends.node_environment import build_node_environment, render_env_file
from cluster.config import PortSettings
from cluster.model import LaunchSpec
from deployments.pool_options import GRACEFUL_SHUTDOWN_S

PORTS = PortSettings(
    gcs=6399,
    dashboard=8265,
    serve=8000,
    autoscaler_metrics=44217,
    dashboard_metrics=44227,
    proxy_metrics=9101,
    proxy_stats=8404,
    proxy_fallback=8500,
    nodes=6410,
    workers=20000,
)


def test_every_port_of_a_node_is_pinned(new_spec: Callable[..., LaunchSpec]) -> None:
    environment = build_node_environment(PORTS, new_spec(), address="10.0.0.7", extra={})
    assert environment["TIDEGATE_RAY_START_ARGS"] == (
        "--node-manager-port=6410 --object-manager-port=6411 --metrics-export-port=6412 "
        "--dashboard-agent-listen-port=6413 --dashboard-agent-grpc-port=6414 "
        "--runtime-env-agent-port=6415 --min-worker-port=20000 --max-worker-port=20999"
    )
    assert environment["TIDEGATE_PORT_GCS"] == "6399"
    assert environment["TIDEGATE_NODE_IP"] == "10.0.0.7"


def test_the_proxy_leaves_a_stream_as_long_as_a_replica_drains(
    new_spec: Callable[..., LaunchSpec],
) -> None:
    environment = build_node_environment(PORTS, new_spec(), address="10.0.0.7", extra={})
    assert float(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) == GRACEFUL_SHUTDOWN_S


def test_only_the_head_is_told_which_cluster_is_around(
    new_spec: Callable[..., LaunchSpec],
) -> None:
    head = build_node_environment(PORTS, new_spec(is_head=True), address="10.0.0.1", extra={})
    worker = build_node_environment(PORTS, new_spec(), address="10.0.0.2", extra={})
    assert head["RAY_ADDRESS"] == "10.0.0.1:6399"
    assert "RAY_ADDRESS" not in worker


def test_the_marks_and_the_token_are_always_there_and_a_site_may_add_and_replace(
    new_spec: Callable[..., LaunchSpec],
) -> None:
    environment = build_node_environment(
        PORTS, new_spec("n-7"), address="10.0.0.2", extra={"A": "b", "TIDEGATE_VENV": "~/v"}
    )
    assert environment["TIDEGATE_NODE"] == "n-7"
    assert environment["TIDEGATE_CLUSTER"] == "test"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert (environment["A"], environment["TIDEGATE_VENV"]) == ("b", "~/v")


def test_a_shell_reads_the_file_word_for_word_less_the_home(tmp_path: Path) -> None:
    file = tmp_path / "env.sh"
    file.write_text(
        render_env_file({"A": "it's $HOME; `x`", "B": "~/a b", "TIDEGATE_VENV": "~/venv"})
    )
    said = subprocess.run(
        ["/bin/sh", "-c", f'. {file}; printf "%s|%s|%s" "$A" "$B" "$PATH"'],
        env={"HOME": "/h", "PATH": os.defpath},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said == f"it's $HOME; `x`|/h/a b|/h/venv/bin:{os.defpath}"
