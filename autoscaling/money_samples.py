"""The samples about money: accrued, committed, and the limits' use. Pure.

An unknown price is never shown as zero: what depends on it has no sample, the count of unknown
prices says so, and its limits count as reached. What runs under a type or at a site that has left
the cluster file still costs, and is shown.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import get_args

from autoscaling import metrics as m
from autoscaling.figures import LedgerView, Period, Sample, find_market, list_sites
from cluster.budget import Level, LimitUse
from cluster.config import ClusterSettings


def sample_money(settings: ClusterSettings, ledger: LedgerView) -> Iterator[Sample]:
    """Yield what was spent and what is committed, by site, and every limit's use."""
    spend = ledger.spend_usd or {}
    for site in list_sites(settings, ledger):
        at_site = [node for node in ledger.open_nodes if node.site == site]
        unknown = [node for node in at_site if node.usd_per_hour is None]
        yield Sample(m.PRICES_UNKNOWN, (site,), len(unknown))
        for period in get_args(Period):
            usd = spend.get(period, {}).get(site, Decimal(0))
            if usd is not None:
                yield Sample(m.SPEND_USD, (site, period), float(usd))
        markets = {kind.market for kind in settings.node_types.values() if kind.site == site}
        committed: dict[str, Decimal] = dict.fromkeys(sorted(markets), Decimal(0))
        for node in at_site:
            if node.usd_per_hour is not None:
                market = find_market(settings, node)
                committed[market] = committed.get(market, Decimal(0)) + node.usd_per_hour
        for market, usd_per_hour in committed.items():
            yield Sample(m.COMMITTED_USD_PER_HOUR, (site, market), float(usd_per_hour))
    for use in ledger.budget.uses:
        yield Sample(m.LIMIT_USD, (use.limit,), float(use.limit_usd))
        yield Sample(m.LIMIT_USE_RATIO, (use.limit,), _share(use))
        for level in get_args(Level):
            yield Sample(m.LIMIT_STATE, (use.limit, level), float(use.level == level))


def _share(use: LimitUse) -> float:
    """Return the share of a limit; of a limit of zero nothing is used until something is."""
    if use.used_usd is None:
        return 1.0
    if use.limit_usd == 0:
        return 0.0 if use.used_usd == 0 else 1.0
    return float(use.used_usd / use.limit_usd)
