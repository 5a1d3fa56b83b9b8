"""From what gateways report to what the brain may know.

Sums the reports of all gateways, prices the pools and marks what can't be trusted: a model whose
signals are absent, stale or absurd is passed on with a doubt, never with invented numbers. Pure;
next: `autoscaling.replicas`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from operator import attrgetter

from autoscaling.guard import Offer
from autoscaling.learning import Learned, estimate_rps, estimate_variation, learn
from autoscaling.owned_places import Key, OwnedNode
from autoscaling.snapshot import BurstPolicy, ModelView, PoolView, Snapshot
from autoscaling.stability import ModelMemory
from autoscaling.wan import price_answer_usd
from cluster.model import LABEL_ACCELERATOR, Market
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served, Targets

_MARKETS: tuple[Market, ...] = ("owned", "reserved", "spot", "on_demand")
_COUNT_MAX = 1_000_000
# A thousand requests a second for thirty years: no counter of a gateway comes near it.
_COUNTER_MAX = 1e15
_MODEL_COUNTERS = ("arrived", "arrived_may_burst", "late", "refused_may_burst")
# Squares have bounds of their own: those that their sums give them.
_SQUARES = ("read_tokens_squared", "output_tokens_squared")
_SERVED_COUNTERS = tuple(one.name for one in fields(Served) if one.name not in _SQUARES)
_read_model_counters = attrgetter(*_MODEL_COUNTERS)
_read_served_counters = attrgetter(*_SERVED_COUNTERS)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the blackboard and the scheduler say, before it is judged.

    `blocked_sites` says, by site, why the scheduler can give it no node now. `cold_starts_s` is the
    learned time from asking for a node to its first answer, and `losses_per_hour` how often a node
    is taken away, both by node type; types without a figure of their own are absent. `away` names,
    by app and pool, who has the GPU of each engine that should wake and can't.
    """

    signals: Sequence[GatewaySignals] = ()
    requested: Targets | None = None
    offers: Sequence[Offer] = ()
    blocked_sites: Mapping[str, str] = field(default_factory=dict)
    cold_starts_s: Mapping[str, float] = field(default_factory=dict)
    losses_per_hour: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, ModelMemory] = field(default_factory=dict)
    owned_nodes: tuple[OwnedNode, ...] = ()
    away: Mapping[Key, Sequence[str]] = field(default_factory=dict)


def build_snapshot(observed: Observed, *, now_s: float, policy: BurstPolicy) -> Snapshot:
    """Return the snapshot for the brain; stale signals count as unknown."""
    stale_s = policy.signals_stale_s
    fresh = [signals for signals in observed.signals if abs(now_s - signals.published_s) <= stale_s]
    by_app: dict[str, list[ModelSignal]] = {}
    for signals in fresh:
        for model in signals.models:
            by_app.setdefault(model.app, []).append(model)
    models = []
    for app, parts in sorted(by_app.items()):
        before = observed.memory.get(app, ModelMemory()).learned
        learned = learn(before, fresh, app, now_s=now_s, keep_s=policy.history_s)
        models.append(_Look(app, parts, observed, learned, policy).view_model())
    if not fresh:
        # Nobody speaks: every model known stays as it is. A model that fresh signals no longer
        # list is removed, and its numbers with it.
        doubt = _explain_silence(observed.signals, now_s=now_s)
        models = [ModelView(app=app, pools=(), doubt=doubt) for app in sorted(observed.memory)]
    return Snapshot(
        now_s=now_s,
        models=tuple(models),
        memory=observed.memory,
        owned_nodes=observed.owned_nodes,
    )


def find_absurdity(model: ModelSignal) -> str | None:
    """Return what can't be true in one gateway's report of a model, None if it can."""
    waiting = (model.waiting_public, model.waiting_internal, model.waiting_restricted)
    counts = [*waiting, model.waiting_may_burst]
    for pool in model.pools:
        counts += [pool.replicas_running, pool.streams_running, pool.slots_per_replica]
        if pool.kv_use_ratio is not None and not 0 <= pool.kv_use_ratio <= 1:
            return f"kv_use_ratio of {pool.pool} is {pool.kv_use_ratio:g}, which isn't within 0..1"
        if pool.owned != (pool.market == "owned") or pool.market not in _MARKETS:
            return f"{pool.pool} is owned={pool.owned} with market {pool.market!r}"
        if not 0 <= pool.min_replicas <= pool.max_replicas or pool.slots_per_replica < 1:
            bounds = f"{pool.min_replicas}..{pool.max_replicas}"
            return f"{pool.pool} has bounds {bounds} and {pool.slots_per_replica} slots"
    if any(not 0 <= count <= _COUNT_MAX for count in counts):
        return f"a count is negative or above {_COUNT_MAX}"
    if model.waiting_may_burst > sum(waiting):
        return f"{model.waiting_may_burst} of {sum(waiting)} waiting requests may burst"
    return _find_absurd_counter(model) or _find_absurd_objective(model)


