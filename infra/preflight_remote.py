"""Whether a cluster of SSH hosts and EC2 can start: every obstacle with its fix."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from cluster.backend_settings import AwsBackendSettings, SshBackendSettings
from cluster.config import ClusterSettings
from infra.preflight import Finding, inspect_packages
from infra.preflight_aws import inspect_aws
from infra.preflight_file import inspect_file
from infra.preflight_hosts import inspect_hosts, list_hosts

_ANSWER_S_MAX = 2.0


def needs_remote(settings: ClusterSettings) -> bool:
    """Return whether any site's nodes are machines of their own."""
    remote = SshBackendSettings | AwsBackendSettings
    return any(isinstance(site.backend, remote) for site in settings.sites.values())


def inspect_remote(
    raw: Mapping[str, Any], settings: ClusterSettings, *, on_progress: Callable[[str], None]
) -> list[Finding]:
    """Return the findings: this machine and the file, then hosts and ports, then the clouds."""
    findings = [*inspect_packages(), *inspect_file(raw, settings)]
    if settings.ports is not None:
        findings += inspect_hosts(settings, settings.ports, on_progress=on_progress)
        findings += _inspect_dashboard(settings, settings.ports.dashboard)
    for name, site in settings.sites.items():
        if isinstance(site.backend, AwsBackendSettings):
            findings += inspect_aws(raw, settings, name, site.backend, on_progress=on_progress)
    return findings


def _inspect_dashboard(settings: ClusterSettings, port: int) -> list[Finding]:
    """Return a warning if the dashboard of a running head answers this machine."""
    hosts = [host for host in list_hosts(settings) if host.node_type == settings.head_node_type]
    for host in hosts:
        url = f"http://{host.target.address}:{port}/api/authentication_mode"
        try:
            answer = httpx.get(url, timeout=_ANSWER_S_MAX, trust_env=False)
        except httpx.HTTPError:
            continue
        if answer.is_success:
            detail = f"{host.target.address}:{port} answers; whoever has the token can run code"
            fix = "Start Ray with --dashboard-host=127.0.0.1 and use `ray dashboard`."
            return [Finding("dashboard from here", "warn", detail, fix)]
    return []
