"""Asks the head of a cluster for its report: over SSH where the head is a machine of its own."""

import json
from typing import Any

from cluster.backend_settings import SshBackendSettings
from cluster.backends.node_environment import ENV_FILE
from cluster.backends.ssh_access import SshTarget, resolve_access
from cluster.config import ClusterSettings
from cluster.errors import BackendError

_REPORT_S_MAX = 45.0


def find_head_host(settings: ClusterSettings) -> SshTarget | None:
    """Return the way to the head as the cluster file names it; None if it isn't an SSH host."""
    site = settings.sites[settings.node_types[settings.head_node_type].site]
    if not isinstance(site.backend, SshBackendSettings):
        return None
    for host in site.backend.hosts.values():
        if host.node_type == settings.head_node_type:
            access = resolve_access(site.backend.ssh, host)
            return SshTarget(access, host.address, settings.state_dir / settings.cluster_name)
    return None


def fetch_report(head: SshTarget) -> dict[str, Any]:
    """Return what `infra.head_report` says on the head.

    Raises:
        BackendError: the head can't be reached, or nothing is installed on it.
    """
    script = f". {ENV_FILE} && exec python -m infra.head_report"
    said = head.run_script(script, limit_s=_REPORT_S_MAX).strip().splitlines()
    if not said:
        raise BackendError(
            f"{head.login} must answer with a report; got nothing. Is the cluster up? Type: ray up"
        )
    report: dict[str, Any] = json.loads(said[-1])
    return report
