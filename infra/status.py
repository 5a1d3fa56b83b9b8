"""The state of a running cluster: decision record, gateways' signals, ledger."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.backends.ssh_access import SshTarget
from cluster.config import ClusterSettings, parse_provider_section, read_cluster_file
from cluster.ledger import Ledger
from cluster.store_place import find_place
from deployments.signals import decode_signals
from infra.embedded import open_board, use_token
from infra.head_link import fetch_report, find_head_host
from infra.ledger_facts import describe_ledger
from infra.observe import ClusterSilent, ClusterView, drop_old, list_cloud_sites

_CONNECT_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cluster. `ledger` is as `infra.ledger_facts` describes it, empty = none."""

    view: ClusterView
    ledger: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


def read_status(cluster_file: Path, settings: ClusterSettings) -> Status:
    """Return the state of a cluster that runs; a head on a machine of its own is asked over SSH.

    Raises:
        TidegateError: the cluster doesn't run, or its head's machine doesn't answer.
    """
    head = find_head_host(settings)
    if head is not None:
        return _ask(head, settings)
    provider = parse_provider_section(read_cluster_file(cluster_file)["provider"])
    place = find_place(
        provider.store,
        state_dir=settings.state_dir,
        cluster=settings.cluster_name,
        environment=os.environ,
    )
    if isinstance(place, Path) and not place.exists():
        raise _say_down(settings)
    ledger = Ledger(place, reads_only=True)
    try:
        heads = [node.address for node in ledger.list_open() if node.is_head and node.address]
        facts = describe_ledger(ledger, settings.limits)
    finally:
        ledger.close()
    if not heads:
        raise _say_down(settings)
    return _read_board(settings, heads[-1], facts)


def _read_board(settings: ClusterSettings, address: str, facts: Mapping[str, Any]) -> Status:
    """Return what the board says beside the ledger's facts; an error if the head is silent."""
    use_token(settings)
    from ray.exceptions import RayError  # noqa: PLC0415 - `tidegate --help` needs no Ray

    cloud_sites = list_cloud_sites(settings)
    port = settings.ports.gcs if settings.ports is not None else 0
    try:
        # Ray's client waits long where nobody listens.
        socket.create_connection((address, port), timeout=_CONNECT_S_MAX).close()
        board = open_board(settings, address)
        view = ClusterView(cloud_sites, board.get_decision() or {}, drop_old(board.list_signals()))
    except (RayError, OSError, RuntimeError) as error:
        why = f"the control store at {address}:{port} doesn't answer: {error}"
        return Status(ClusterView(cloud_sites), facts, (why,))
    return Status(view, facts)


def _say_down(settings: ClusterSettings) -> ClusterSilent:
    return ClusterSilent(
        f"{settings.cluster_name} must run to have a status; its ledger has no head. "
        "Type: tidegate serve, or ray up with its cluster file."
    )


def _ask(head: SshTarget, settings: ClusterSettings) -> Status:
    report = fetch_report(head)
    view = ClusterView(
        cloud_sites=list_cloud_sites(settings),
        decision=report["decision"] or {},
        signals=drop_old([decode_signals(raw.encode()) for raw in report["signals"]]),
    )
    return Status(view, report["ledger"], tuple(report["errors"]))
