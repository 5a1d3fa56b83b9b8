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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autoscaling.break_even import Worth, leave_room
from autoscaling.burst import Burst, Capacity, look_ahead, say_not_worth, say_raise
from autoscaling.owned_bounds import bound_owned_pools
from autoscaling.snapshot import (
    BurstPolicy,
    Command,
    Decision,
    ModelView,
    PoolView,
    Reason,
    SetReplicas,
    Snapshot,
    StopRouting,
)
from autoscaling.stability import (
    ModelMemory,
    PoolMemory,
    count_leased,
    forget_clocks,
    has_lasted,
    keep_since,
    lease_left_s,
    lower_pool,
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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was decided for one model."""

    memory: ModelMemory
    commands: tuple[Command, ...] = ()
    reasons: tuple[Reason, ...] = ()
    unmet: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shortage:
    """What one side, owned or not, lacks: waiting requests without capacity in sight, KV room.

    `calls`: it is enough to ask for more. `worth`: the replicas that pay, where that is known;
    `over_rps`: what arrives beyond planned capacity, where it asks for more than waiting does.
    """

    excess: int
    full_kv: tuple[str, ...]
    calls: bool
    worth: tuple[Worth, ...] = ()
    over_rps: float = 0.0

    @property
    def text(self) -> str:
        """The shortage in words."""
        parts = [f"{self.excess} waiting without a slot in sight"] if self.excess else []
        if self.over_rps > 0:
            parts = [f"{self.over_rps:.1f} req/s more arrive than planned replicas begin in time"]
        return ", ".join([*parts, *(f"KV cache of {name} is full" for name in self.full_kv)])


@dataclass(frozen=True, slots=True)
class _Case:
    """One model with all that its decision needs; replaced, never changed."""

    model: ModelView
    memory: ModelMemory
    now_s: float
    policy: BurstPolicy
    burst: Burst | None = None

    @property
    def order(self) -> list[PoolView]:
        """The pools, lowest first: filled first, lowered last."""
        return sorted(self.model.pools, key=lambda pool: pool.order)

    def side(self, *, owned: bool) -> list[PoolView]:
        """The owned pools, or the others, in order."""
        return [pool for pool in self.order if pool.is_owned == owned]

    def known(self, pool: PoolView) -> PoolMemory:
        """What is remembered of a pool."""
        return self.memory.pools[pool.name]

    def planned(self, pools: Iterable[PoolView]) -> int:
        """The replicas planned in these pools."""
        return sum(self.known(pool).planned for pool in pools)

    def remember(self, pool: PoolView, memory: PoolMemory) -> "_Case":
        """The case with other memory of one pool."""
        pools = {**self.memory.pools, pool.name: memory}
        return replace(self, memory=replace(self.memory, pools=pools))

    def reason(self, code: str, text: str, pool: PoolView | None = None) -> Reason:
        """A reason about the model or one of its pools."""
        subject = self.model.app if pool is None else f"{self.model.app}/{pool.name}"
        return Reason(code, subject, text)


def _decide_model(
    model: ModelView, memory: ModelMemory, *, now_s: float, policy: BurstPolicy
) -> _Outcome:
    """Raise what is short, else lower what is dearest and idle, else hold; always with a reason."""
    if model.doubt is not None:
        reason = Reason("doubt", model.app, f"all numbers are held: {model.doubt}")
        return _Outcome(forget_clocks(memory), reasons=(reason,))
    looked_s = memory.learned.looked_s
    if looked_s is not None and not 0 <= now_s - looked_s <= policy.signals_stale_s:
        memory = restart_clocks(memory, now_s=now_s)
    memory = replace(memory, learned=model.learned)
    case, adopted = _observe(_Case(model, memory, now_s, policy))
    case = replace(case, burst=look_ahead(model, _list_capacities(case), policy))
    owned = _find_owned_shortage(case)
    burst = _find_burst_shortage(case)
    case = _keep_clocks(case, owned=owned, burst=burst)
    outcome = _raise(case, owned=owned, burst=burst) or _lower(case)
    return replace(
        outcome,
        commands=(*adopted.commands, *outcome.commands),
        reasons=(*adopted.reasons, *outcome.reasons),
        unmet=_find_unmet(case, owned=owned, burst=burst),
    )


def _observe(case: _Case) -> tuple[_Case, _Outcome]:
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
    outcome = _Outcome(memory, tuple(commands), tuple(reasons))
    return replace(case, memory=memory), outcome


def _find_first_plan(pool: PoolView) -> int:
    """Return the number to begin with: what was requested, else what runs, never less than min.

    A deploy therefore begins at each pool's minimum, zero where it costs money.
    """
    if pool.requested is not None:
        return pool.requested
    return max(pool.replicas_min, pool.observed)


def _find_owned_shortage(case: _Case) -> _Shortage:
    """Return what waits beyond the room that owned replicas have or will have when they are up.

    Where speeds are known, what arrives beyond what they can begin counts too, in slots: owned
    replicas cost nothing and may come before anybody waits.
    """
    pools = case.side(owned=True)
    room = sum(_room(case, pool) for pool in pools)
    waiting = max(0, case.model.waiting - room)
    over_rps = _find_over_rps(case)
    growing = next((pool for pool in pools if _growth(case, pool)), None)
    if case.burst is None or growing is None or over_rps <= 0:
        return _build_shortage(case, pools, waiting)
    slots = math.ceil(over_rps / case.burst.rps[growing.name] * growing.slots)
    if slots <= waiting:
        return _build_shortage(case, pools, waiting)
    return replace(_build_shortage(case, pools, slots), over_rps=over_rps)


def _find_over_rps(case: _Case) -> float:
    """Return how much more arrives than the planned owned replicas begin in time."""
    if case.burst is None:
        return 0.0
    pools = case.side(owned=True)
    planned_rps = sum(case.burst.rps[p.name] * case.known(p).planned for p in pools)
    planned_rps = leave_room(planned_rps, ttft_s_max=case.model.ttft_s_max)
    return max(0.0, case.burst.outlook.level_rps - planned_rps)


def _is_at_zero(case: _Case) -> bool:
    """Whether nothing runs or will: who waits would never be answered, whatever that costs."""
    return not any(
        one.replicas + one.more_max * one.pool.is_owned for one in _list_capacities(case)
    )


def _find_burst_shortage(case: _Case) -> _Shortage:
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
        return _Shortage(case.model.waiting_may_burst, (), calls=bool(worth), worth=worth)
    room = sum(_room(case, pool) + _growth(case, pool) for pool in owned)
    must_stay = case.model.waiting - case.model.waiting_may_burst
    left_for_burst = max(0, room - must_stay)
    room_there = sum(_room(case, pool) for pool in others)
    excess = max(0, case.model.waiting_may_burst - left_for_burst - room_there)
    # A full KV cache takes its pool's room away, and alone rents nothing: what fills it is served.
    return _build_shortage(case, (), excess)


def _build_shortage(case: _Case, pools: Sequence[PoolView], excess: int) -> _Shortage:
    full_kv = tuple(
        pool.name
        for pool in pools
        if pool.observed > 0 and _is_kv_full(case, pool) and not _starting(case, pool)
    )
    needed = case.policy.waiting_per_replica_up * max(1, case.planned(case.model.pools))
    return _Shortage(excess, full_kv, calls=excess >= needed or bool(full_kv))


def _list_capacities(case: _Case) -> list[Capacity]:
    """Return all pools with the replicas that count on each side of the decision."""
    return [
        Capacity(
            pool,
            replicas=min(case.known(pool).planned, pool.observed) + _starting(case, pool),
            more_max=max(0, pool.replicas_max - case.known(pool).planned)
            if _can_grow(case, pool)
            else 0,
        )
        for pool in case.order
    ]


def _room(case: _Case, pool: PoolView) -> int:
    """Return the slots free now or on their way. A pool with a full KV cache takes nothing more.

    Replicas beyond the plan are draining: their slots are not offered.
    """
    free = max(0, pool.observed * pool.slots - pool.streams)
    free = min(free, case.known(pool).planned * pool.slots)
    return (0 if _is_kv_full(case, pool) else free) + _starting(case, pool) * pool.slots


def _starting(case: _Case, pool: PoolView) -> int:
    """Return the replicas asked for that can still be expected to come."""
    if not _can_grow(case, pool):
        return 0
    return max(0, case.known(pool).planned - pool.observed)


def _can_grow(case: _Case, pool: PoolView) -> bool:
    """Whether one more replica could come: what was asked for before isn't stuck."""
    return not (_is_blocked(case, pool) or _is_overdue(case, pool))


def _is_overdue(case: _Case, pool: PoolView) -> bool:
    """Whether replicas that were asked for should have come by now; they may still come."""
    since_s, needed_s = case.known(pool).starting_since_s, case.policy.starting_s_max
    return has_lasted(since_s, now_s=case.now_s, needed_s=needed_s)


def _is_blocked(case: _Case, pool: PoolView) -> bool:
    """Whether its replicas wait for nodes that don't come. A pool that waits for none isn't."""
    return pool.blocked is not None and case.known(pool).planned > pool.observed


def _growth(case: _Case, pool: PoolView) -> int:
    """Return the slots of the replicas that could still be asked for."""
    if not _can_grow(case, pool):
        return 0
    return max(0, pool.replicas_max - case.known(pool).planned) * pool.slots


def _is_kv_full(case: _Case, pool: PoolView) -> bool:
    return pool.kv_use_ratio is not None and pool.kv_use_ratio >= case.policy.kv_use_ratio_up


def _keep_clocks(case: _Case, *, owned: _Shortage, burst: _Shortage) -> _Case:
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


def _raise(case: _Case, *, owned: _Shortage, burst: _Shortage) -> _Outcome | None:
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
    return _Outcome(case.memory, tuple(commands), tuple(reasons))


def _is_due(case: _Case, since_s: float | None) -> bool:
    return has_lasted(since_s, now_s=case.now_s, needed_s=case.policy.up_after_s)


def _is_first_start(case: _Case) -> bool:
    """Whether the model's first owned replica is still to come: a deploy opens no cloud."""
    is_coming = any(_starting(case, pool) > 0 for pool in case.side(owned=True))
    return is_coming and not case.memory.has_answered


def _grow(
    case: _Case,
    pools: Sequence[PoolView],
    shortage: _Shortage,
    commands: list[Command],
    reasons: list[Reason],
) -> _Case:
    """Return the case with the pools raised, in order, until the shortage is covered."""
    # A full KV cache calls for one replica even when nothing waits yet.
    left = max(shortage.excess, 1)
    for pool in pools:
        known = case.known(pool)
        more = min(pool.replicas_max - known.planned, math.ceil(left / pool.slots))
        if more <= 0 or not _can_grow(case, pool):
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


def _fill_owned(case: _Case, commands: list[Command], reasons: list[Reason]) -> _Case:
    """Return the case with all owned replicas that can be had: what is rented comes after them."""
    for pool in case.side(owned=True):
        known = case.known(pool)
        if known.planned >= pool.replicas_max or not _can_grow(case, pool):
            continue
        commands.append(SetReplicas(case.model.app, pool.name, known.planned, pool.replicas_max))
        text = f"{known.planned} to {pool.replicas_max} replicas: owned before rented"
        reasons.append(case.reason("raise", text, pool))
        filled = raise_pool(known, planned=pool.replicas_max, now_s=case.now_s)
        case = case.remember(pool, filled)
    return case


def _rent(
    case: _Case,
    burst: Burst,
    worth: Sequence[Worth],
    commands: list[Command],
    reasons: list[Reason],
) -> _Case:
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


def _lower(case: _Case) -> _Outcome:
    """Return the lowering that is due for the dearest pool that may go, else a hold."""
    above = [p for p in case.order if case.known(p).planned > p.replicas_min]
    chosen = next((p for p in reversed(above) if _may_go(case, p)), above[-1] if above else None)
    for pool in case.order:
        if pool is not chosen:
            case = case.remember(pool, _reset_slack(case.known(pool)))
    if chosen is None:
        return _hold(case, _say_at_minimum(case))
    return _lower_pool(case, chosen)


def _may_go(case: _Case, pool: PoolView) -> bool:
    """Whether a rented pool has a replica that is neither leased nor needed."""
    if pool.is_owned or case.burst is None or _find_lower_plan(case, pool) is None:
        return False
    known = case.known(pool)
    leased = count_leased(known, now_s=case.now_s, min_lease_s=case.policy.min_lease_s)
    return leased < known.planned


def _lower_pool(case: _Case, pool: PoolView) -> _Outcome:
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


def _is_in_use(case: _Case, pool: PoolView, wanted: int) -> bool:
    """Whether a rented pool carries now what neither owned slots nor fewer replicas could."""
    if pool.is_owned or case.model.waiting_may_burst > 0:
        return not pool.is_owned
    has_room = any(other.streams < other.observed * other.slots for other in case.side(owned=True))
    return not has_room and pool.streams > wanted * pool.slots


def _carry_lowering(case: _Case, pool: PoolView, wanted: int) -> _Outcome:
    """Return the next step home: stop routing before zero, then the lower number."""
    known, app, policy = case.known(pool), case.model.app, case.policy
    if wanted == 0 and known.closing_since_s is None:
        case = case.remember(pool, replace(known, closing_since_s=case.now_s))
        text = f"routing stops before it goes to zero: {_say_spare(case, pool)}"
        return _Outcome(
            case.memory, (StopRouting(app, pool.name),), (case.reason("close", text, pool),)
        )
    if wanted == 0 and not has_lasted(
        known.closing_since_s, now_s=case.now_s, needed_s=policy.route_stop_s
    ):
        return _hold(case, f"{pool.name} goes to zero once routing has stopped")
    command = SetReplicas(app, pool.name, known.planned, wanted)
    text = f"{known.planned} to {wanted} replicas: {_say_spare(case, pool)}"
    case = case.remember(pool, lower_pool(known, planned=wanted))
    return _Outcome(case.memory, (command,), (case.reason("lower", text, pool),))


def _say_spare(case: _Case, pool: PoolView) -> str:
    if case.burst is not None and not pool.is_owned:
        return f"it has cost more than it spared for {case.policy.down_after_s:g} s"
    if _is_idle(case, pool):
        return f"it is idle and has not been needed for {case.policy.down_after_s:g} s"
    return f"the pools before it have had room for {case.policy.down_after_s:g} s"


def _find_lower_plan(case: _Case, pool: PoolView) -> int | None:
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
    capacity = sum(_capacity(case, other) for other in before)
    ratio_max = case.policy.slack_ratio_max
    is_spare = load <= capacity * ratio_max if before else load + pool.streams == 0
    if is_spare:
        return pool.replicas_min
    fewer = case.known(pool).planned - 1
    capacity += 0 if _is_kv_full(case, pool) else min(fewer, pool.observed) * pool.slots
    return fewer if load + pool.streams <= capacity * ratio_max else None


def _count_idle(case: _Case, burst: Burst, pool: PoolView) -> int:
    """Return how many of a rented pool's replicas aren't worth keeping, down to its minimum."""
    counted = next(one.replicas for one in burst.rented if one.pool.name == pool.name)
    spare = counted - burst.count_needed(pool.name)
    return max(0, min(spare, case.known(pool).planned - pool.replicas_min))


def _is_idle(case: _Case, pool: PoolView) -> bool:
    """Whether a pool that isn't owned costs money for nothing: no stream, and none waits for it."""
    return not pool.is_owned and pool.streams == 0 and case.model.waiting_may_burst == 0


def _capacity(case: _Case, pool: PoolView) -> int:
    """Return the slots that can be counted on now."""
    running = min(case.known(pool).planned, pool.observed)
    return 0 if _is_kv_full(case, pool) else running * pool.slots


def _say_at_minimum(case: _Case) -> str:
    best = case.burst.find_best() if case.burst is not None else None
    if best is None or best.spared < 1:
        return "every pool is at its minimum"
    return say_not_worth(best)


def _say_needed(case: _Case, pool: PoolView) -> str:
    if case.burst is None or pool.is_owned:
        return "the pools before it are filled"
    return "without it more would be late than it costs"


def _reset_slack(memory: PoolMemory) -> PoolMemory:
    return replace(memory, slack_since_s=None, closing_since_s=None)


def _hold(case: _Case, why: str) -> _Outcome:
    streams = sum(pool.streams for pool in case.model.pools)
    text = f"held with {streams} streams and {case.model.waiting} waiting: {why}"
    return _Outcome(case.memory, reasons=(case.reason("hold", text),))


def _say_stuck(case: _Case, pool: PoolView) -> str:
    if _is_blocked(case, pool):
        return f"waits for nodes: {pool.blocked}"
    return "waits for overdue replicas" if _is_overdue(case, pool) else "is at its maximum"


def _find_unmet(case: _Case, *, owned: _Shortage, burst: _Shortage) -> tuple[Reason, ...]:
    """Return what is wanted and can't be had, whatever this tick does."""
    unmet: list[Reason] = []
    for shortage, is_owned in ((owned, True), (burst, False)):
        pools = case.side(owned=is_owned)
        if shortage.calls and not any(_growth(case, pool) for pool in pools):
            where = "owned pools" if is_owned else "pools that are not owned"
            why = "; ".join(f"{p.name} {_say_stuck(case, p)}" for p in pools) or "there are none"
            unmet.append(case.reason("full", f"{shortage.text}; {where} can't grow ({why})"))
    for pool in case.order:
        known = case.known(pool)
        if known.planned > pool.observed and _starting(case, pool) == 0:
            text = f"{known.planned} replicas planned, {pool.observed} run"
            why = pool.blocked or f"more than {case.policy.starting_s_max:g} s after the last came"
            unmet.append(case.reason("missing", f"{text}: {why}", pool))
    return tuple(unmet)
