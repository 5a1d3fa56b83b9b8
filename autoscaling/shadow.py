"""Shadow mode: the brain decides as always, and nothing is asked of sites that aren't owned.

What would have happened is followed instead. A virtual replica is ready a cold start after it was
asked for, takes waiting requests that may leave, and costs its price until it is let go. The brain
is shown the world as its commands would have made it, so that it doesn't ask for ever more, and
what would raise a pool that isn't owned is kept from being carried out. Lost spot nodes, sold-out
offerings and limits of money aren't played: those are met by a launch only.

Pure; memory is a value in and a value out. `autoscaling.shadow_view` puts it into words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoscaling.burst import find_cold_start_s
from autoscaling.replicas import decide_replicas
from autoscaling.shadow_counts import Counted, add_up, count, find_new
from autoscaling.shadow_queue import Look, Queue, advance_queue
from autoscaling.snapshot import BurstPolicy, Decision, ModelView, PoolView, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory
from deployments.signals import GatewaySignals, ModelSignal, Targets

_S_PER_HOUR = 3600.0
# After a longer silence nobody knows how the queue was meanwhile; money is counted all the same.
_GAP_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class VirtualReplica:
    """One that would be there: when it was asked for and when it could answer, wall time."""

    asked_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class VirtualPool:
    """A pool's virtual replicas, oldest first, and how many requests they would be answering.

    `usd_per_hour` is one replica's price, `usd` what all that it ever had would have cost so far.
    """

    replicas: tuple[VirtualReplica, ...] = ()
    streams: float = 0.0
    usd_per_hour: float = 0.0
    usd: float = 0.0

    @property
    def usd_per_hour_now(self) -> float:
        """What its replicas would cost an hour."""
        return len(self.replicas) * self.usd_per_hour

    def count_ready(self, now_s: float) -> int:
        """Return how many could answer by now."""
        return sum(replica.ready_s <= now_s for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class ShadowModel:
    """What is followed of one model since `since_s`, wall time, up to `looked_s`.

    `total` is what gateways counted in that time, `seen` their last words. `real` is the queue as
    it was, `virtual` as it would have been; of both, `..._may_burst` is the part that may leave.
    """

    since_s: float
    looked_s: float
    pools: Mapping[str, VirtualPool] = field(default_factory=dict)
    seen: Mapping[str, Counted] = field(default_factory=dict)
    total: Counted = field(default_factory=Counted)
    real: Queue = field(default_factory=Queue)
    virtual: Queue = field(default_factory=Queue)
    real_may_burst: float = 0.0
    virtual_may_burst: float = 0.0


Shadow = Mapping[str, ShadowModel]
"""What is followed, by application."""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A decision in shadow mode: the part of it that is carried out, and what is followed."""

    carried: Decision
    shadow: Shadow


@dataclass(frozen=True, slots=True)
class Seen:
    """What shadow mode looks at besides the snapshot: gateways' signals, what Serve was told."""

    signals: Sequence[GatewaySignals] = ()
    requested: Targets | None = None


def decide_in_shadow(
    shadow: Shadow, seen: Seen, snapshot: Snapshot, policy: BurstPolicy
) -> tuple[Decision, Shadowed]:
    """Return the brain's decision as if all before had been carried out, and what comes of it."""
    followed = follow(shadow, seen.signals, snapshot, policy)
    decision = decide_replicas(imagine(snapshot, followed), policy)
    carried = hold_back(decision, snapshot, seen.requested)
    return decision, Shadowed(carried, plan(followed, decision, carried, snapshot, policy))


