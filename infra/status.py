"""The state of a running cluster: decision record, gateways' signals, ledger."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.backends.ssh_access import SshTarget
from cluster.config import ClusterSettings, parse_provider_section, read_cluster_file
from cluster.errors import StateError
from cluster.ledger import Ledger
from cluster.store_place import find_place
from deployments.signals import decode_signals
from infra.embedded import open_observer
from infra.head_link import fetch_report, find_head_host
from infra.ledger_facts import describe_ledger
from infra.observe import ClusterView


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cluster. `ledger` is as `infra.ledger_facts` describes it, empty = none."""

    view: ClusterView
    ledger: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


def read_status(cluster_file: Path, settings: ClusterSettings) -> Status:
    """Return the state of a cluster that runs; a head on a machine of its own is asked over SSH.

    Raises:
        TidegateError: the cluster doesn't answer.
    """
    head = find_head_host(settings)
    if head is not None:
        return _ask(head, settings)
    view = open_observer(cluster_file, settings).look()
    provider = parse_provider_section(read_cluster_file(cluster_file)["provider"])
    try:
        place = find_place(
            provider.store,
            state_dir=settings.state_dir,
            cluster=settings.cluster_name,
            environment=os.environ,
        )
        ledger = Ledger(place, reads_only=True)
    except StateError as error:
        return Status(view, errors=(str(error),))
    try:
        return Status(view, describe_ledger(ledger, settings.limits))
    finally:
        ledger.close()


def _ask(head: SshTarget, settings: ClusterSettings) -> Status:
    report = fetch_report(head)
    view = ClusterView(
        cloud_sites=frozenset(name for name, site in settings.sites.items() if not site.owned),
        decision=report["decision"] or {},
        signals=[decode_signals(raw.encode()) for raw in report["signals"]],
    )
    return Status(view, report["ledger"], tuple(report["errors"]))
