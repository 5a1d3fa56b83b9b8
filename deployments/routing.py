"""Which replica answers next: owned first, least loaded, elsewhere only when owned is full.

A replica is full when its slots are taken, or while it has prompts enough to read: it reads them
one after another, so one more would only wait inside it, where nobody can send it elsewhere.

Pure. The caller hands in what it knows about every replica and hears one of three answers: take
this one, look again (the owned replicas are full by hearsay that has grown old), or wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.residency import filter_allowed

_MARKET_RANK = {"owned": 0, "reserved": 1, "spot": 2, "on_demand": 3}


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica: `held` slots are ours for certain; `others` hold the rest as of `seen_age_s`.

    `reading_tokens` are the prompts of ours that it hasn't answered with a first token yet. With
    `reading_tokens_max` of them or more it takes no further one; None = it always does.
    """

    replica_id: str
    pool: str
    site: str
    owned: bool
    market: str
    slots: int
    held: int = 0
    others: int = 0
    seen_age_s: float = 0.0
    reading_tokens: int = 0
    reading_tokens_max: int | None = None

    @property
    def busy(self) -> int:
        """Slots believed to be taken."""
        return self.held + self.others

    def with_more(self, held: int, reading_tokens: int) -> "ReplicaLoad":
        """The same replica with so much more to do; made often, so without `replace`."""
        return ReplicaLoad(
            self.replica_id,
            self.pool,
            self.site,
            self.owned,
            self.market,
            self.slots,
            self.held + held,
            self.others,
            self.seen_age_s,
            self.reading_tokens + reading_tokens,
            self.reading_tokens_max,
        )

    @property
    def has_free_slot(self) -> bool:
        """Whether a slot is believed to be free."""
        return self.busy < self.slots

    @property
    def has_room(self) -> bool:
        """Whether it can begin with one more request now."""
        most = self.reading_tokens_max
        return self.held + self.others < self.slots and (most is None or self.reading_tokens < most)


@dataclass(frozen=True, slots=True)
class Route:
    """Take this replica. `reason` is shown to the client and counted."""

    load: ReplicaLoad
    reason: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Ask these replicas how busy they are before anything else is decided."""

    replica_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """No slot for now; `is_running` says whether any replica that may answer runs at all."""

    is_running: bool


Decision = Route | LookAgain | Wait


def decide_route(
    loads: Iterable[ReplicaLoad],
    *,
    may_leave_owned: bool,
    excluded: frozenset[str] = frozenset(),
    look_again_after_s: float = 0.25,
) -> Decision:
    """What to do with one request.

    Ties break in a total order: prompts to be read, load ratio, market, pool, replica id. Replicas
    another gateway filled count as full only while that knowledge is younger than
    `look_again_after_s`, so that a slot freed elsewhere is found before anyone is sent to a paid
    site or refused.
    """
    allowed = [
        load
        for load in filter_allowed(loads, may_leave_owned=may_leave_owned)
        if load.replica_id not in excluded
    ]
    owned_free = [load for load in allowed if load.owned and load.has_room]
    if owned_free:
        return Route(min(owned_free, key=_preference), "owned-slot-free")
    doubtful = tuple(
        sorted(load.replica_id for load in allowed if _is_doubtful(load, look_again_after_s))
    )
    if doubtful:
        return LookAgain(doubtful)
    elsewhere_free = [load for load in allowed if not load.owned and load.has_room]
    if elsewhere_free:
        is_owned_running = any(load.owned for load in allowed)
        reason = "owned-full" if is_owned_running else "owned-not-running"
        return Route(min(elsewhere_free, key=_preference), reason)
    return Wait(is_running=bool(allowed))


def _preference(load: ReplicaLoad) -> tuple[int, float, int, str, str]:
    return (
        load.reading_tokens,
        load.busy / load.slots,
        _MARKET_RANK[load.market],
        load.pool,
        load.replica_id,
    )


def _is_doubtful(load: ReplicaLoad, look_again_after_s: float) -> bool:
    """Whether only others may have filled it, as was heard too long ago."""
    is_filled_by_others = load.held < load.slots <= load.busy
    return load.owned and is_filled_by_others and load.seen_age_s > look_again_after_s