def follow(
    shadow: Shadow, signals: Sequence[GatewaySignals], snapshot: Snapshot, policy: BurstPolicy
) -> dict[str, ShadowModel]:
    """Return the shadow after a look: money spent, requests taken, both queues."""
    now_s = snapshot.now_s
    fresh = [one for one in signals if abs(now_s - one.published_s) <= policy.signals_stale_s]
    found: dict[str, ShadowModel] = {}
    for model in snapshot.models:
        before = shadow.get(model.app) or ShadowModel(since_s=now_s, looked_s=now_s)
        if model.doubt is not None:
            found[model.app] = _pay(before, now_s)
            continue
        parts = {one.gateway: m for one in fresh for m in one.models if m.app == model.app}
        found[model.app] = _follow_model(before, model, parts, now_s=now_s)
    return found


def imagine(snapshot: Snapshot, shadow: Shadow) -> Snapshot:
    """Return the snapshot as it would be had the brain's commands been carried out."""
    models = [
        _imagine_model(model, shadow[model.app], snapshot.now_s) if model.doubt is None else model
        for model in snapshot.models
    ]
    return replace(snapshot, models=tuple(models))


def hold_back(decision: Decision, snapshot: Snapshot, requested: Targets | None) -> Decision:
    """Return the part of a decision that is carried out, its memory as the real world has it.

    Owned pools: all of it. Others may be lowered below what was really requested, never raised.
    Where the signals are in doubt, what was requested stays.
    """
    views = {(model.app, pool.name): pool for model in snapshot.models for pool in model.pools}
    told = requested.replicas if requested is not None else {}
    memory: dict[str, ModelMemory] = {}
    for app, known in decision.memory.items():
        pools: dict[str, PoolMemory] = {}
        for name, pool in known.pools.items():
            view, held = views.get((app, name)), told.get(app, {}).get(name)
            if view is not None and view.is_owned:
                pools[name] = pool
            elif view is not None:
                pools[name] = _bind(pool, planned=min(pool.planned, held or 0), view=view)
            elif held is not None:
                pools[name] = _bind(pool, planned=held, view=None)
        memory[app] = replace(known, pools=pools)
    return replace(decision, memory=memory)


def plan(
    shadow: Shadow, decision: Decision, carried: Decision, snapshot: Snapshot, policy: BurstPolicy
) -> dict[str, ShadowModel]:
    """Return the shadow with the replicas that were decided and not asked for."""
    found = dict(shadow)
    for model in snapshot.models:
        if model.doubt is not None:
            continue
        before, now_s = shadow[model.app], snapshot.now_s
        pools = {name: replace(pool, replicas=()) for name, pool in before.pools.items()}
        for view in model.pools:
            asked, real = (one.targets[model.app][view.name] for one in (decision, carried))
            known = before.pools.get(view.name, VirtualPool())
            if asked > real or known.replicas:
                new = VirtualReplica(now_s, now_s + find_cold_start_s(view, policy))
                pools[view.name] = _resize(known, view, new, replicas=asked - real)
        found[model.app] = replace(before, pools=pools)
    return found


def _resize(
    pool: VirtualPool, view: PoolView, new: VirtualReplica, *, replicas: int
) -> VirtualPool:
    """Return the pool with so many replicas; those asked for last go first."""
    more = [new] * (replicas - len(pool.replicas))
    # A pool that no node type can hold has no price, and is never decided for.
    usd_per_hour = float(view.usd_per_hour) if view.usd_per_hour.is_finite() else 0.0
    return replace(pool, replicas=(*pool.replicas, *more)[:replicas], usd_per_hour=usd_per_hour)