def _find_absurd_counter(model: ModelSignal) -> str | None:
    if model.arrived_may_burst > model.arrived:
        return f"{model.arrived_may_burst} of {model.arrived} requests that arrived may burst"
    found = _find_absurd_number("the model", _MODEL_COUNTERS, _read_model_counters(model))
    for pool in model.pools:
        served = pool.served
        if served.cached_tokens > served.prompt_tokens:
            return (
                f"{served.cached_tokens} of {served.prompt_tokens} prompt tokens of {pool.pool} "
                "were cached"
            )
        counters = _read_served_counters(served)
        found = found or _find_absurd_number(pool.pool, _SERVED_COUNTERS, counters)
        found = found or _find_absurd_square(pool.pool, served)
    return found


def _find_absurd_number(
    subject: str, names: Sequence[str], counters: Sequence[float]
) -> str | None:
    # The usual case, cheaply: this is asked at every tick. A NaN makes the sum one, which fails.
    if min(counters) >= 0 and sum(counters) <= _COUNTER_MAX:
        return None
    for name, counter in zip(names, counters, strict=True):
        if not 0 <= counter <= _COUNTER_MAX:
            return f"{name} of {subject} is {counter:g}, which isn't within 0..{_COUNTER_MAX:g}"
    return None


def _find_absurd_square(subject: str, served: Served) -> str | None:
    """Return which sum of squares no numbers of this count and sum have, None if some have it.

    Of n numbers that aren't negative: sum^2 / n <= sum of squares (Cauchy-Schwarz) <= sum^2. None
    counted is what an older gateway reports.
    """
    sums = (served.prompt_tokens - served.cached_tokens, served.output_tokens)
    squares = (served.read_tokens_squared, served.output_tokens_squared)
    for name, total, square in zip(_SQUARES, sums, squares, strict=True):
        can_be = total * total <= square * served.requests and square <= total * total
        if square != 0 and not can_be:
            return (
                f"{name} of {subject} is {square}, which isn't that of {served.requests} requests "
                f"with {total} tokens"
            )
    return None


def _find_absurd_objective(model: ModelSignal) -> str | None:
    promised_s = {"ttft_s_max": model.ttft_s_max, "tpot_s_max": model.tpot_s_max}
    for name, limit_s in promised_s.items():
        if not 0 < limit_s < math.inf:
            return f"{name} is {limit_s:g}, which isn't a time"
    if not 0 <= model.attainment_min <= 1:
        return f"attainment_min is {model.attainment_min:g}, which isn't within 0..1"
    if not 0 <= model.usd_per_late_request < math.inf:
        return f"usd_per_late_request is {model.usd_per_late_request:g}, which isn't a price"
    return None


def find_price(pool: PoolSignal, offers: Iterable[Offer]) -> Decimal:
    """Return the cheapest price of one replica; infinite where no node type can hold one."""
    offer = find_offer(pool, offers)
    return Decimal("Infinity") if offer is None else _price(pool, offer)


def find_offer(pool: PoolSignal, offers: Iterable[Offer]) -> Offer | None:
    """Return the node type that holds a replica for the least, None where none can or is priced."""
    fitting = [
        offer
        for offer in offers
        if offer.usd_per_hour is not None
        and (offer.site, offer.market) == (pool.site, pool.market)
        and offer.resources.get("GPU", 0) >= pool.gpus_per_replica
        and offer.labels.get(LABEL_ACCELERATOR, pool.accelerator) == pool.accelerator
    ]
    return min(fitting, key=lambda offer: (_price(pool, offer), offer.name), default=None)


