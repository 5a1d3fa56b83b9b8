"""Looks at a cluster from outside without changing anything: its sites, its ledger, its head.

Sites are asked side by side and each for a bounded time, so that one that hangs delays nobody.
"""

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from autoscaling.guard import Held
from cluster.backend_settings import ProcessBackendSettings
from cluster.backends.open import open_backend
from cluster.backends.ssh_access import SshTarget
from cluster.budget import BudgetStatus, budget_status
from cluster.config import (
    ClusterSettings,
    ProviderSettings,
    StoreSettings,
    parse_provider_section,
    read_cluster_file,
)
from cluster.errors import BackendError, StateError, TidegateError
from cluster.ledger import Ledger
from cluster.limits import money_limits
from cluster.model import ClusterName, Instance, NodeTypeName, SiteName
from cluster.store_place import find_place
from deployments.signals import Blackboard
from infra.head_link import fetch_report, find_head_host
from infra.plan import Observed, SiteLook

_SITE_S_MAX = 60.0
_HEAD_S_MAX = 5.0
_CONNECT_S_MAX = 2.0
_PROGRESS_S = 1.0


def look_at(
    cluster_file: Path, settings: ClusterSettings, *, on_progress: Callable[[str], None]
) -> Observed:
    """Return what can be learnt about a cluster from here; what can't be is in the notes."""
    raw = read_cluster_file(cluster_file)
    provider = parse_provider_section(raw["provider"])
    sites = _list_sites(provider, settings, on_progress=on_progress)
    notes: list[str] = []
    held, budget = _read_ledger(provider.store, settings, notes)
    record = _ask_head(settings, sites, notes)
    return Observed(
        sites=sites,
        nodes_max=int(raw["max_workers"]) + 1,
        held=held,
        budget=budget,
        record=record,
        notes=tuple(notes),
    )


def find_head(sites: Mapping[SiteName, SiteLook]) -> Instance | None:
    """Return the head, None if no site has it."""
    return next(
        (one for look in sites.values() for one in look.instances if one.spec.is_head), None
    )


def _list_sites(
    provider: ProviderSettings, settings: ClusterSettings, *, on_progress: Callable[[str], None]
) -> dict[SiteName, SiteLook]:
    executor = ThreadPoolExecutor(max_workers=len(settings.sites), thread_name_prefix="look")
    asked: dict[SiteName, Future[list[Instance]]] = {}
    for site, site_settings in settings.sites.items():
        home = settings.state_dir / settings.cluster_name
        if isinstance(site_settings.backend, ProcessBackendSettings) and not home.exists():
            # Opening it would make the folder; without one there is no node.
            continue
        asked[site] = executor.submit(
            _list_instances, provider, site, settings.cluster_name, settings.state_dir
        )
    waited_s = 0.0
    while waited_s < _SITE_S_MAX:
        _, missing = wait(asked.values(), timeout=_PROGRESS_S)
        if not missing:
            break
        waited_s += _PROGRESS_S
        silent = [site for site, future in asked.items() if not future.done()]
        on_progress(f"waiting for {', '.join(silent)}")
    # A hanging call can't be ended; the process that made it ends without waiting for it.
    executor.shutdown(wait=False, cancel_futures=True)
    return {
        site: _read_answer(asked[site]) if site in asked else SiteLook() for site in settings.sites
    }


def _list_instances(
    provider: ProviderSettings, site: SiteName, cluster: ClusterName, state_dir: Path
) -> list[Instance]:
    backend = open_backend(provider, site, cluster=cluster, state_dir=state_dir)
    return backend.list_instances()


def _read_answer(asked: "Future[list[Instance]]") -> SiteLook:
    if not asked.done():
        return SiteLook(error=f"no answer within {_SITE_S_MAX:.0f} s")
    try:
        return SiteLook(tuple(asked.result()))
    except TidegateError as error:
        return SiteLook(error=str(error))


def _read_ledger(
    store: StoreSettings, settings: ClusterSettings, notes: list[str]
) -> tuple[dict[NodeTypeName, Held], BudgetStatus | None]:
    """Return holds and money as the ledger has them; nothing where there is none to be read.

    SQLite is this machine's own: what the head has spent stands in the head's. PostgreSQL is one.
    """
    try:
        place = find_place(
            store,
            state_dir=settings.state_dir,
            cluster=settings.cluster_name,
            environment=os.environ,
        )
        if isinstance(place, Path) and not place.exists():
            return {}, None
        ledger = Ledger(place, reads_only=True)
    except StateError as error:
        notes.append(f"the ledger can't be read, so no spend and nothing sold out: {error}")
        return {}, None
    try:
        held = {
            hold.node_type: Held("sold_out", f"isn't asked for now: {hold.why}")
            for hold in ledger.list_holds()
        }
        return held, budget_status(ledger.spend_now(), money_limits(settings.limits))
    finally:
        ledger.close()


def _ask_head(
    settings: ClusterSettings, sites: Mapping[SiteName, SiteLook], notes: list[str]
) -> Mapping[str, Any] | None:
    """Return the autoscaler's decision record; None, and a note, when it isn't to be had."""
    head = find_head(sites)
    if head is None or head.address is None or settings.ports is None:
        return None
    target = find_head_host(settings)
    if target is not None:
        return _ask_over_ssh(target, notes)
    return _ask_control_store(f"{head.address}:{settings.ports.gcs}", settings, notes)


def _ask_over_ssh(head: SshTarget, notes: list[str]) -> Mapping[str, Any] | None:
    try:
        report = fetch_report(head)
    except BackendError as error:
        notes.append(f"the head doesn't answer, so its reasons aren't shown: {error}")
        return None
    notes += report["errors"]
    notes += [f"{use['limit']}: {use['reason']}" for use in report["ledger"].get("budget", ())]
    return dict(report["decision"] or {})


def _ask_control_store(
    address: str, settings: ClusterSettings, notes: list[str]
) -> Mapping[str, Any] | None:
    token = settings.state_dir / settings.cluster_name / "auth_token"
    # Ray's client ends the whole process without a token, and waits long for a silent address.
    if not token.exists():
        notes.append(f"the head can't be asked without the cluster's token: {token} is missing")
        return None
    if not _is_open(address):
        notes.append(f"the head doesn't answer on {address}, so its reasons aren't shown")
        return None
    # Ray looks for the token when it is imported, and only in the environment.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    from ray.exceptions import RayError  # noqa: PLC0415 - `tidegate --help` needs no Ray

    try:
        return Blackboard.from_address(address, timeout_s=_HEAD_S_MAX).get_decision()
    except (RayError, OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        notes.append(f"the head at {address} didn't answer: {lines[0]}")
        return None


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S_MAX):
            return True
    except OSError:
        return False
