"""What arrived lately, in bins: the memory the forecast and the break-even rest on.

Gateways report counters that only grow. Their differences go into bins of `BIN_S`, so a report that
is lost or comes late moves nothing but the edge of a bin. A counter that fell belongs to a gateway
that started again: it counts from zero. A gateway that wasn't heard at the last look, new or back,
counts from its first word: what came before has no known time. A silence longer than a bin is a
gap, not an absence of demand, and is left out. Pure; `autoscaling.observation` feeds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

BIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests since a gateway started: all, and those that may leave owned sites."""

    arrived: int = 0
    may_burst: int = 0


@dataclass(frozen=True, slots=True)
class DemandHistory:
    """Requests per bin, oldest first, without gaps and without the bin that is still filling.

    `seen` is each gateway's last counters; `open_all` and `open_may_burst` the bin that began at
    `open_since_s`; `looked_s` the last look; `closed` counts bins since the beginning. Times are
    wall seconds, None = nothing seen yet.
    """

    all: tuple[int, ...] = ()
    may_burst: tuple[int, ...] = ()
    seen: Mapping[str, Counts] = field(default_factory=dict)
    open_since_s: float | None = None
    looked_s: float | None = None
    open_all: int = 0
    open_may_burst: int = 0
    closed: int = 0


def note_arrivals(
    history: DemandHistory, seen: Mapping[str, Counts], *, now_s: float, keep_s: float
) -> DemandHistory:
    """Return the history with what arrived since the last look; at most `keep_s` is kept."""
    gap_s = None if history.looked_s is None else now_s - history.looked_s
    if gap_s is None or history.open_since_s is None or not 0 <= gap_s <= BIN_S:
        # The first look, a silence, or a clock that stepped: what came meanwhile is unknown.
        return replace(
            history, seen=seen, open_since_s=now_s, looked_s=now_s, open_all=0, open_may_burst=0
        )
    arrived, may_burst = _count_new(history.seen, seen)
    arrived += history.open_all
    may_burst += history.open_may_burst
    if now_s - history.open_since_s < BIN_S:
        return replace(
            history, seen=seen, looked_s=now_s, open_all=arrived, open_may_burst=may_burst
        )
    kept = max(1, round(keep_s / BIN_S))
    return DemandHistory(
        all=(*history.all, arrived)[-kept:],
        may_burst=(*history.may_burst, may_burst)[-kept:],
        seen=seen,
        # Not now: a look that comes late must not make every bin longer than it counts.
        open_since_s=history.open_since_s + BIN_S,
        looked_s=now_s,
        closed=history.closed + 1,
    )


def _count_new(before: Mapping[str, Counts], now: Mapping[str, Counts]) -> tuple[int, int]:
    arrived = may_burst = 0
    for gateway, counts in now.items():
        known = before.get(gateway, counts)
        if counts.arrived < known.arrived or counts.may_burst < known.may_burst:
            known = Counts()
        arrived += counts.arrived - known.arrived
        may_burst += counts.may_burst - known.may_burst
    return arrived, may_burst
