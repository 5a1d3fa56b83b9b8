"""The split of owned GPUs as the brain uses it: tighter bounds of owned pools, before any decision.

Each model is decided alone, so what one may take of hardware they share is settled first, for all
(`autoscaling.owned_split`). Without owned nodes in the snapshot, pools keep their own bounds. While
a model's signals are in doubt, what it holds isn't known: then no owned pool grows. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from autoscaling.break_even import find_capacity
from autoscaling.history import BIN_S, DemandHistory
from autoscaling.owned_claims import ModelDemand, OwnedPool, SplitRules
from autoscaling.owned_split import Share, split_owned
from autoscaling.snapshot import BurstPolicy, ModelView, PoolView, Reason, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory, has_lasted, keep_since

_RULES = SplitRules()
# What arrives is averaged over a minute, and what waits is to be worked off in one.
_WINDOW_BINS = 6
_WINDOW_S = _WINDOW_BINS * BIN_S
# A replica whose node has room is on it after two rounds of Serve and of the scheduler.
_PLACING_S = 10.0
# An engine's start on a node that is there, before any was seen: weights from a local disk.
_START_S = 120.0


def bound_owned_pools(
    snapshot: Snapshot, policy: BurstPolicy
) -> tuple[Snapshot, tuple[Reason, ...]]:
    """Return the snapshot with owned pools bound to their shares, and what there is to say."""
    if not snapshot.owned_nodes:
        return snapshot, ()
    doubted = sorted(model.app for model in snapshot.models if model.doubt is not None)
    if doubted:
        return _hold(snapshot), (
            Reason("split", doubted[0], "owned pools keep their GPUs while it is in doubt"),
        )
    demands = [_describe(model, snapshot, policy) for model in snapshot.models]
    split = split_owned(demands, snapshot.owned_nodes, now_s=snapshot.now_s, rules=_RULES)
    models: list[ModelView] = []
    memory = dict(snapshot.memory)
    for model in snapshot.models:
        shares = {
            pool.name: _close_first(split.shares[model.app, pool.name], model, pool, snapshot)
            for pool in model.pools
            if (model.app, pool.name) in split.shares
        }
        pools = tuple(_bind(pool, shares.get(pool.name), policy, snapshot) for pool in model.pools)
        models.append(replace(model, pools=pools))
        if model.app in memory:
            memory[model.app] = _remember(memory[model.app], shares)
    reasons = [
        Reason("split", f"{app}/{name}", share.why)
        for (app, name), share in sorted(split.shares.items())
        if share.why
    ]
    return replace(snapshot, models=tuple(models), memory=memory), tuple(reasons)


def _close_first(share: Share, model: ModelView, pool: PoolView, snapshot: Snapshot) -> Share:
    """Return the share with since when gateways are told that the last replica goes."""
    known = _known(snapshot, model, pool)
    closes = share.replicas_max == 0 and known.planned > 0
    since_s = keep_since(known.share.closing_since_s, now_s=snapshot.now_s, is_so=closes)
    return replace(share, memory=replace(share.memory, closing_since_s=since_s))


def _bind(pool: PoolView, share: Share | None, policy: BurstPolicy, snapshot: Snapshot) -> PoolView:
    """Return the pool with its share as bounds; one replica stays until routing has stopped."""
    if share is None:
        return pool
    since_s, now_s = share.memory.closing_since_s, snapshot.now_s
    is_closing = since_s is not None
    is_open = is_closing and not has_lasted(since_s, now_s=now_s, needed_s=policy.route_stop_s)
    return replace(
        pool,
        replicas_min=share.replicas_min,
        replicas_max=max(share.replicas_max, int(is_open)),
    )


def _hold(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with owned pools that can shrink and not grow."""
    models = []
    for model in snapshot.models:
        pools = []
        for pool in model.pools:
            known = _known(snapshot, model, pool)
            most = max(pool.replicas_min, min(pool.replicas_max, known.planned))
            pools.append(replace(pool, replicas_max=most) if pool.is_owned else pool)
        models.append(replace(model, pools=tuple(pools)))
    return replace(snapshot, models=tuple(models))


