"""Who waits, who is served next and who is refused.

Pure. Two lanes share one order of arrival: requests that must stay on owned sites, and requests
that may leave them. Each lane has a bound of its own, so neither can crowd the other out; a
request that finds no slot doesn't hold up a later one that may use a slot it may not; and a free
slot goes to the oldest request that may use it, so nobody starves.

Under overload one order of arrival makes everybody late: each slot goes to the one who has waited
longest. With `in_time_s` those who can still be answered in time go first, and who has waited
longer than that takes what they leave, until a slot comes, the wait is over, or a newcomer needs
the place in a full lane.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from deployments.routing import LookAgain, ReplicaLoad, Route, Wait, decide_route

_LANE = attrgetter("may_leave_owned")
_NUMBER = attrgetter("number")
_ARRIVED_S = attrgetter("arrived_s")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of one model's queue at one gateway; `waiting_max` holds for each lane.

    Who has waited longer than `in_time_s` comes after all others; None = arrival alone counts. A
    prompt counts as read with its first token, or `reading_s_max` after it was sent: an answer that
    is sent whole doesn't show its first token.
    """

    waiting_max: int = 256
    wait_s_max: float = 60.0
    in_time_s: float | None = None
    look_again_after_s: float = 0.25
    reading_s_max: float = 2.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting request; `number` grows with arrival and is kept when it must be tried again.

    `prompt_tokens` is what a replica will have to read. `arrived_s` is by the clock of
    `plan_assignments`, and grows with `number`.
    """

    number: int
    may_leave_owned: bool
    excluded: frozenset[str] = frozenset()
    arrived_s: float = 0.0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """This ticket takes this replica's slot."""

    number: int
    route: Route


@dataclass(frozen=True, slots=True)
class Plan:
    """Slots to take now, and replicas to ask before more can be said."""

    assignments: tuple[Assignment, ...] = ()
    look_again: tuple[str, ...] = ()


def choose_refused(
    waiting: Iterable[Ticket], newcomer: Ticket, limits: QueueLimits, *, now_s: float
) -> int | None:
    """Return the number of the ticket to refuse for a newcomer; None while its lane has room.

    Of a full lane the oldest goes that can't be answered in time any more, else the newcomer.
    """
    lane = [one for one in waiting if one.may_leave_owned == newcomer.may_leave_owned]
    if len(lane) < limits.waiting_max:
        return None
    if limits.in_time_s is None:
        return newcomer.number
    oldest = min([*lane, newcomer], key=_NUMBER)
    is_late = oldest.arrived_s < now_s - limits.in_time_s
    return oldest.number if is_late else newcomer.number


def plan_assignments(
    waiting: Iterable[Ticket], loads: Sequence[ReplicaLoad], limits: QueueLimits, *, now_s: float
) -> Plan:
    """Who takes which slot: oldest first, those who are late already after all others.

    A lane whose turn finds nothing is passed over from there on: the replicas are the same for all
    of it. Tickets with replicas of their own to avoid are always looked at one by one.
    """
    if not any(load.has_room or load.others for load in loads):
        # The usual case under overload, and the one that comes most often.
        return Plan()
    current = {load.replica_id: load for load in loads}
    assignments: list[Assignment] = []
    look_again: set[str] = set()
    ordered = _order(waiting, limits, now_s=now_s)
    open_lanes = set(map(_LANE, ordered))
    for ticket in ordered:
        if not open_lanes:
            break
        if ticket.may_leave_owned not in open_lanes:
            continue
        decision = decide_route(
            current.values(),
            may_leave_owned=ticket.may_leave_owned,
            excluded=ticket.excluded,
            look_again_after_s=limits.look_again_after_s,
        )
        if isinstance(decision, Route):
            taken = decision.load
            current[taken.replica_id] = taken.with_more(1, ticket.prompt_tokens)
            assignments.append(Assignment(ticket.number, decision))
            continue
        if isinstance(decision, LookAgain):
            look_again.update(decision.replica_ids)
        if not ticket.excluded:
            open_lanes.discard(ticket.may_leave_owned)
    return Plan(tuple(assignments), tuple(sorted(look_again)))


def _order(waiting: Iterable[Ticket], limits: QueueLimits, *, now_s: float) -> list[Ticket]:
    ordered = sorted(waiting, key=_NUMBER)
    if limits.in_time_s is None or not ordered:
        return ordered
    since_s = now_s - limits.in_time_s
    if ordered[0].arrived_s >= since_s:
        return ordered
    late = bisect_left(ordered, since_s, key=_ARRIVED_S)
    return ordered[late:] + ordered[:late]


def is_anything_running(
    loads: Iterable[ReplicaLoad], *, may_leave_owned: bool, excluded: frozenset[str]
) -> bool:
    """Whether a replica that may answer runs at all: the difference between 429 and 503."""
    decision = decide_route(loads, may_leave_owned=may_leave_owned, excluded=excluded)
    return not isinstance(decision, Wait) or decision.is_running


def estimate_retry_after_s(*, waiting: int, slots: int, mean_hold_s: float | None) -> int:
    """Whole seconds until a newcomer would probably find a slot, between 1 and 60.

    Every slot serves one request per `mean_hold_s`; without any finished request to learn from, a
    few seconds are as good a guess as any.
    """
    if mean_hold_s is None or slots <= 0:
        return 5
    return min(60, max(1, math.ceil((waiting + 1) * mean_hold_s / slots)))
