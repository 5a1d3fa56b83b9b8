"""Which nodes go home now, and in which order. Pure.

A node goes home when it is idle. Cloud nodes go before owned ones, the dearest first; an owned node
stays while any other node does, because work that comes back would go there. A cloud node is kept
for its minimum lease: sending it home and asking for another costs a boot and, often, a minute's
price. What an operator drains waits for nothing but its own work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Resident:
    """A worker node that takes work, or did.

    `is_overdue` = idle for longer than its type may be. `launched_s` None = it isn't charged yet.
    `usd_per_hour` None = unknown, and then as dear as can be.
    """

    id: str
    node_type: str
    is_owned: bool
    usd_per_hour: Decimal | None
    is_idle: bool
    is_overdue: bool
    is_needed: bool = False
    is_draining: bool = False
    launched_s: float | None = None


@dataclass(frozen=True, slots=True)
class Homecoming:
    """The nodes that go home now, in order, and why others that idle do not."""

    releases: tuple[str, ...]
    kept: tuple[str, ...]


def decide_releases(
    residents: Sequence[Resident], *, now_s: float, lease_s_min: float
) -> Homecoming:
    """Return the nodes to release; the same nodes in another order give the same answer."""
    releases: list[str] = []
    kept: list[str] = []
    burst_left = sum(not resident.is_owned for resident in residents)
    for resident in sorted(residents, key=_rank):
        if resident.is_draining:
            may_go = resident.is_idle
        elif not resident.is_overdue or resident.is_needed:
            may_go = False
        elif (why := _find_reason_to_stay(resident, burst_left, now_s, lease_s_min)) is not None:
            kept.append(why)
            may_go = False
        else:
            may_go = True
        if may_go:
            releases.append(resident.id)
            burst_left -= not resident.is_owned
    return Homecoming(tuple(releases), tuple(kept))


def _rank(resident: Resident) -> tuple[bool, Decimal, str]:
    price = resident.usd_per_hour
    return (resident.is_owned, -(Decimal("Infinity") if price is None else price), resident.id)


def _find_reason_to_stay(
    resident: Resident, burst_left: int, now_s: float, lease_s_min: float
) -> str | None:
    if resident.is_owned:
        if burst_left == 0:
            return None
        return f"{resident.id} idles and stays: owned nodes go last, {burst_left} others are there"
    if resident.launched_s is None:
        return None
    left_s = resident.launched_s + lease_s_min - now_s
    if left_s <= 0:
        return None
    return f"{resident.id} idles and stays {left_s:.0f} s more: lease_s_min is {lease_s_min:g} s"
