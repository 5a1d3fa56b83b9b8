"""The brain: how many replicas each pool should have.

Owned pools are filled first. Other sites are opened only for requests that may go there, only for
what owned capacity, running, on its way or still to be raised, won't take, and only while that pays
(`autoscaling.burst`); the dearest pool is lowered first, down to its minimum. Until speeds are
known, waiting requests without a slot in sight are counted instead. Where signals can't be trusted,
the numbers are held. A pool whose replicas are overdue is asked for no more: one slow start must
not be paid for twice.

Going home (DESIGN decision 4): stop routing, lower the number, the replica drains, the node idles,
Ray releases it. The first two are commands given here, `route_stop_s` apart.

Pure: time, memory and signals come in with the `Snapshot`, memory goes out with the `Decision`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from autoscaling.break_even import Worth, leave_room
from autoscaling.burst import Burst, look_ahead, say_raise
from autoscaling.going_home import lower
from autoscaling.owned_bounds import bound_owned_pools
from autoscaling.replica_case import (
    Case,
    Outcome,
    Shortage,
    can_grow,
    count_growth,
    count_room,
    count_starting,
    is_blocked,
    is_kv_full,
    is_overdue,
    list_capacities,
)
from autoscaling.snapshot import (
    BurstPolicy,
    Command,
    Decision,
    ModelView,
    PoolView,
    Reason,
    SetReplicas,
    Snapshot,
)
from autoscaling.stability import (
    ModelMemory,
    PoolMemory,
    forget_clocks,
    has_lasted,
    keep_since,
    observe_pool,
    raise_pool,
    restart_clocks,
)


def decide_replicas(snapshot: Snapshot, policy: BurstPolicy) -> Decision:
    """Return what each pool of each model should run now."""
    snapshot, shared = bound_owned_pools(snapshot, policy)
    outcomes = {
        model.app: _decide_model(
            model,
            snapshot.memory.get(model.app, ModelMemory()),
            now_s=snapshot.now_s,
            policy=policy,
        )
        for model in sorted(snapshot.models, key=lambda model: model.app)
    }
    return Decision(
        commands=tuple(command for found in outcomes.values() for command in found.commands),
        reasons=(*shared, *(reason for found in outcomes.values() for reason in found.reasons)),
        unmet=tuple(reason for found in outcomes.values() for reason in found.unmet),
        next_check_s=policy.check_s,
        memory={app: found.memory for app, found in outcomes.items()},
    )


def _decide_model(
    model: ModelView, memory: ModelMemory, *, now_s: float, policy: BurstPolicy
) -> Outcome:
    """Raise what is short, else lower what is dearest and idle, else hold; always with a reason."""
    if model.doubt is not None:
        reason = Reason("doubt", model.app, f"all numbers are held: {model.doubt}")
        return Outcome(forget_clocks(memory), reasons=(reason,))
    looked_s = memory.learned.looked_s
    if looked_s is not None and not 0 <= now_s - looked_s <= policy.signals_stale_s:
        memory = restart_clocks(memory, now_s=now_s)
    memory = replace(memory, learned=model.learned)
    case, adopted = _observe(Case(model, memory, now_s, policy))
    case = replace(case, burst=look_ahead(model, list_capacities(case), policy))
    owned = _find_owned_shortage(case)
    burst = _find_burst_shortage(case)
    case = _keep_clocks(case, owned=owned, burst=burst)
    outcome = _raise(case, owned=owned, burst=burst) or lower(case)
    return replace(
        outcome,
        commands=(*adopted.commands, *outcome.commands),
        reasons=(*adopted.reasons, *outcome.reasons),
        unmet=_find_unmet(case, owned=owned, burst=burst),
    )


def _observe(case: Case) -> tuple[Case, Outcome]:
    """Return the case with up-to-date memory, and the corrections that new bounds require."""
    commands: list[Command] = []
    reasons: list[Reason] = []
    pools: dict[str, PoolMemory] = {}
    for pool in case.order:
        before = case.memory.pools.get(pool.name)
        planned_before = before.planned if before is not None else _find_first_plan(pool)
        planned = min(max(planned_before, pool.replicas_min), pool.replicas_max)
        if planned != planned_before:
            bounds = f"{pool.replicas_min} to {pool.replicas_max}"
            commands.append(SetReplicas(case.model.app, pool.name, planned_before, planned))
            text = f"{planned_before} to {planned} replicas: its bounds are {bounds}"
            reasons.append(case.reason("bounds", text, pool))
        known = replace(before or PoolMemory(planned), planned=planned)
        pools[pool.name] = observe_pool(known, observed=pool.observed, now_s=case.now_s)
    has_answered = any(pool.observed > 0 for pool in case.side(owned=True))
    memory = replace(
        case.memory, pools=pools, has_answered=case.memory.has_answered or has_answered
    )
    outcome = Outcome(memory, tuple(commands), tuple(reasons))
    return replace(case, memory=memory), outcome


def _find_first_plan(pool: PoolView) -> int:
    """Return the number to begin with: what was requested, else what runs, never less than min.

    A deploy therefore begins at each pool's minimum, zero where it costs money.
    """
    if pool.requested is not None:
        return pool.requested
    return max(pool.replicas_min, pool.observed)


def _find_owned_shortage(case: Case) -> Shortage:
    """Return what waits beyond the room that owned replicas have or will have when they are up.

    Where speeds are known, what arrives beyond what they can begin counts too, in slots: owned
    replicas cost nothing and may come before anybody waits.
    """
    pools = case.side(owned=True)
    room = sum(count_room(case, pool) for pool in pools)
    waiting = max(0, case.model.waiting - room)
    over_rps = _find_over_rps(case)
    growing = next((pool for pool in pools if count_growth(case, pool)), None)
    if case.burst is None or growing is None or over_rps <= 0:
        return _build_shortage(case, pools, waiting)
    slots = math.ceil(over_rps / case.burst.rps[growing.name] * growing.slots)
    if slots <= waiting:
        return _build_shortage(case, pools, waiting)
    return replace(_build_shortage(case, pools, slots), over_rps=over_rps)


def _find_over_rps(case: Case) -> float:
    """Return how much more arrives than the planned owned replicas begin in time."""
    if case.burst is None:
        return 0.0
    pools = case.side(owned=True)
    planned_rps = sum(case.burst.rps[p.name] * case.known(p).planned for p in pools)
    planned_rps = leave_room(
        planned_rps, ttft_s_max=case.model.ttft_s_max, variation=case.model.variation
    )
    return max(0.0, case.burst.outlook.level_rps - planned_rps)


def _is_at_zero(case: Case) -> bool:
    """Whether nothing runs or will: who waits would never be answered, whatever that costs."""
    return not any(one.replicas + one.more_max * one.pool.is_owned for one in list_capacities(case))


def _find_burst_shortage(case: Case) -> Shortage:
    """Return what may burst and pays, or must: owned capacity is counted off first.

    What may not leave takes owned room first, so it pushes requests that may leave to the cloud,
    and alone creates no demand there.
    """
    owned, others = case.side(owned=True), case.side(owned=False)
    if case.burst is not None:
        worth = tuple(case.burst.choose_more())
        if not worth and case.model.waiting_may_burst > 0 and _is_at_zero(case):
            first = case.burst.find_best()
            worth = () if first is None else (first,)
        return Shortage(case.model.waiting_may_burst, (), calls=bool(worth), worth=worth)
    room = sum(count_room(case, pool) + count_growth(case, pool) for pool in owned)
    must_stay = case.model.waiting - case.model.waiting_may_burst
    left_for_burst = max(0, room - must_stay)
    room_there = sum(count_room(case, pool) for pool in others)
    excess = max(0, case.model.waiting_may_burst - left_for_burst - room_there)
    # A full KV cache takes its pool's room away, and alone rents nothing: what fills it is served.
    return _build_shortage(case, (), excess)


def _build_shortage(case: Case, pools: Sequence[PoolView], excess: int) -> Shortage:
    full_kv = tuple(
        pool.name
        for pool in pools
        if pool.observed > 0 and is_kv_full(case, pool) and not count_starting(case, pool)
    )
    needed = case.policy.waiting_per_replica_up * max(1, case.planned(case.model.pools))
    return Shortage(excess, full_kv, calls=excess >= needed or bool(full_kv))


def _keep_clocks(case: Case, *, owned: Shortage, burst: Shortage) -> Case:
    memory = replace(
        case.memory,
        owned_short_since_s=keep_since(
            case.memory.owned_short_since_s, now_s=case.now_s, is_so=owned.calls
        ),
        burst_short_since_s=keep_since(
            case.memory.burst_short_since_s, now_s=case.now_s, is_so=burst.calls
        ),
    )
    return replace(case, memory=memory)


def _raise(case: Case, *, owned: Shortage, burst: Shortage) -> Outcome | None:
    """Return the raises that are due, None if none is."""
    commands: list[Command] = []
    reasons: list[Reason] = []
    if _is_due(case, case.memory.owned_short_since_s):
        case = _grow(case, case.side(owned=True), owned, commands, reasons)
    if _is_due(case, case.memory.burst_short_since_s) and not _is_first_start(case):
        if case.burst is None:
            case = _grow(case, case.side(owned=False), burst, commands, reasons)
        else:
            filled = _fill_owned(case, commands, reasons)
            case = _rent(filled, case.burst, burst.worth, commands, reasons)
    if not commands:
        return None
    return Outcome(case.memory, tuple(commands), tuple(reasons))


def _is_due(case: Case, since_s: float | None) -> bool:
    return has_lasted(since_s, now_s=case.now_s, needed_s=case.policy.up_after_s)


def _is_first_start(case: Case) -> bool:
    """Whether the model's first owned replica is still to come: a deploy opens no cloud."""
    is_coming = any(count_starting(case, pool) > 0 for pool in case.side(owned=True))
    return is_coming and not case.memory.has_answered


