"""What one scrape of the autoscaler's metrics knows, and what becomes of it: values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autoscaling.metrics import Metric
from cluster.budget import BudgetStatus
from cluster.config import ClusterSettings
from cluster.ledger_boot import BootRecord
from cluster.ledger_sites import Hold, Listing
from cluster.model import NodeRecord, SiteName, SoldOut
from cluster.spend import Usd
from deployments.signals import GatewaySignals

Period = Literal["day", "month"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; a summary has its sum in `value` and its count in `count`."""

    metric: Metric
    labels: tuple[str, ...]
    value: float
    count: int = 0


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger says. `history` holds every node there ever was, a minute ago or now."""

    budget: BudgetStatus
    open_nodes: Sequence[NodeRecord] = ()
    history: Sequence[NodeRecord] = ()
    spend_usd: Mapping[Period, Mapping[SiteName, Usd]] | None = None
    sold_out: Sequence[SoldOut] = ()
    holds: Sequence[Hold] = ()
    listings: Sequence[Listing] = ()
    boots: Sequence[BootRecord] = ()
    is_lease_held: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything one scrape knows; None = could not be read. `now_s` is wall time."""

    now_s: float
    settings: ClusterSettings | None = None
    ledger: LedgerView | None = None
    decision: Mapping[str, Any] | None = None
    signals: Sequence[GatewaySignals] | None = None


def list_sites(settings: ClusterSettings, ledger: LedgerView) -> list[SiteName]:
    """Return the sites of the cluster file, then those that only the ledger still knows."""
    spent = (by_site.keys() for by_site in (ledger.spend_usd or {}).values())
    known = {node.site for node in ledger.open_nodes}.union(*spent)
    return [*settings.sites, *sorted(known - settings.sites.keys())]


def find_market(settings: ClusterSettings, record: NodeRecord) -> str:
    """Return a node's market, "unknown" if its type has left the cluster file."""
    node_type = settings.node_types.get(record.node_type)
    return node_type.market if node_type is not None else "unknown"
