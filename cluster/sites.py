"""Puts the parts of a site together: its backend, what is done about it, and its thread."""

from collections.abc import Mapping
from decimal import Decimal

from cluster.backend_settings import AwsBackendSettings, SshBackendSettings
from cluster.backends.contract import KeepsWarmPool, NodeBackend
from cluster.config import ProviderSettings
from cluster.errors import BackendError
from cluster.ledger import Ledger
from cluster.limits import price_of_type
from cluster.model import NodeTypeName, SiteName
from cluster.site_reconcile import Conduct, Reconciler
from cluster.site_thread import SiteThread
from cluster.site_worker import SiteWorker

_POLL_S = 1.0
# Looking at other machines costs calls, which EC2 counts.
_POLL_REMOTE_S = 2.0
_WARM_TRIES = 3


def open_sites(
    settings: ProviderSettings,
    backends: Mapping[SiteName, NodeBackend],
    *,
    ledger: Ledger,
    conduct: Conduct,
    poll_s: float | None,
) -> dict[SiteName, SiteThread]:
    """Return every site's thread, at work already."""
    sites = {}
    for site, backend in backends.items():
        worker = build_worker(settings, site, backend=backend, ledger=ledger, conduct=conduct)
        is_remote = settings.sites[site].backend.kind in {"ssh", "aws"}
        usual_s = _POLL_REMOTE_S if is_remote else _POLL_S
        sites[site] = SiteThread(worker, poll_s=usual_s if poll_s is None else poll_s)
    for thread in sites.values():
        thread.start()
    return sites


def build_worker(
    settings: ProviderSettings,
    site: SiteName,
    *,
    backend: NodeBackend,
    ledger: Ledger,
    conduct: Conduct,
) -> SiteWorker:
    """Return what is done about one site."""
    kind = settings.sites[site].backend
    reconciler = Reconciler(
        site,
        ledger=ledger,
        conduct=conduct,
        price_of=lambda node_type: price_of_type(settings, node_type),
        join_s_max=kind.join_s_max if isinstance(kind, AwsBackendSettings) else None,
    )
    return SiteWorker(site, backend=backend, ledger=ledger, reconciler=reconciler, conduct=conduct)


def list_prices(settings: ProviderSettings) -> dict[NodeTypeName, Decimal]:
    """Return the price per hour of every node type that has one."""
    names = [NodeTypeName(name) for name in settings.node_types]
    priced = {name: price_of_type(settings, name) for name in names}
    return {name: price for name, price in priced.items() if price is not None}


def find_host(settings: ProviderSettings, name: str) -> SiteName | None:
    """Return the site that has a host of that name in the cluster file."""
    for site, one in settings.sites.items():
        if isinstance(one.backend, SshBackendSettings) and name in one.backend.hosts:
            return SiteName(site)
    return None


def list_sites_of(settings: ProviderSettings, node_name: str) -> set[SiteName]:
    """Return the sites that may hold a node: its name begins with its type."""
    return {
        SiteName(offer.site)
        for node_type, offer in settings.node_types.items()
        if node_name.startswith(f"{node_type}-")
    }


def end_warm_pool(thread: SiteThread) -> str | None:
    """Return what failed, None if a site keeps no ended machine any more."""
    backend, error = thread.worker.backend, None
    for _ in range(_WARM_TRIES):
        if not isinstance(backend, KeepsWarmPool):
            break
        try:
            backend.end_warm_pool()
        except BackendError as exc:
            error = f"site {thread.worker.site} must end its warm pool; got: {exc}"
        else:
            return None
    return error
