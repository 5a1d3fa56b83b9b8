"""What keeps the number of replicas from flapping: how long a wish must last, and leases.

Decides when a wish is old enough to act on. More comes soon, fewer comes late, and what was raised
stays for a minimum lease. All memory is a value in and a value out, so the same input gives the
same answer and a restarted process can take over. Next: `autoscaling.replicas` does the wishing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autoscaling.learning import Learned
from autoscaling.owned_claims import ShareMemory


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is remembered of one pool. Times are wall seconds; None = it isn't so now.

    `planned` is the number last decided. `starting_since_s`: fewer run than planned, none has
    appeared since. `slack_since_s`: it could do with fewer. `leases_s`: when replicas were asked
    for, the oldest first; each is kept for a lease. `closing_since_s`: routing was told to stop,
    the number isn't lowered yet.
    """

    planned: int
    observed: int = 0
    starting_since_s: float | None = None
    slack_since_s: float | None = None
    leases_s: tuple[float, ...] = ()
    closing_since_s: float | None = None
    share: ShareMemory = field(default_factory=ShareMemory)

    @property
    def is_closing(self) -> bool:
        """Whether nothing more shall be routed there: zero is near, or planned and not reached."""
        closes = self.closing_since_s is not None or self.share.closing_since_s is not None
        return closes or (self.planned == 0 and self.observed > 0)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What is remembered of one model: its pools, and since when it calls for more.

    `owned_short_since_s` and `burst_short_since_s` are kept apart: what may not leave owned sites
    must never start the clock of those that aren't. `has_answered`: an owned replica ran once.
    `learned`: what the model's arrivals and answers have taught.
    """

    pools: Mapping[str, PoolMemory] = field(default_factory=dict)
    owned_short_since_s: float | None = None
    burst_short_since_s: float | None = None
    has_answered: bool = False
    learned: Learned = field(default_factory=Learned)


def keep_since(since_s: float | None, *, now_s: float, is_so: bool) -> float | None:
    """Return since when a condition has held without a break, None if it doesn't hold."""
    if not is_so:
        return None
    return now_s if since_s is None or since_s > now_s else since_s


def has_lasted(since_s: float | None, *, now_s: float, needed_s: float) -> bool:
    """Whether a condition has held long enough to act on."""
    return since_s is not None and now_s - since_s >= needed_s


def observe_pool(memory: PoolMemory, *, observed: int, now_s: float) -> PoolMemory:
    """Return the memory after a look at what runs; each replica that appears restarts the wait."""
    since_s = None if observed > memory.observed else memory.starting_since_s
    starting_since_s = keep_since(since_s, now_s=now_s, is_so=observed < memory.planned)
    return replace(memory, observed=observed, starting_since_s=starting_since_s)


def raise_pool(memory: PoolMemory, *, planned: int, now_s: float) -> PoolMemory:
    """Return the memory after a raise: a new lease, and whatever was being closed is open again."""
    return replace(
        memory,
        planned=planned,
        starting_since_s=now_s,
        slack_since_s=None,
        leases_s=(*memory.leases_s, *[now_s] * (planned - memory.planned)),
        closing_since_s=None,
    )


def lower_pool(memory: PoolMemory, *, planned: int) -> PoolMemory:
    """Return the memory after a lowering, the oldest first: the next needs slack of its own.

    Replicas without a lease, from before anything was asked for, are the oldest.
    """
    gone = max(0, len(memory.leases_s) - planned)
    return replace(
        memory,
        planned=planned,
        slack_since_s=None,
        closing_since_s=None,
        leases_s=memory.leases_s[gone:],
    )


def count_leased(memory: PoolMemory, *, now_s: float, min_lease_s: float) -> int:
    """Return how many replicas must be kept: those asked for less than a lease ago."""
    young = sum(max(0.0, now_s - since_s) < min_lease_s for since_s in memory.leases_s)
    return min(memory.planned, young)


def lease_left_s(memory: PoolMemory, *, now_s: float, min_lease_s: float) -> float:
    """Return how long it is until the next lease ends; 0 when none runs."""
    left = [min_lease_s - max(0.0, now_s - since_s) for since_s in memory.leases_s]
    return min((left_s for left_s in left if left_s > 0), default=0.0)


def forget_clocks(memory: ModelMemory) -> ModelMemory:
    """Return the memory after a blind spell: the numbers stay, what wasn't seen didn't last."""
    pools = {
        name: replace(pool, slack_since_s=None, closing_since_s=None)
        for name, pool in memory.pools.items()
    }
    return ModelMemory(pools=pools, has_answered=memory.has_answered, learned=memory.learned)


def restart_clocks(memory: ModelMemory, *, now_s: float) -> ModelMemory:
    """Return the memory after a pause or a step of the clock, when time that passed isn't known.

    As after a blind spell; starts are awaited anew too, and no lease begins in the future.
    """
    memory = forget_clocks(memory)
    pools = {
        name: replace(
            pool,
            starting_since_s=None,
            leases_s=tuple(min(since_s, now_s) for since_s in pool.leases_s),
        )
        for name, pool in memory.pools.items()
    }
    return replace(memory, pools=pools)
