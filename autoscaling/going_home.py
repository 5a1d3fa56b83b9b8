"""Going home: which pool is lowered, when, and in which steps.

The dearest pool with a replica that is neither leased nor needed goes first, owned pools last. A
rented replica is needed while it spares more than it costs; where speeds aren't known, while the
pools before it have no room. Pure; `autoscaling.replicas` calls it when nothing is to be raised.
"""

from dataclasses import replace

from autoscaling.burst import Burst, say_not_worth
from autoscaling.replica_case import Case, Outcome, count_slots, is_kv_full
from autoscaling.snapshot import PoolView, SetReplicas, StopRouting
from autoscaling.stability import (
    PoolMemory,
    count_leased,
    has_lasted,
    keep_since,
    lease_left_s,
    lower_pool,
)


def lower(case: Case) -> Outcome:
    """Return the lowering that is due for the dearest pool that may go, else a hold."""
    above = [p for p in case.order if case.known(p).planned > p.replicas_min]
    chosen = next((p for p in reversed(above) if _may_go(case, p)), above[-1] if above else None)
    for pool in case.order:
        if pool is not chosen:
            case = case.remember(pool, _reset_slack(case.known(pool)))
    if chosen is None:
        return _hold(case, _say_at_minimum(case))
    return _lower_pool(case, chosen)


def _may_go(case: Case, pool: PoolView) -> bool:
    """Whether a rented pool has a replica that is neither leased nor needed."""
    if pool.is_owned or case.burst is None or _find_lower_plan(case, pool) is None:
        return False
    known = case.known(pool)
    leased = count_leased(known, now_s=case.now_s, min_lease_s=case.policy.min_lease_s)
    return leased < known.planned


def _lower_pool(case: Case, pool: PoolView) -> Outcome:
    wanted = _find_lower_plan(case, pool)
    known = case.known(pool)
    if wanted is None:
        case = case.remember(pool, _reset_slack(known))
        return _hold(case, f"{pool.name} is needed: {_say_needed(case, pool)}")
    known = replace(
        known, slack_since_s=keep_since(known.slack_since_s, now_s=case.now_s, is_so=True)
    )
    case = case.remember(pool, known)
    min_lease_s = case.policy.min_lease_s
    leased = count_leased(known, now_s=case.now_s, min_lease_s=min_lease_s)
    if leased >= known.planned:
        lease_s = lease_left_s(known, now_s=case.now_s, min_lease_s=min_lease_s)
        return _hold(case, f"{pool.name} could do with {wanted}; its lease runs {lease_s:.0f} s")
    wanted = max(wanted, leased)
    if not has_lasted(known.slack_since_s, now_s=case.now_s, needed_s=case.policy.down_after_s):
        after_s = case.policy.down_after_s
        return _hold(case, f"{pool.name} could do with {wanted}; that must last {after_s:g} s")
    if case.burst is not None and _is_in_use(case, pool, wanted):
        return _hold(case, f"{pool.name} could do with {wanted}; it is in use at this moment")
    return _carry_lowering(case, pool, wanted)


def _is_in_use(case: Case, pool: PoolView, wanted: int) -> bool:
    """Whether a rented pool carries now what neither owned slots nor fewer replicas could."""
    if pool.is_owned or case.model.waiting_may_burst > 0:
        return not pool.is_owned
    has_room = any(other.streams < other.observed * other.slots for other in case.side(owned=True))
    return not has_room and pool.streams > wanted * pool.slots


def _carry_lowering(case: Case, pool: PoolView, wanted: int) -> Outcome:
    """Return the next step home: stop routing before zero, then the lower number."""
    known, app, policy = case.known(pool), case.model.app, case.policy
    if wanted == 0 and known.closing_since_s is None:
        case = case.remember(pool, replace(known, closing_since_s=case.now_s))
        text = f"routing stops before it goes to zero: {_say_spare(case, pool)}"
        return Outcome(
            case.memory, (StopRouting(app, pool.name),), (case.reason("close", text, pool),)
        )
    if wanted == 0 and not has_lasted(
        known.closing_since_s, now_s=case.now_s, needed_s=policy.route_stop_s
    ):
        return _hold(case, f"{pool.name} goes to zero once routing has stopped")
    command = SetReplicas(app, pool.name, known.planned, wanted)
    text = f"{known.planned} to {wanted} replicas: {_say_spare(case, pool)}"
    case = case.remember(pool, lower_pool(known, planned=wanted))
    return Outcome(case.memory, (command,), (case.reason("lower", text, pool),))


def _say_spare(case: Case, pool: PoolView) -> str:
    if case.burst is not None and not pool.is_owned:
        return f"it has cost more than it spared for {case.policy.down_after_s:g} s"
    if _is_idle(case, pool):
        return f"it is idle and has not been needed for {case.policy.down_after_s:g} s"
    return f"the pools before it have had room for {case.policy.down_after_s:g} s"


def _find_lower_plan(case: Case, pool: PoolView) -> int | None:
    """Return the number the pool could be lowered to, None if it is needed as it is.

    Requests go to the pools before it first, so free slots there show that it isn't needed. Streams
    it still carries stay with it until they end. A pool that isn't owned is needed only for what
    may come to it: idle, it goes home however full the owned pools are.
    """
    if case.burst is not None and not pool.is_owned:
        kept = case.known(pool).planned - _count_idle(case, case.burst, pool)
        return kept if kept < case.known(pool).planned else None
    if _is_idle(case, pool):
        return pool.replicas_min
    before = [other for other in case.order if other.order < pool.order]
    waiting = case.model.waiting if pool.is_owned else case.model.waiting_may_burst
    load = waiting + sum(other.streams for other in before)
    capacity = sum(count_slots(case, other) for other in before)
    ratio_max = case.policy.slack_ratio_max
    is_spare = load <= capacity * ratio_max if before else load + pool.streams == 0
    if is_spare:
        return pool.replicas_min
    fewer = case.known(pool).planned - 1
    capacity += 0 if is_kv_full(case, pool) else min(fewer, pool.observed) * pool.slots
    return fewer if load + pool.streams <= capacity * ratio_max else None


def _count_idle(case: Case, burst: Burst, pool: PoolView) -> int:
    """Return how many of a rented pool's replicas aren't worth keeping, down to its minimum."""
    counted = next(one.replicas for one in burst.rented if one.pool.name == pool.name)
    spare = counted - burst.count_needed(pool.name)
    return max(0, min(spare, case.known(pool).planned - pool.replicas_min))


def _is_idle(case: Case, pool: PoolView) -> bool:
    """Whether a pool that isn't owned costs money for nothing: no stream, and none waits for it."""
    return not pool.is_owned and pool.streams == 0 and case.model.waiting_may_burst == 0


def _say_at_minimum(case: Case) -> str:
    best = case.burst.find_best() if case.burst is not None else None
    if best is None or best.spared < 1:
        return "every pool is at its minimum"
    return say_not_worth(best)


def _say_needed(case: Case, pool: PoolView) -> str:
    if case.burst is None or pool.is_owned:
        return "the pools before it are filled"
    return "without it more would be late than it costs"


def _reset_slack(memory: PoolMemory) -> PoolMemory:
    return replace(memory, slack_since_s=None, closing_since_s=None)


def _hold(case: Case, why: str) -> Outcome:
    streams = sum(pool.streams for pool in case.model.pools)
    text = f"held with {streams} streams and {case.model.waiting} waiting: {why}"
    return Outcome(case.memory, reasons=(case.reason("hold", text),))
