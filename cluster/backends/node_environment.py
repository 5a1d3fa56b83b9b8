"""The environment of everything that runs on a node: which cluster, which ports, which token.

A node on a machine of its own gets what a process node gets, so the cluster files' commands read
alike everywhere. A node on its own machine keeps its files in the login user's home:

    ~/.tidegate/     claim.json and cordon (SSH hosts)   env.sh   auth_token   wheel/
    $TIDEGATE_VENV   the Python environment, first on PATH
"""

import shlex
from collections.abc import Mapping

from cluster.config import PortSettings
from cluster.model import LaunchSpec
from cluster.processes import KEEP_MARKS_READABLE, MARK_CLUSTER, MARK_NODE

RAY_FOLDER = "/tmp/ray"  # noqa: S108 - Ray's own folder, on a machine of its own
ENV_FILE = "~/.tidegate/env.sh"

_PORTS_PER_NODE = 10
_WORKER_PORTS = 1000
# HAProxy hands over to a new process whenever a gateway comes or goes; the old one lives on for the
# streams it has, for no longer than this. As long as replicas drain; Ray's default cuts at 120 s.
_STREAM_S_MAX = 600


def build_node_environment(
    ports: PortSettings, spec: LaunchSpec, *, address: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of a node on a machine of its own; `~/` stands for the node's home.

    `extra` are the site's own, which win.
    """
    return {
        **build_common_environment(ports, spec, address=address),
        "RAY_AUTH_TOKEN_PATH": "~/.tidegate/auth_token",
        "TIDEGATE_SITE": spec.site,
        "TIDEGATE_VENV": "/opt/tidegate/venv",
        "TIDEGATE_RAY_TMP": RAY_FOLDER,
        "TIDEGATE_RAY_START_ARGS": build_ray_start_arguments(
            ports, slot=0, worker_port=ports.workers
        ),
        **extra,
    }


def build_common_environment(
    ports: PortSettings, spec: LaunchSpec, *, address: str
) -> dict[str, str]:
    """Return the variables that nodes of every kind have in common."""
    named = {f"TIDEGATE_PORT_{name.upper()}": str(port) for name, port in ports if port is not None}
    # For commands on the head: Ray would look for any cluster around here.
    ray_address = {"RAY_ADDRESS": f"{address}:{ports.gcs}"} if spec.is_head else {}
    return {
        MARK_CLUSTER: spec.cluster,
        MARK_NODE: spec.node_id,
        **KEEP_MARKS_READABLE,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_START_HOOK": "cluster.backends.ray_start_hook.close_client_server",
        "TIDEGATE_NODE_IP": address,
        **named,
        # Where Ray reads them itself.
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.proxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.proxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.proxy_fallback),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_STREAM_S_MAX),
        **ray_address,
    }


def build_ray_start_arguments(ports: PortSettings, *, slot: int, worker_port: int | None) -> str:
    """Return the node's own ports as arguments of `ray start`.

    Slots tell nodes of one machine apart. `worker_port` is the first of the workers' range; None
    lets the system hand ports out, as several nodes of one machine would fight over a range.
    """
    first = ports.nodes + slot * _PORTS_PER_NODE
    options = {
        "node-manager-port": first,
        "object-manager-port": first + 1,
        "metrics-export-port": first + 2,
        "dashboard-agent-listen-port": first + 3,
        "dashboard-agent-grpc-port": first + 4,
        "runtime-env-agent-port": first + 5,
        "min-worker-port": worker_port or 0,
        "max-worker-port": worker_port + _WORKER_PORTS - 1 if worker_port else 0,
    }
    return " ".join(f"--{name}={port}" for name, port in options.items())


def render_env_file(environment: Mapping[str, str]) -> str:
    """Return a shell file that sets the variables and puts the node's Python first on PATH."""
    lines = [f"export {name}={quote_for_shell(text)}" for name, text in environment.items()]
    lines.append('export PATH="${TIDEGATE_VENV:+$TIDEGATE_VENV/bin:}$PATH"')
    return "\n".join(lines) + "\n"


def quote_for_shell(text: str) -> str:
    """Return a value as the shell reads it: word for word, less a leading `~/`."""
    if text.startswith("~/"):
        return '"$HOME"/' + shlex.quote(text[2:])
    return shlex.quote(text)