def _price(pool: PoolSignal, offer: Offer) -> Decimal:
    usd_per_hour = offer.usd_per_hour or Decimal(0)
    if not pool.gpus_per_replica:
        return usd_per_hour
    return usd_per_hour * pool.gpus_per_replica / int(offer.resources.get("GPU", 0))


@dataclass(frozen=True, slots=True)
class _Look:
    """One model as all gateways together see it, and what was learned of it so far."""

    app: str
    parts: Sequence[ModelSignal]
    observed: Observed
    learned: Learned
    policy: BurstPolicy

    def view_model(self) -> ModelView:
        """Return the model as the brain sees it."""
        doubts = [doubt for part in self.parts if (doubt := find_absurdity(part)) is not None]
        if doubts:
            return ModelView(app=self.app, pools=(), doubt=f"absurd signals: {doubts[0]}")
        pools: dict[str, list[PoolSignal]] = {}
        for part in self.parts:
            for pool in part.pools:
                pools.setdefault(pool.pool, []).append(pool)
        return ModelView(
            app=self.app,
            pools=tuple(self._view_pool(seen) for _, seen in sorted(pools.items())),
            waiting=sum(
                p.waiting_public + p.waiting_internal + p.waiting_restricted for p in self.parts
            ),
            waiting_may_burst=sum(part.waiting_may_burst for part in self.parts),
            learned=self.learned,
            variation=estimate_variation(
                self.learned,
                [seen[0] for _, seen in sorted(pools.items())],
                tpot_s_max=min(part.tpot_s_max for part in self.parts),
            ),
            ttft_s_max=min(part.ttft_s_max for part in self.parts),
            attainment_min=max(part.attainment_min for part in self.parts),
            usd_per_late_request=max(part.usd_per_late_request for part in self.parts),
        )

    def _view_pool(self, seen: Sequence[PoolSignal]) -> PoolView:
        """Return one pool: gateways share its replicas and have streams of their own."""
        first, observed = seen[0], self.observed
        kv = [pool.kv_use_ratio for pool in seen if pool.kv_use_ratio is not None]
        requested = observed.requested.replicas if observed.requested is not None else {}
        offer = find_offer(first, observed.offers)
        away = observed.away.get((self.app, first.pool), ())
        return PoolView(
            name=first.pool,
            site=first.site,
            market=next(market for market in _MARKETS if market == first.market),
            slots=first.slots_per_replica,
            replicas_min=first.min_replicas,
            replicas_max=first.max_replicas,
            usd_per_hour=find_price(first, observed.offers),
            requested=requested.get(self.app, {}).get(first.pool),
            observed=max(0, max(pool.replicas_running for pool in seen) - len(away)),
            streams=sum(pool.streams_running for pool in seen),
            kv_use_ratio=max(kv) if kv else None,
            blocked=_say_away(away) or observed.blocked_sites.get(first.site),
            rps=estimate_rps(
                self.learned,
                first,
                tpot_s_max=min(part.tpot_s_max for part in self.parts),
                is_corrected="correction" not in self.policy.ablated,
            ),
            cold_start_s=observed.cold_starts_s.get(offer.name) if offer else None,
            losses_per_hour=observed.losses_per_hour.get(offer.name, 0.0) if offer else 0.0,
            round_trip_s=offer.round_trip_s if offer else 0.0,
            usd_per_request=self._price_answer_usd(offer),
            accelerator=first.accelerator,
            # What shares its GPUs in turns (`autoscaling.warm`) has no part in their split.
            gpus_per_replica=first.gpus_per_replica if first.gpu_shares == 1 else 0,
        )

    def _price_answer_usd(self, offer: Offer | None) -> float:
        """Return what the mean answer costs to be sent home; nothing before lengths are known."""
        mean = self.learned.lengths.mean
        if offer is None or mean is None:
            return 0.0
        return price_answer_usd(mean.output_tokens, usd_per_gb=offer.egress_usd_per_gb)


def _say_away(away: Sequence[str]) -> str | None:
    return f"its GPU is with {away[0]}" if away else None


def _explain_silence(signals: Sequence[GatewaySignals], *, now_s: float) -> str:
    if not signals:
        return "no gateway has reported yet"
    age_s = min(abs(now_s - report.published_s) for report in signals)
    return f"no gateway has reported for {age_s:.0f} s"