def _grow(
    case: Case,
    pools: Sequence[PoolView],
    shortage: Shortage,
    commands: list[Command],
    reasons: list[Reason],
) -> Case:
    """Return the case with the pools raised, in order, until the shortage is covered."""
    # A full KV cache calls for one replica even when nothing waits yet.
    left = max(shortage.excess, 1)
    for pool in pools:
        known = case.known(pool)
        more = min(pool.replicas_max - known.planned, math.ceil(left / pool.slots))
        if more <= 0 or not can_grow(case, pool):
            continue
        planned = known.planned + more
        commands.append(SetReplicas(case.model.app, pool.name, known.planned, planned))
        text = f"{known.planned} to {planned} replicas: {shortage.text}"
        reasons.append(case.reason("raise", text, pool))
        case = case.remember(pool, raise_pool(known, planned=planned, now_s=case.now_s))
        left -= more * pool.slots
        if left <= 0:
            break
    return case


def _fill_owned(case: Case, commands: list[Command], reasons: list[Reason]) -> Case:
    """Return the case with all owned replicas that can be had: what is rented comes after them."""
    for pool in case.side(owned=True):
        known = case.known(pool)
        if known.planned >= pool.replicas_max or not can_grow(case, pool):
            continue
        commands.append(SetReplicas(case.model.app, pool.name, known.planned, pool.replicas_max))
        text = f"{known.planned} to {pool.replicas_max} replicas: owned before rented"
        reasons.append(case.reason("raise", text, pool))
        filled = raise_pool(known, planned=pool.replicas_max, now_s=case.now_s)
        case = case.remember(pool, filled)
    return case


