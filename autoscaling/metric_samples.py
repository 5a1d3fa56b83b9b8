"""From what is known to the samples of every metric in `autoscaling.metrics`. Pure.

What couldn't be read is None and yields nothing but `tidegate_source_readable` 0: no invented
zeros. What was read yields zeros for every name of the cluster file, so that a panel about a site
without nodes shows 0 instead of a gap.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from autoscaling import metrics as m
from autoscaling.figures import Figures, LedgerView, Sample, find_market, list_sites
from autoscaling.guard import LimitName
from autoscaling.money_samples import sample_money
from autoscaling.record import BurstState
from cluster.config import ClusterSettings
from cluster.ledger_boot import BootRecord
from cluster.model import TAG_RELEASED, BootStage, Cordon, NodePhase
from deployments.signals import GatewaySignals, PoolSignal

_OPEN_PHASES = tuple(phase for phase in NodePhase if phase is not NodePhase.CLOSED)
_FAILURE_CODES = {
    "no capacity": "no_capacity",
    "launch failed": "launch_failed",
    "never launched": "owner_ended",
    "gone from its site": "lost",
    "not joined within": "not_joined",
    "stopped": "stopped",
}
_CREDENTIALS_ERROR = "CredentialsError"


def list_samples(figures: Figures) -> Iterator[Sample]:
    """Yield every sample that the figures allow."""
    sources = {
        "cluster_file": figures.settings,
        "ledger": figures.ledger,
        "decision": figures.decision,
        "signals": figures.signals,
    }
    for name, found in sources.items():
        yield Sample(m.SOURCE_READABLE, (name,), float(found is not None))
    if figures.settings is not None and figures.ledger is not None:
        yield from _sample_nodes(figures.settings, figures.ledger, figures.now_s)
        yield from _sample_launches(figures.settings, figures.ledger)
        yield from sample_money(figures.settings, figures.ledger)
        yield from _sample_sites(figures.settings, figures.ledger, figures.now_s)
    if figures.ledger is not None:
        yield Sample(m.LEASE_HELD, (), float(figures.ledger.is_lease_held))
        yield from _sample_boots(figures.ledger.boots)
    if figures.decision is not None:
        yield from _sample_decision(figures.decision, figures.now_s)
    if figures.signals is not None:
        planned = (figures.decision or {}).get("targets", {})
        yield from _sample_pools(figures.signals, planned)


def find_failure_code(closed_why: str | None) -> str | None:
    """Return the code of a closed node's end, None if it ended as it should."""
    for words, code in _FAILURE_CODES.items():
        if closed_why is not None and closed_why.startswith(words):
            return code
    return None


def _sample_nodes(settings: ClusterSettings, ledger: LedgerView, now_s: float) -> Iterator[Sample]:
    open_nodes = ledger.open_nodes
    counts: Counter[tuple[str, ...]] = Counter(
        (node.site, node.node_type, find_market(settings, node), node.phase) for node in open_nodes
    )
    known = [
        (kind.site, name, kind.market, phase)
        for name, kind in settings.node_types.items()
        for phase in _OPEN_PHASES
    ]
    for labels in dict.fromkeys([*known, *counts]):
        yield Sample(m.NODES, labels, counts[labels])
    for name, site in settings.sites.items():
        yield Sample(m.NODES_MAX, (name,), site.max_nodes)
    for name in list_sites(settings, ledger):
        for phase in _OPEN_PHASES:
            since = [n.changed_s for n in open_nodes if (n.site, n.phase) == (name, phase)]
            age_s = max(0.0, now_s - min(since)) if since else 0.0
            yield Sample(m.PHASE_AGE_S, (name, phase), age_s)
    for node in open_nodes:
        # Addresses are used again: joins need one series for each, so only what runs has one.
        if node.phase is NodePhase.RUNNING and node.address is not None:
            market = find_market(settings, node)
            labels = (node.node_id, node.node_type, node.site, market, node.address)
            yield Sample(m.NODE_INFO, labels, 1)
    cordons = Counter((node.site, node.cordon) for node in open_nodes if node.cordon is not None)
    for site_name in list_sites(settings, ledger):
        for cordon in Cordon:
            yield Sample(m.NODES_CORDONED, (site_name, cordon), cordons[(site_name, cordon)])


def _sample_launches(settings: ClusterSettings, ledger: LedgerView) -> Iterator[Sample]:
    launches = Counter(
        (node.site, node.node_type, find_market(settings, node)) for node in ledger.history
    )
    failures = Counter(
        (node.site, node.node_type, code)
        for node in ledger.history
        # One that was sent home may be found stopped before its site is told to end it.
        if TAG_RELEASED not in node.tags
        and (code := find_failure_code(node.closed_why)) is not None
    )
    known = [(kind.site, name) for name, kind in settings.node_types.items()]
    offered = [(site, name, settings.node_types[name].market) for site, name in known]
    for labels in dict.fromkeys([*offered, *launches]):
        yield Sample(m.LAUNCHES, labels, launches[labels])
    codes = [(*pair, code) for pair in known for code in _FAILURE_CODES.values()]
    for failed in dict.fromkeys([*codes, *failures]):
        yield Sample(m.FAILURES, failed, failures[failed])


