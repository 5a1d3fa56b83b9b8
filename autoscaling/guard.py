"""The last check before money is spent: what may still be launched.

Decides which planned launches go ahead. Limits block launches; they never end a node: nothing here
returns a termination, whatever the limits say about nodes that exist. `autoscaling.placement` asks
`find_refusal` while it plans; `admit` has the last word over the whole plan.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from cluster.budget import (
    BudgetStatus,
    BudgetVerdict,
    UsdPerHour,
    decide_launch,
    decide_spend,
    sum_prices,
)
from cluster.model import Market

LimitName = Literal[
    "type",
    "site",
    "cluster",
    "sold_out",
    "credentials",
    "usd_per_hour",
    "usd_per_day",
    "usd_per_month",
    "launches_per_tick",
]

_MARKET_ORDER: tuple[Market, ...] = ("owned", "reserved", "spot", "on_demand")
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Held:
    """Why a site isn't asked for a type now, in words for a person, and until when."""

    limit: Literal["sold_out", "credentials"]
    text: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A node type as a decision sees it.

    `usd_per_hour` None = unknown, and then never launched where money is limited. `doubt` says why
    the type is tried last in its market (it recently failed to join), None = no doubt. `held` says
    why its site isn't asked for it at all now; None = it may be asked. The last two are the way to
    its site and what it costs, as `cluster.config.SiteSettings` has them.
    """

    name: str
    site: str
    market: Market
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    usd_per_hour: Decimal | None = _ZERO
    nodes_min: int = 0
    nodes_max: int = 0
    doubt: str | None = None
    held: Held | None = None
    round_trip_s: float = 0.0
    egress_usd_per_gb: float = 0.0

    @property
    def is_owned(self) -> bool:
        """Whether the hardware is paid for already."""
        return self.market == "owned"

    @property
    def tier(self) -> tuple[int, bool, Decimal]:
        """The order in which types are tried, lowest first: market, doubt, price."""
        price = self.usd_per_hour if self.usd_per_hour is not None else Decimal("Infinity")
        return (market_rank(self.market), self.doubt is not None, price)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may exist at once and what may be started per tick. None = no limit of that kind.

    `usd_per_hour_max` is for the nodes that the decision sees; `budget` is how much of the limits
    per hour, day and month the ledger says is used.
    """

    launches_per_tick: int
    site_nodes_max: Mapping[str, int] = field(default_factory=dict)
    cluster_nodes_max: int | None = None
    usd_per_hour_max: Decimal | None = None
    budget: BudgetStatus | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one node of a type isn't launched, in words for a person."""

    limit: LimitName
    node_type: str
    text: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """Nodes that exist or are planned, and what they cost together.

    `usd_per_hour` is what is known of their price, `unpriced` how many have none. Of both,
    `planned_usd_per_hour` is the price of those that are only planned; None = unknown.
    """

    by_type: Mapping[str, int]
    by_site: Mapping[str, int]
    nodes: int = 0
    usd_per_hour: Decimal = _ZERO
    unpriced: int = 0
    planned_usd_per_hour: UsdPerHour = _ZERO

    @property
    def committed_usd_per_hour(self) -> UsdPerHour:
        """What all of them cost, unknown as soon as one price is."""
        return None if self.unpriced else self.usd_per_hour

    def with_planned(self, offer: Offer) -> "Holdings":
        """Return these and one more node of a type, without counting all of them again."""
        price = offer.usd_per_hour
        return Holdings(
            by_type={**self.by_type, offer.name: self.by_type.get(offer.name, 0) + 1},
            by_site={**self.by_site, offer.site: self.by_site.get(offer.site, 0) + 1},
            nodes=self.nodes + 1,
            usd_per_hour=self.usd_per_hour + (price or _ZERO),
            unpriced=self.unpriced + (price is None),
            planned_usd_per_hour=sum_prices([self.planned_usd_per_hour, price]),
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """One node to launch, and what for."""

    node_type: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """The launches that go ahead, in the order planned, and why others don't."""

    launches: tuple[Launch, ...]
    refusals: tuple[Refusal, ...]


def market_rank(market: Market) -> int:
    """Return the place of a market in the order of use: owned, reserved, spot, on-demand."""
    return _MARKET_ORDER.index(market)


def count_holdings(offers: Mapping[str, Offer], node_types: Iterable[str]) -> Holdings:
    """Return what nodes of these types add up to.

    A type that is no longer offered has no site here and an unknown price; it fills the cluster.
    """
    by_type = Counter(node_types)
    by_site: Counter[str] = Counter()
    usd_per_hour, unpriced = _ZERO, 0
    for name, count in by_type.items():
        offer = offers.get(name)
        price = None if offer is None else offer.usd_per_hour
        if offer is not None:
            by_site[offer.site] += count
        if price is None:
            unpriced += count
        else:
            usd_per_hour += count * price
    return Holdings(by_type, by_site, by_type.total(), usd_per_hour, unpriced)


def find_refusal(offer: Offer, holdings: Holdings, limits: Limits) -> Refusal | None:
    """Return the limit that one more node of this type would break, None if there is none."""
    if offer.held is not None:
        return Refusal(offer.held.limit, offer.name, f"{offer.name} {offer.held.text}")
    of_type = holdings.by_type.get(offer.name, 0)
    if of_type >= offer.nodes_max:
        return Refusal("type", offer.name, _say_full(offer.name, of_type, offer.nodes_max))
    site_max = limits.site_nodes_max.get(offer.site)
    at_site = holdings.by_site.get(offer.site, 0)
    if site_max is not None and at_site >= site_max:
        return Refusal("site", offer.name, _say_full(f"site {offer.site}", at_site, site_max))
    cluster_max = limits.cluster_nodes_max
    if cluster_max is not None and holdings.nodes >= cluster_max:
        return Refusal("cluster", offer.name, _say_full("the cluster", holdings.nodes, cluster_max))
    return _find_money_refusal(offer, holdings, limits)


def admit(
    planned: Sequence[Launch],
    *,
    offers: Mapping[str, Offer],
    existing_types: Iterable[str],
    limits: Limits,
) -> Admission:
    """Return the launches that keep every limit, in the order planned, with the rest's reasons.

    `existing_types` holds every node that may cost money or fill a place, those on their way out
    included: what waits for them is refused now and planned again at the next tick.
    """
    holdings = count_holdings(offers, existing_types)
    launches: list[Launch] = []
    refusals: list[Refusal] = []
    for launch in planned:
        offer = offers[launch.node_type]
        refusal = find_refusal(offer, holdings, limits)
        if refusal is None and len(launches) >= limits.launches_per_tick:
            refusal = _refuse_tick(launch.node_type, limits)
        if refusal is None:
            launches.append(launch)
            holdings = holdings.with_planned(offer)
        else:
            refusals.append(refusal)
    return Admission(tuple(launches), tuple(refusals))


def _find_money_refusal(offer: Offer, holdings: Holdings, limits: Limits) -> Refusal | None:
    if offer.usd_per_hour == 0:
        return None
    verdicts: list[BudgetVerdict] = []
    if limits.usd_per_hour_max is not None:
        verdict = decide_launch(
            committed=[holdings.committed_usd_per_hour],
            asked=[offer.usd_per_hour],
            limit_usd_per_hour=limits.usd_per_hour_max,
        )
        verdicts.append(verdict)
    if limits.budget is not None:
        asked = [holdings.planned_usd_per_hour, offer.usd_per_hour]
        verdicts.append(decide_spend(limits.budget, asked))
    refused = next((verdict for verdict in verdicts if not verdict.is_allowed), None)
    if refused is None:
        return None
    text = f"one more {offer.name}: {refused.reason}"
    return Refusal(refused.limit or "usd_per_hour", offer.name, text)


def _refuse_tick(name: str, limits: Limits) -> Refusal:
    text = f"{name} waits for the next tick: launches_per_tick is {limits.launches_per_tick}"
    return Refusal("launches_per_tick", name, text)


def _say_full(subject: str, held: int, allowed: int) -> str:
    return f"{subject} is full: {held} of {allowed} nodes"
