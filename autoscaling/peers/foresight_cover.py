"""The cheapest stays that cover known spells of need, with a share of the requests left out.

A level is the k-th rented replica: at any time it is needed or not, which makes spells. A stay is
one replica from its request to the end of its last spell; it serves one cold start after the
request, and may bridge the time between spells. It costs its price for all that time and for as
long as its node idles afterwards, one lease at least, but nothing after the traffic's end.

What a request left out costs is one price for all levels. For a given one a level's stays are the
cheapest there are: spell after spell, either a stay ends with it or it is left out. The lowest
price is taken at which no more is left out than may be. So what is left out spares the fewest
requests for its money: whole stays, and their first and last spells.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A dollar a request is far above what any spell worth a thought costs; twenty halvings of it leave
# a millionth.
_USD_PER_REQUEST_MAX = 1.0
_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Spell:
    """A time in which a level is needed, in s, and the requests that it would begin in it."""

    begin_s: float
    end_s: float
    requests: float


@dataclass(frozen=True, slots=True)
class Rental:
    """What renting a replica of a pool means. Times in s.

    `lead_s` is from its request to serving, `idle_s` how long an empty node stays. `sold_out` holds
    the times in which none is to be had, of each node type that could hold it.
    """

    pool: str
    usd_per_s: float
    lead_s: float
    lease_s: float
    idle_s: float
    sold_out: tuple[tuple[tuple[float, float], ...], ...] = ((),)

    def find_asked_s(self, spell: Spell) -> float:
        """Return when it is asked for, to serve from a spell's begin on: not before the start."""
        return max(0.0, spell.begin_s - self.lead_s)

    def is_to_be_had(self, at_s: float) -> bool:
        """Whether some node type that could hold it isn't sold out then."""
        return not all(any(b <= at_s < e for b, e in spells) for spells in self.sold_out)

    def find_usd(self, asked_s: float, needed_s: float, *, ends_s: float) -> float:
        """Return what a stay costs until the traffic's end."""
        paid_s = max(asked_s + self.lease_s, needed_s + self.idle_s)
        return self.usd_per_s * (min(ends_s, paid_s) - asked_s)


@dataclass(frozen=True, slots=True)
class Level:
    """One rented replica's spells in order, and the pools it may be of, the first choice first."""

    spells: tuple[Spell, ...]
    rentals: tuple[Rental, ...]


@dataclass(frozen=True, slots=True)
class Stay:
    """One replica of a pool, needed until `needed_s`; `requests` is what it begins in its spells.

    It serves until `kept_s`: its node is paid for until its lease is over in any case.
    """

    rental: Rental
    asked_s: float
    needed_s: float
    requests: float

    @property
    def kept_s(self) -> float:
        """Until when it costs no more to let it serve than to send it away."""
        return max(self.needed_s, self.asked_s + self.rental.lease_s - self.rental.idle_s)


def cover_levels(
    levels: Sequence[Level], *, ends_s: float, left_out_max: float
) -> tuple[Stay, ...]:
    """Return the cheapest stays for all levels that leave out so many requests at the most."""
    needed = sum(spell.requests for level in levels for spell in level.spells)
    low, high, found = 0.0, _USD_PER_REQUEST_MAX, _cover_all(levels, math.inf, ends_s=ends_s)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = _cover_all(levels, middle, ends_s=ends_s)
        if needed - sum(stay.requests for stay in tried) <= left_out_max:
            high, found = middle, tried
        else:
            low = middle
    return found


def cover_level(level: Level, *, ends_s: float, usd_per_request: float) -> tuple[Stay, ...]:
    """Return the cheapest stays for one level, at so much for each request that is left out."""
    rentals = [_choose_rental(level, spell) for spell in level.spells]
    asked_s = [r.find_asked_s(s) for r, s in zip(rentals, level.spells, strict=True)]
    least = [0.0]
    first_of_stay: list[int | None] = []
    running: list[int] = []
    for number, spell in enumerate(level.spells):
        running.append(number)
        usd = {
            first: least[first]
            + rentals[first].find_usd(asked_s[first], spell.end_s, ends_s=ends_s)
            for first in running
        }
        best = min(running, key=lambda first: usd[first])
        left_out = least[number] + usd_per_request * spell.requests
        least.append(min(usd[best], left_out))
        first_of_stay.append(None if left_out < usd[best] else best)
        running = _drop_beaten(running, usd, rentals, asked_s, spell)
    return _trace_back(level, rentals, asked_s, first_of_stay)


def _cover_all(
    levels: Iterable[Level], usd_per_request: float, *, ends_s: float
) -> tuple[Stay, ...]:
    covers = (cover_level(one, ends_s=ends_s, usd_per_request=usd_per_request) for one in levels)
    return tuple(stay for stays in covers for stay in stays)


def _choose_rental(level: Level, spell: Spell) -> Rental:
    """Return the first choice that isn't sold out when it is asked for; else it is waited for."""
    free = (one for one in level.rentals if one.is_to_be_had(one.find_asked_s(spell)))
    return next(free, level.rentals[0])


def _drop_beaten(
    running: Sequence[int],
    usd: dict[int, float],
    rentals: Sequence[Rental],
    asked_s: Sequence[float],
    spell: Spell,
) -> list[int]:
    """Return the stays that may still turn out cheapest if they go on after this spell.

    Once leases are over, stays of one pool cost the same from here on: the cheapest so far is left.
    """
    best: dict[str, int] = {}
    young: list[int] = []
    for first in running:
        rental = rentals[first]
        if asked_s[first] + rental.lease_s > spell.end_s + rental.idle_s:
            young.append(first)
        elif rental.pool not in best or usd[first] < usd[best[rental.pool]]:
            best[rental.pool] = first
    return sorted([*young, *best.values()])


def _trace_back(
    level: Level,
    rentals: Sequence[Rental],
    asked_s: Sequence[float],
    first_of_stay: Sequence[int | None],
) -> tuple[Stay, ...]:
    stays: list[Stay] = []
    last = len(first_of_stay) - 1
    while last >= 0:
        first = first_of_stay[last]
        if first is not None:
            requests = sum(spell.requests for spell in level.spells[first : last + 1])
            needed_s = level.spells[last].end_s
            stays.append(Stay(rentals[first], asked_s[first], needed_s, requests))
            last = first
        last -= 1
    return tuple(reversed(stays))
