"""Whether a rented replica pays: late requests it would spare against what it costs.

One more is rented when

    usd_per_late_request x requests it would begin in time  >  its price x (cold start + lease),

with what its site charges for sending their answers home on the right. The requests are counted
from the moment it can serve to the end of its lease, with those of the queue that would still wait
for it. One that runs is kept while the same holds from now for as long as a return would take: had
it gone, that is how long it would be missed. A replica on spot is charged what its loss would make
late: the chance of a loss times the gap that the notice doesn't cover; so replicas that are always
needed go on demand where spot is lost often, and those rarely needed stay on spot. Pure.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from autoscaling.outlook import Outlook, Window
from cluster.model import Market

_S_PER_HOUR = 3600.0
# What EC2 gives a spot instance between its notice and its end.
_SPOT_NOTICE_S = 120.0
_LATE_RATIO_MAX = 0.05


@dataclass(frozen=True, slots=True)
class Offering:
    """One more replica of a pool: what it does, costs and risks, and when it would be there.

    `extra_rps` is how much more is begun in time with it.
    """

    pool: str
    market: Market
    extra_rps: float
    usd_per_hour: Decimal
    cold_start_s: float
    losses_per_hour: float = 0.0
    usd_per_request: float = 0.0


@dataclass(frozen=True, slots=True)
class Worth:
    """What one replica would spare and cost over its window, in requests and $."""

    offering: Offering
    spared: float
    usd_spared: float
    usd_cost: float

    @property
    def usd_net(self) -> float:
        """What is won by having it; it is worth its money above zero."""
        return self.usd_spared - self.usd_cost


@dataclass(frozen=True, slots=True)
class Terms:
    """What a late request costs, and how long a rented replica is kept at least, in s.

    `is_any_worth`: every late request is worth a node, to see what the comparison is worth.
    """

    usd_per_late_request: float
    lease_s: float
    is_any_worth: bool = False


def leave_room(rps: float, *, ttft_s_max: float, variation: float) -> float:
    """Return the rate at which hardly one request in a hundred waits longer than promised.

    In a queue with one line and arrivals at random,
    P(wait > t) = P(wait > 0) x exp(-(capacity - rate) x t x 2 / (1 + C2)), with C2 the `variation`
    of the requests' work (squared, as a share of the mean). At such loads about a fifth wait at
    all, so the second factor may be one in twenty: the room to leave is ln(20) / t x (1 + C2) / 2
    requests a second however large the capacity is; never more than half.

    Source: Kingman, "The single server queue in heavy traffic", 1961; its mean is that of
    Pollaczek and Khinchine. Exact for exponential work, where C2 is 1.
    """
    room_rps = _find_room_rps(ttft_s_max, variation)
    return max(rps / 2, rps - room_rps) if rps > 0 else 0.0


def find_capacity(rps: float, *, ttft_s_max: float, variation: float) -> float:
    """Return the capacity that such a rate needs: what `leave_room` leaves it, turned round."""
    return min(2 * rps, rps + _find_room_rps(ttft_s_max, variation))


def _find_room_rps(ttft_s_max: float, variation: float) -> float:
    return -math.log(_LATE_RATIO_MAX) / ttft_s_max * (1 + variation) / 2


def judge_more(outlook: Outlook, offering: Offering, *, have_rps: float, terms: Terms) -> Worth:
    """Return what one more replica would be worth beside rented ones that begin `have_rps`."""
    window = Window(begins_s=offering.cold_start_s, length_s=terms.lease_s)
    queued = min(
        outlook.count_left(have_rps, offering.cold_start_s), offering.extra_rps * terms.lease_s
    )
    spared = queued + outlook.count_spared(have_rps, have_rps + offering.extra_rps, window)
    return _judge(offering, spared, window, offering.cold_start_s + terms.lease_s, terms)


def judge_kept(outlook: Outlook, offering: Offering, *, have_rps: float, terms: Terms) -> Worth:
    """Return what a replica is worth that runs beside others which begin `have_rps` without it."""
    window = Window(begins_s=0.0, length_s=offering.cold_start_s, is_kept=True)
    spared = outlook.count_spared(have_rps, have_rps + offering.extra_rps, window)
    return _judge(offering, spared, window, offering.cold_start_s, terms)


def choose_more(
    outlook: Outlook,
    offers: Callable[[Sequence[Worth]], Sequence[Offering]],
    *,
    have_rps: float,
    terms: Terms,
) -> list[Worth]:
    """Return the replicas worth renting, one after another, the most worthwhile first.

    `offers` says what could still be had once these are taken. Ties go to the first offered.
    """
    chosen: list[Worth] = []
    while True:
        judged = [
            judge_more(outlook, offering, have_rps=have_rps, terms=terms)
            for offering in offers(chosen)
        ]
        best = max(judged, key=lambda worth: worth.usd_net, default=None)
        if best is None or best.usd_net <= 0:
            return chosen
        chosen.append(best)
        have_rps += best.offering.extra_rps


def _judge(offering: Offering, spared: float, window: Window, paid_s: float, terms: Terms) -> Worth:
    usd_per_late = terms.usd_per_late_request
    if terms.is_any_worth and spared >= 1:
        usd_per_late = math.inf
    cost = float(offering.usd_per_hour) * paid_s / _S_PER_HOUR + spared * offering.usd_per_request
    spared_rps = spared / window.length_s if window.length_s > 0 else 0.0
    risk = _find_loss_usd(offering, spared_rps, paid_s, terms)
    return Worth(offering, spared, spared * usd_per_late if spared else 0.0, cost + risk)


def _find_loss_usd(offering: Offering, spared_rps: float, paid_s: float, terms: Terms) -> float:
    """Return what losing it may cost: requests late until another is there, after its notice."""
    if offering.market != "spot":
        return 0.0
    losses = offering.losses_per_hour * paid_s / _S_PER_HOUR
    gap_s = max(0.0, offering.cold_start_s - _SPOT_NOTICE_S)
    return losses * gap_s * spared_rps * terms.usd_per_late_request