def _known(snapshot: Snapshot, model: ModelView, pool: PoolView) -> PoolMemory:
    memory = snapshot.memory.get(model.app, ModelMemory())
    planned = pool.requested if pool.requested is not None else pool.observed
    return memory.pools.get(pool.name, PoolMemory(planned))


def _remember(memory: ModelMemory, shares: Mapping[str, Share]) -> ModelMemory:
    pools = {
        name: replace(pool, share=shares[name].memory) if name in shares else pool
        for name, pool in memory.pools.items()
    }
    return replace(memory, pools=pools)


def _describe(model: ModelView, snapshot: Snapshot, policy: BurstPolicy) -> ModelDemand:
    """Return a model's demand with the room that keeps waits short, and its owned pools."""
    history = model.learned.history
    leaves = _mean_rps(history.may_burst) + model.waiting_may_burst / _WINDOW_S
    stays = _mean_rps(_subtract(history)) + (model.waiting - model.waiting_may_burst) / _WINDOW_S
    stays_with_room, asked_rps = (
        find_capacity(rps, ttft_s_max=model.ttft_s_max, variation=model.variation)
        for rps in (stays, stays + leaves)
    )
    return ModelDemand(
        app=model.app,
        must_stay_rps=stays_with_room,
        may_leave_rps=max(0.0, asked_rps - stays_with_room),
        usd_per_late_request=model.usd_per_late_request,
        usd_per_cloud_request=_find_cloud_price(model),
        pools=tuple(
            _describe_pool(model, pool, snapshot, policy, asked_rps)
            for pool in model.pools
            if pool.is_owned
        ),
    )


def _describe_pool(
    model: ModelView, pool: PoolView, snapshot: Snapshot, policy: BurstPolicy, asked_rps: float
) -> OwnedPool:
    known, now_s = _known(snapshot, model, pool), snapshot.now_s
    is_overdue = has_lasted(known.starting_since_s, now_s=now_s, needed_s=policy.starting_s_max)
    is_placed = has_lasted(known.starting_since_s, now_s=now_s, needed_s=_PLACING_S)
    return OwnedPool(
        app=model.app,
        name=pool.name,
        site=pool.site,
        accelerator=pool.accelerator,
        gpus_per_replica=pool.gpus_per_replica,
        replicas_min=pool.replicas_min,
        replicas_max=pool.replicas_max,
        rps=pool.rps if pool.rps is not None else _guess_rps(model, pool, asked_rps),
        planned=known.planned,
        running=pool.observed,
        awaits_node=not is_overdue and (pool.blocked is not None or not is_placed),
        start_s=pool.cold_start_s if pool.cold_start_s is not None else _START_S,
        memory=known.share,
    )


def _guess_rps(model: ModelView, pool: PoolView, asked_rps: float) -> float | None:
    """Return what a replica of unknown speed carries: its slots' part of what there is to do."""
    busy = model.waiting + sum(other.streams for other in model.pools)
    return asked_rps * pool.slots / busy if busy and asked_rps > 0 else None


def _find_cloud_price(model: ModelView) -> float | None:
    """Return what a request costs where it is cheapest elsewhere, None if it can't go."""
    prices = [
        float(pool.usd_per_hour) / 3600 / pool.rps
        for pool in model.pools
        if not pool.is_owned and pool.rps and pool.usd_per_hour < Decimal("Infinity")
    ]
    return min(prices, default=None)


def _subtract(history: DemandHistory) -> list[int]:
    return [every - leaving for every, leaving in zip(history.all, history.may_burst, strict=True)]


def _mean_rps(bins: Sequence[int]) -> float:
    recent = bins[-_WINDOW_BINS:]
    return sum(recent) / (len(recent) * BIN_S) if recent else 0.0
