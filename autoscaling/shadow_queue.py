"""The two queues that shadow mode compares: as it was, and as it would have been. Pure.

Requests are a fluid, first in first out. Only how many wait and how many arrive is known, so each
look takes the oldest away until as many are left as wait: what left had waited since its arrival.
The queue that would have been is the real one less what virtual replicas would have taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

_COHORTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Cohort:
    """Requests that arrived at the same look, wall time, and still wait."""

    arrived_s: float
    requests: float


@dataclass(frozen=True, slots=True)
class Queue:
    """Who waits, oldest first, and what it came to: requests begun late, seconds waited by all."""

    cohorts: tuple[Cohort, ...] = ()
    late: float = 0.0
    waited_s: float = 0.0

    @property
    def waiting(self) -> float:
        """The requests that wait."""
        return sum(cohort.requests for cohort in self.cohorts)


@dataclass(frozen=True, slots=True)
class Look:
    """What is known at a look: the time, `since_s` the one before, and what arrived in between.

    Who waits longer than `wait_s_max` is late.
    """

    now_s: float
    since_s: float
    arrived: float
    wait_s_max: float


def advance_queue(queue: Queue, look: Look, *, waiting: float) -> Queue:
    """Return the queue at a look at which so many wait."""
    cohorts = [*queue.cohorts, Cohort(look.now_s, look.arrived)]
    missing = waiting - sum(cohort.requests for cohort in cohorts)
    if missing > 0:
        # More wait than were seen to arrive: a gateway reported its queue before its counters.
        cohorts[-1] = replace(cohorts[-1], requests=cohorts[-1].requests + missing)
    leaving = max(0.0, -missing)
    late = queue.late
    kept: list[Cohort] = []
    for cohort in cohorts:
        gone = min(leaving, cohort.requests)
        leaving -= gone
        late += gone if look.now_s - cohort.arrived_s > look.wait_s_max else 0.0
        if cohort.requests > gone:
            kept.append(replace(cohort, requests=cohort.requests - gone))
    waited_s = (queue.waiting + waiting) / 2 * (look.now_s - look.since_s)
    return Queue(_thin_out(kept), late, queue.waited_s + waited_s)


def _thin_out(cohorts: Sequence[Cohort]) -> tuple[Cohort, ...]:
    """Return the cohorts, neighbours put together where there are too many to keep."""
    if len(cohorts) <= _COHORTS_MAX:
        return tuple(cohorts)
    pairs = [cohorts[index : index + 2] for index in range(0, len(cohorts), 2)]
    return tuple(
        Cohort(pair[0].arrived_s, sum(cohort.requests for cohort in pair)) for pair in pairs
    )
