"""What nodes cost in a span of time. Pure: charges in, money out.

Sites bill by the second with a minimum of one minute (Source: EC2's pricing page, "per-second
billing, with a 60-second minimum"). The laws, checked in tests/cluster/test_spend.py: parts of a
span add up to the whole, nothing is ever negative, an unknown price is never taken for zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import fsum

CHARGED_S_MIN = 60.0
_S_PER_HOUR = Decimal(3600)

Usd = Decimal | None
"""Money; None = unknown, because a price is."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of wall time, its end left out."""

    since_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Charge:
    """What a site charges for one node. `until_s` None = it still does."""

    site: str
    usd_per_hour: Decimal | None
    since_s: float
    until_s: float | None = None


def day_window(now_s: float) -> Window:
    """Return the UTC day that a moment is in."""
    start = _utc(now_s).replace(hour=0, minute=0, second=0, microsecond=0)
    return Window(start.timestamp(), (start + timedelta(days=1)).timestamp())


def month_window(now_s: float) -> Window:
    """Return the UTC month that a moment is in."""
    start = _utc(now_s).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    # The 32nd day of any month is in the next one.
    end = (start + timedelta(days=31)).replace(day=1)
    return Window(start.timestamp(), end.timestamp())


def cost_of(charges: Iterable[Charge], window: Window, *, now_s: float) -> Usd:
    """Return what the charges add up to inside the window: of nodes that run, up to now.

    A node that ended early is charged for its whole first minute, even if that isn't over yet.
    """
    # Many nodes have one price: seconds are added up first, and multiplied once.
    seconds_at: dict[Decimal | None, list[float]] = {}
    for charge in charges:
        seconds = _charged_s(charge, window, now_s)
        if seconds > 0:
            seconds_at.setdefault(charge.usd_per_hour, []).append(seconds)
    if None in seconds_at:
        return None
    costs = (
        price * Decimal(fsum(seconds)) / _S_PER_HOUR
        for price, seconds in seconds_at.items()
        if price is not None
    )
    return sum(costs, Decimal(0))


def cost_by_site(charges: Iterable[Charge], window: Window, *, now_s: float) -> dict[str, Usd]:
    """Return what each site's charges add up to inside the window, by the sites' names."""
    by_site: dict[str, list[Charge]] = {}
    for charge in charges:
        by_site.setdefault(charge.site, []).append(charge)
    return {site: cost_of(by_site[site], window, now_s=now_s) for site in sorted(by_site)}


def _charged_s(charge: Charge, window: Window, now_s: float) -> float:
    """Return how many seconds of the window are charged; never less than 0, whatever clocks do."""
    if charge.until_s is None:
        until_s = now_s
    else:
        until_s = max(charge.until_s, charge.since_s + CHARGED_S_MIN)
    return max(0.0, min(until_s, window.until_s) - max(charge.since_s, window.since_s))


def _utc(now_s: float) -> datetime:
    return datetime.fromtimestamp(now_s, UTC)