def _sample_sites(settings: ClusterSettings, ledger: LedgerView, now_s: float) -> Iterator[Sample]:
    listings = {listing.site: listing for listing in ledger.listings}
    sold_out = [row for row in ledger.sold_out if row.until_s > now_s]
    holds = [hold for hold in ledger.holds if hold.until_s > now_s]
    for row in sold_out:
        labels = (row.site, row.instance_type, row.zone, row.market, row.code)
        yield Sample(m.SOLD_OUT_UNTIL, labels, row.until_s)
    for hold in holds:
        yield Sample(m.HELD_UNTIL, (hold.site, hold.node_type), hold.until_s)
    for site in settings.sites:
        yield Sample(m.SOLD_OUT, (site,), sum(row.site == site for row in sold_out))
        yield Sample(m.HOLDS, (site,), sum(hold.site == site for hold in holds))
        listing = listings.get(site)
        if listing is None:
            continue
        is_refused = listing.error_kind == _CREDENTIALS_ERROR
        yield Sample(m.LISTING_FAILED, (site,), float(listing.error is not None))
        yield Sample(m.CREDENTIALS_REFUSED, (site,), float(is_refused))
        if listing.listed_s is not None:
            yield Sample(m.LISTING_AGE_S, (site,), max(0.0, now_s - listing.listed_s))


def _sample_boots(boots: Sequence[BootRecord]) -> Iterator[Sample]:
    """Yield, by node type, how long each stage took since the one recorded before it."""
    order = list(BootStage)
    by_node: dict[str, list[BootRecord]] = {}
    for boot in boots:
        by_node.setdefault(boot.node_id, []).append(boot)
    took_s: dict[tuple[str, ...], list[float]] = {}
    for of_node in by_node.values():
        ordered = sorted(of_node, key=lambda boot: order.index(boot.stage))
        for before, after in pairwise(ordered):
            labels = (after.site, after.node_type, after.stage)
            took_s.setdefault(labels, []).append(max(0.0, after.at_s - before.at_s))
    for stage, all_s in sorted(took_s.items()):
        yield Sample(m.BOOT_STAGE_S, stage, sum(all_s), len(all_s))


def _sample_decision(decision: Mapping[str, Any], now_s: float) -> Iterator[Sample]:
    """Yield what the decision record says; keys it lacks yield nothing."""
    if "decided_s" in decision:
        yield Sample(m.DECISION_AGE_S, (), max(0.0, now_s - float(decision["decided_s"])))
    if "burst" in decision:
        for state in get_args(BurstState):
            yield Sample(m.BURST_STATE, (state,), float(decision["burst"] == state))
    if "refusals" in decision:
        counts = dict.fromkeys(get_args(LimitName), 0) | decision["refusals"]
        for limit, count in sorted(counts.items()):
            yield Sample(m.REFUSALS, (limit,), float(count))
    yield from _sample_shadow(decision)
    for code, subject in sorted({(str(c), str(s)) for c, s in decision.get("codes", ())}):
        yield Sample(m.REASON, (code, subject), 1)
    for loop, took_s in sorted(decision.get("tick_s", {}).items()):
        yield Sample(m.TICK_S, (str(loop),), float(took_s))


def _sample_shadow(decision: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield what shadow mode tells, zeros while the brain acts."""
    models = (decision.get("shadow") or {}).get("models", {})
    for app, pools in sorted(decision.get("targets", {}).items()):
        told = models.get(app, {})
        for pool in sorted(pools):
            replicas = told.get("pools", {}).get(pool, {}).get("replicas", 0)
            yield Sample(m.SHADOW_REPLICAS, (app, pool), replicas)
        yield Sample(m.SHADOW_USD, (app,), told.get("usd", 0.0))
        yield Sample(m.SHADOW_LATE, (app, "real"), told.get("late", 0))
        yield Sample(m.SHADOW_LATE, (app, "shadow"), told.get("late_then", 0))


def _sample_pools(
    signals: Sequence[GatewaySignals], planned: Mapping[str, Mapping[str, int]]
) -> Iterator[Sample]:
    """Yield demand and capacity: gateways share the replicas and have streams of their own."""
    waiting: Counter[tuple[str, str]] = Counter()
    may_burst: Counter[str] = Counter()
    pools: dict[tuple[str, str], list[PoolSignal]] = {}
    for model in (model for report in signals for model in report.models):
        waiting[(model.app, "public")] += model.waiting_public
        waiting[(model.app, "internal")] += model.waiting_internal
        waiting[(model.app, "restricted")] += model.waiting_restricted
        may_burst[model.app] += model.waiting_may_burst
        for pool in model.pools:
            pools.setdefault((model.app, pool.pool), []).append(pool)
    for labels, count in sorted(waiting.items()):
        yield Sample(m.WAITING, labels, count)
    for app, count in sorted(may_burst.items()):
        yield Sample(m.WAITING_MAY_BURST, (app,), count)
    for (app, name), seen in sorted(pools.items()):
        of_pool = (app, name, seen[0].site, seen[0].market)
        running = max(pool.replicas_running for pool in seen)
        yield Sample(m.POOL_REPLICAS, (*of_pool, "running"), running)
        yield Sample(
            m.POOL_REPLICAS, (*of_pool, "planned"), planned.get(app, {}).get(name, running)
        )
        yield Sample(m.POOL_SLOTS, of_pool, running * seen[0].slots_per_replica)
        yield Sample(m.POOL_STREAMS, of_pool, sum(pool.streams_running for pool in seen))
