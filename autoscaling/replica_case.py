"""One model's decision on its way: what is seen, remembered and found so far, and what counts.

A `Case` is replaced, never changed. Pure; `autoscaling.replicas` builds it, it and
`autoscaling.going_home` decide on it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from autoscaling.break_even import Worth
from autoscaling.burst import Burst, Capacity
from autoscaling.snapshot import BurstPolicy, Command, ModelView, PoolView, Reason
from autoscaling.stability import ModelMemory, PoolMemory, has_lasted


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided for one model."""

    memory: ModelMemory
    commands: tuple[Command, ...] = ()
    reasons: tuple[Reason, ...] = ()
    unmet: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Shortage:
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
class Case:
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

    def remember(self, pool: PoolView, memory: PoolMemory) -> "Case":
        """The case with other memory of one pool."""
        pools = {**self.memory.pools, pool.name: memory}
        return replace(self, memory=replace(self.memory, pools=pools))

    def reason(self, code: str, text: str, pool: PoolView | None = None) -> Reason:
        """A reason about the model or one of its pools."""
        subject = self.model.app if pool is None else f"{self.model.app}/{pool.name}"
        return Reason(code, subject, text)


def list_capacities(case: Case) -> list[Capacity]:
    """Return all pools with the replicas that count on each side of the decision."""
    return [
        Capacity(
            pool,
            replicas=min(case.known(pool).planned, pool.observed) + count_starting(case, pool),
            more_max=max(0, pool.replicas_max - case.known(pool).planned)
            if can_grow(case, pool)
            else 0,
        )
        for pool in case.order
    ]


def count_room(case: Case, pool: PoolView) -> int:
    """Return the slots free now or on their way. A pool with a full KV cache takes nothing more.

    Replicas beyond the plan are draining: their slots are not offered.
    """
    free = max(0, pool.observed * pool.slots - pool.streams)
    free = min(free, case.known(pool).planned * pool.slots)
    return (0 if is_kv_full(case, pool) else free) + count_starting(case, pool) * pool.slots


def count_starting(case: Case, pool: PoolView) -> int:
    """Return the replicas asked for that can still be expected to come."""
    if not can_grow(case, pool):
        return 0
    return max(0, case.known(pool).planned - pool.observed)


def can_grow(case: Case, pool: PoolView) -> bool:
    """Whether one more replica could come: what was asked for before isn't stuck."""
    return not (is_blocked(case, pool) or is_overdue(case, pool))


def is_overdue(case: Case, pool: PoolView) -> bool:
    """Whether replicas that were asked for should have come by now; they may still come."""
    since_s, needed_s = case.known(pool).starting_since_s, case.policy.starting_s_max
    return has_lasted(since_s, now_s=case.now_s, needed_s=needed_s)


def is_blocked(case: Case, pool: PoolView) -> bool:
    """Whether its replicas wait for nodes that don't come. A pool that waits for none isn't."""
    return pool.blocked is not None and case.known(pool).planned > pool.observed


def count_growth(case: Case, pool: PoolView) -> int:
    """Return the slots of the replicas that could still be asked for."""
    if not can_grow(case, pool):
        return 0
    return max(0, pool.replicas_max - case.known(pool).planned) * pool.slots


def is_kv_full(case: Case, pool: PoolView) -> bool:
    """Whether a pool's KV cache leaves no room for more requests; unknown isn't full."""
    return pool.kv_use_ratio is not None and pool.kv_use_ratio >= case.policy.kv_use_ratio_up


def count_slots(case: Case, pool: PoolView) -> int:
    """Return the slots that can be counted on now."""
    running = min(case.known(pool).planned, pool.observed)
    return 0 if is_kv_full(case, pool) else running * pool.slots