def _rent(
    case: Case,
    burst: Burst,
    worth: Sequence[Worth],
    commands: list[Command],
    reasons: list[Reason],
) -> Case:
    """Return the case with the replicas that pay."""
    for pool in case.side(owned=False):
        chosen = [one for one in worth if one.offering.pool == pool.name]
        if not chosen:
            continue
        known = case.known(pool)
        planned = known.planned + len(chosen)
        commands.append(SetReplicas(case.model.app, pool.name, known.planned, planned))
        why = say_raise(burst, chosen, waiting=case.model.waiting, now_s=case.now_s)
        text = f"{known.planned} to {planned} replicas: burst +{len(chosen)}: {why}"
        reasons.append(case.reason("raise", text, pool))
        case = case.remember(pool, raise_pool(known, planned=planned, now_s=case.now_s))
    return case


def _say_stuck(case: Case, pool: PoolView) -> str:
    if is_blocked(case, pool):
        return f"waits for nodes: {pool.blocked}"
    return "waits for overdue replicas" if is_overdue(case, pool) else "is at its maximum"


def _find_unmet(case: Case, *, owned: Shortage, burst: Shortage) -> tuple[Reason, ...]:
    """Return what is wanted and can't be had, whatever this tick does."""
    unmet: list[Reason] = []
    for shortage, is_owned in ((owned, True), (burst, False)):
        pools = case.side(owned=is_owned)
        if shortage.calls and not any(count_growth(case, pool) for pool in pools):
            where = "owned pools" if is_owned else "pools that are not owned"
            why = "; ".join(f"{p.name} {_say_stuck(case, p)}" for p in pools) or "there are none"
            unmet.append(case.reason("full", f"{shortage.text}; {where} can't grow ({why})"))
    for pool in case.order:
        known = case.known(pool)
        if known.planned > pool.observed and count_starting(case, pool) == 0:
            text = f"{known.planned} replicas planned, {pool.observed} run"
            why = pool.blocked or f"more than {case.policy.starting_s_max:g} s after the last came"
            unmet.append(case.reason("missing", f"{text}: {why}", pool))
    return tuple(unmet)
