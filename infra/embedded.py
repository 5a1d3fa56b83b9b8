"""The embedded cluster: brought up through Ray's launcher on this machine, and taken down whole.

The same cluster file, provider, scheduler and gateway as anywhere else; only the sites' backend is
`process`. Whatever happens to this process, nothing of the cluster outlives it: it stops what it
started, and a reaper does so in its place if it is killed.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.backends.process_node import ClusterFolder
from cluster.config import (
    ClusterSettings,
    PortSettings,
    load_cluster_file,
    read_cluster_file,
    with_ports,
)
from cluster.errors import ConfigError
from cluster.processes import MARK_CLUSTER, end_marked, start_reaper
from deployments.signals import Blackboard
from infra.local_key import ensure_local_key
from infra.models import SMOLLM2, ensure_smollm2
from infra.observe import Observer
from infra.preflight import insist, inspect
from infra.progress import console, step
from infra.ray_cli import RayCli, RayCommandFailed
from infra.serve_api import ServeApi
from infra.serve_file import ServeFile, read_serve_file

_UP_S_MAX = 240.0
_DOWN_S_MAX = 90.0
_DEPLOY_S_MAX = 480.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start will use, worked out before anything is started."""

    cluster_file: Path
    settings: ClusterSettings
    serve_file: ServeFile
    engine: str
    key: str
    log_file: Path

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{_ports(self.settings).serve}"

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard."""
        return f"http://127.0.0.1:{_ports(self.settings).dashboard}"


def build_plan(cluster_file: Path, serve_file: Path, *, engine: str, port_offset: int) -> Plan:
    """Return what a start will use; writes the derived cluster file and the key, starts nothing.

    With an offset the cluster gets other ports and another name, so that it runs beside the first.
    """
    cluster_file, settings = resolve_cluster(cluster_file, port_offset=port_offset)
    key, keys_file = ensure_local_key(settings.state_dir)
    return Plan(
        cluster_file=cluster_file,
        settings=settings,
        serve_file=read_serve_file(serve_file, port=_ports(settings).serve, keys_file=keys_file),
        engine=engine,
        key=key,
        log_file=_run_dir(settings) / "ray.log",
    )


def resolve_cluster(cluster_file: Path, *, port_offset: int) -> tuple[Path, ClusterSettings]:
    """Return the file `ray up` gets, and its settings.

    With an offset that is a derived file, written beside the cluster's state.
    """
    settings = load_cluster_file(cluster_file)
    if port_offset == 0:
        return cluster_file, settings
    moved = with_ports(read_cluster_file(cluster_file), port_offset)
    derived = settings.state_dir / "run" / moved["cluster_name"] / "cluster.yaml"
    derived.parent.mkdir(parents=True, exist_ok=True)
    derived.write_text(yaml.safe_dump(moved, sort_keys=False))
    return derived, load_cluster_file(derived)


def use_token(settings: ClusterSettings) -> None:
    """Let Ray's client in this process find the cluster's token.

    It looks in the environment only, and only when Ray is imported: call this before.
    """
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_token_file(settings))}


def open_board(settings: ClusterSettings, head_ip: str) -> Blackboard:
    """Return the cluster's board."""
    use_token(settings)
    return Blackboard.from_address(f"{head_ip}:{_ports(settings).gcs}", timeout_s=5.0)


@contextmanager
def run_embedded(plan: Plan) -> Iterator[Observer]:
    """Bring the cluster up and its applications with it; take everything down at the end.

    Raises:
        TidegateError: a step failed; what had been started is stopped by then.
    """
    _check(plan)
    reaper = start_reaper(MARK_CLUSTER, plan.settings.cluster_name)
    ray_cli = RayCli(plan.cluster_file, plan.log_file)
    try:
        _start(plan, ray_cli)
        yield Observer(plan.settings, open_board(plan.settings, ray_cli.head_ip()), ray_cli)
    finally:
        _stop(plan, ray_cli, reaper)


def _token_file(settings: ClusterSettings) -> Path:
    """Return where Ray's token for this cluster is."""
    name = settings.cluster_name
    return ClusterFolder(settings.state_dir / name, name, _ports(settings)).token_file


def _ports(settings: ClusterSettings) -> PortSettings:
    if settings.ports is None:
        raise ConfigError(
            f"{settings.cluster_name}: provider.ports must be given for a cluster on one machine."
        )
    return settings.ports


def _run_dir(settings: ClusterSettings) -> Path:
    run_dir = settings.state_dir / "run" / settings.cluster_name
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _check(plan: Plan) -> None:
    serve_file = plan.serve_file
    findings = inspect(
        plan.settings,
        engine=plan.engine,
        replicas=max(serve_file.count_first_replicas(plan.engine), 1),
        needs_embedded_model=SMOLLM2 in serve_file.weights,
    )
    insist(findings)


def _start(plan: Plan, ray_cli: RayCli) -> None:
    if SMOLLM2 in plan.serve_file.weights:
        with step("Weights of SmolLM2-135M-Instruct") as current:
            ensure_smollm2(lambda share, what: current.say(f"{share:.0%} {what}"))
    with step("Cluster: ray up"):
        ray_cli.up(timeout_s=_UP_S_MAX)
    with step(f"Applications: {', '.join(plan.serve_file.application_names)}") as current:
        api = ServeApi(plan.dashboard_url, _token_file(plan.settings))
        api.wait_ready(timeout_s=_UP_S_MAX)
        api.deploy(plan.serve_file.config)
        api.wait_running(
            plan.serve_file.application_names, timeout_s=_DEPLOY_S_MAX, on_progress=current.say
        )


def _stop(plan: Plan, ray_cli: RayCli, reaper: subprocess.Popen[bytes]) -> None:
    """Take everything down; a second Ctrl-C doesn't cut it short, the reaper finishes it."""
    name = plan.settings.cluster_name
    with step("Cluster: ray down"):
        try:
            ray_cli.down(timeout_s=_DOWN_S_MAX)
        except RayCommandFailed as error:
            console.print(f"{error}\nEnding its processes by their mark instead.", markup=False)
        end_marked(MARK_CLUSTER, name)
    reaper.communicate(b"k")