def _follow_model(
    before: ShadowModel, model: ModelView, parts: Mapping[str, ModelSignal], *, now_s: float
) -> ShadowModel:
    seen = {gateway: count(part) for gateway, part in parts.items()}
    new = add_up(find_new(before.seen.get(gateway), now) for gateway, now in seen.items())
    total = add_up((before.total, new))
    after = replace(_pay(before, now_s), seen=seen, total=total)
    gap_s, may_burst = now_s - before.looked_s, float(model.waiting_may_burst)
    if not 0 <= gap_s <= _GAP_S_MAX:
        return replace(
            after,
            real=replace(after.real, cohorts=()),
            virtual=replace(after.virtual, cohorts=()),
            real_may_burst=may_burst,
            virtual_may_burst=may_burst,
        )
    # What was refused left the real queue without being served.
    change = may_burst - before.real_may_burst + new.refused_may_burst
    asking = max(0.0, before.virtual_may_burst + change)
    pools, taken = _take(after, model, asking, gap_s=gap_s)
    left = min(asking - taken, may_burst)
    look = Look(
        now_s=now_s,
        since_s=before.looked_s,
        arrived=new.arrived,
        wait_s_max=max(0.0, model.ttft_s_max - total.own_ttft_s),
    )
    return replace(
        after,
        pools=pools,
        real=advance_queue(after.real, look, waiting=model.waiting),
        virtual=advance_queue(after.virtual, look, waiting=model.waiting - may_burst + left),
        real_may_burst=may_burst,
        virtual_may_burst=left,
    )


def _pay(model: ShadowModel, now_s: float) -> ShadowModel:
    """Return the model at a later look, with what its virtual replicas have cost since."""
    hours = max(0.0, now_s - model.looked_s) / _S_PER_HOUR
    pools = {
        name: replace(pool, usd=pool.usd + pool.usd_per_hour_now * hours)
        for name, pool in model.pools.items()
    }
    return replace(model, pools=pools, looked_s=now_s)


def _take(
    shadow: ShadowModel, model: ModelView, asking: float, *, gap_s: float
) -> tuple[dict[str, VirtualPool], float]:
    """Return the pools with the requests they would have begun since the last look, and how many.

    A pool of unknown speed is as fast a slot as the slowest known; none known: it takes nothing.
    """
    pools, taken = dict(shadow.pools), 0.0
    for view in sorted(model.pools, key=lambda view: view.order):
        pool, hold_s = pools.get(view.name), _find_hold_s(view, model)
        if pool is None or hold_s is None:
            continue
        now_s = shadow.looked_s
        ready_for_s = [now_s - one.ready_s for one in pool.replicas if one.ready_s <= now_s]
        slots = len(ready_for_s) * view.slots
        # Slots held for less than the time between two looks are taken several times in it.
        turns = sum(max(1.0, min(gap_s, for_s) / hold_s) for for_s in ready_for_s)
        streams = min(pool.streams, slots) * max(0.0, 1 - gap_s / hold_s)
        begun = max(0.0, min(turns * view.slots - streams, asking - taken))
        streams += begun * min(1.0, hold_s / gap_s) if gap_s > 0 else begun
        pools[view.name] = replace(pool, streams=min(streams, slots))
        taken += begun
    return pools, taken


def _find_hold_s(view: PoolView, model: ModelView) -> float | None:
    """Return how long a full replica holds a slot, None while nothing tells."""
    if view.rps:
        return view.slots / view.rps
    return max((pool.slots / pool.rps for pool in model.pools if pool.rps), default=None)


def _imagine_model(model: ModelView, shadow: ShadowModel, now_s: float) -> ModelView:
    left = min(model.waiting_may_burst, round(shadow.virtual_may_burst))
    pools = []
    for view in model.pools:
        pool = shadow.pools.get(view.name, VirtualPool())
        observed = view.observed + pool.count_ready(now_s)
        pools.append(replace(view, observed=observed, streams=view.streams + round(pool.streams)))
    waiting = model.waiting - model.waiting_may_burst + left
    return replace(model, pools=tuple(pools), waiting=waiting, waiting_may_burst=left)


def _bind(pool: PoolMemory, *, planned: int, view: PoolView | None) -> PoolMemory:
    """Return a pool's memory with what is really asked for and there."""
    observed = 0 if view is None else view.observed
    closing_since_s = pool.closing_since_s if observed else None
    return replace(pool, planned=planned, observed=observed, closing_since_s=closing_since_s)
