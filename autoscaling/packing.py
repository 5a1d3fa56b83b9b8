"""Fits demand onto nodes that exist and nodes that could be launched.

The working state of one plan: built, filled and thrown away inside `plan_placement`. A demand is
taken whole or not at all. Every choice has a total order, so equal input gives equal plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from autoscaling.demand import (
    Bundle,
    Demand,
    Node,
    amount_of,
    covers,
    describe_demand,
    merge_bundles,
    subtract,
)
from autoscaling.guard import (
    Launch,
    Limits,
    Offer,
    Refusal,
    count_holdings,
    find_refusal,
)

_ACCELERATOR = "GPU"

# How much of the demand behind the one being placed is looked at to choose a node's size.
_BUNDLES_AHEAD_MAX = 64


@dataclass(slots=True)
class Slot:
    """A node while a plan is made: one that exists, or one to launch (`node_id` None)."""

    node_type: str
    is_owned: bool
    labels: Mapping[str, str]
    free: dict[str, float]
    groups: frozenset[str]
    node_id: str | None
    is_used: bool = False
    cause: str = ""

    def has_room(self, bundle: Bundle) -> bool:
        """Whether what is free holds the bundle, wherever it may be."""
        return covers(self.free, bundle.resources)

    def put(self, bundle: Bundle, apart: str | None) -> None:
        """Use the bundle's share of this node."""
        subtract(self.free, bundle.resources)
        self.is_used = True
        if apart is not None:
            self.groups |= {apart}


@dataclass(slots=True)
class _Room:
    """Where one shape of bundle may still find room: slots by index, the first `seen` looked at."""

    indexes: list[int] = field(default_factory=list)
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """Which types may be launched and which nodes used while a list of demand is placed."""

    offers: tuple[Offer, ...]
    owned_only: bool


class Packing:
    """The nodes of a plan, launches included, and what refused each demand."""

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        offers: Mapping[str, Offer],
        limits: Limits,
        retiring: Sequence[str] = (),
    ) -> None:
        self.refusals: dict[str, tuple[Refusal, ...]] = {}
        self._limits = limits
        self._rooms: dict[object, _Room] = {}
        self._filling: tuple[object, int] | None = None
        self._holdings = count_holdings(offers, [*(node.node_type for node in nodes), *retiring])
        self._slots = [
            Slot(node.node_type, node.is_owned, node.labels, dict(node.free), node.groups, node.id)
            for node in nodes
        ]

    @property
    def launches(self) -> list[Launch]:
        """The nodes to launch, in the order planned."""
        return [Launch(s.node_type, s.cause) for s in self._slots if s.node_id is None]

    @property
    def used_nodes(self) -> frozenset[str]:
        """The existing nodes that something was put on."""
        return frozenset(s.node_id for s in self._slots if s.node_id is not None and s.is_used)

    def launch(self, offer: Offer, cause: str) -> Refusal | None:
        """Plan one node of this type for its own sake; the refusal if a limit forbids it."""
        refusal = find_refusal(offer, self._holdings, self._limits)
        if refusal is None:
            self._add_slot(offer, cause)
        return refusal

    def place_all(self, demands: Sequence[Demand], rules: Pass) -> list[Demand]:
        """Return what found no room, in order; the rest has its place."""
        self._rooms.clear()
        self._filling = None
        left: list[Demand] = []
        failed: dict[object, tuple[Refusal, ...]] = {}
        for index, demand in enumerate(demands):
            shape = shape_of(demand)
            # Room only shrinks during a pass, so equal demand fails again: ten thousand equal
            # tasks cost one attempt.
            if shape not in failed:
                behind = demands[index + 1 : index + 1 + _BUNDLES_AHEAD_MAX]
                ahead = [bundle for other in behind for bundle in other.bundles]
                refusals = self._place(demand, rules, ahead)
                if refusals is None:
                    continue
                failed[shape] = refusals
            self.refusals[demand.id] = failed[shape]
            left.append(demand)
        return left

    def _place(
        self, demand: Demand, rules: Pass, ahead: Sequence[Bundle]
    ) -> tuple[Refusal, ...] | None:
        """Put all of it somewhere and return None, or change nothing and return what refused."""
        apart = (demand.group or demand.id) if demand.strategy == "STRICT_SPREAD" else None
        left = list(demand.bundles)
        if demand.strategy == "STRICT_PACK":
            left = [merge_bundles(demand.bundles)]
        left.sort(key=rank_bundle)
        before: dict[int, tuple[dict[str, float], frozenset[str], bool]] = {}
        count_before, holdings_before = len(self._slots), self._holdings
        refusals: list[Refusal] = []
        while left:
            bundle = left[0]
            index = self._find_slot(bundle, apart, rules)
            if index is None:
                wanted = left if apart is not None else [*left, *ahead]
                index = self._plan_launch(wanted[:_BUNDLES_AHEAD_MAX], rules, refusals)
                if index is not None:
                    self._slots[index].cause = describe_demand(demand)
            if index is None:
                self._undo(before, count_before)
                self._holdings = holdings_before
                return tuple(dict.fromkeys(refusals))
            slot = self._slots[index]
            before.setdefault(index, (dict(slot.free), slot.groups, slot.is_used))
            self._put(left.pop(0), index, apart)
        return None

    def _put(self, bundle: Bundle, index: int, apart: str | None) -> None:
        """Put it there, and remember whether the slot stays the best one for another like it.

        A slot that was the best and only got tighter stays so while it has room and no other
        changes.
        """
        slot = self._slots[index]
        rank = _rank_slot(slot, bundle)
        slot.put(bundle, apart)
        stays_best = apart is None and _rank_slot(slot, bundle) <= rank
        self._filling = (_shape_of_bundle(bundle), index) if stays_best else None

    def _find_slot(self, bundle: Bundle, apart: str | None, rules: Pass) -> int | None:
        """Return the best node there is or is planned: owned first, then the tightest fit.

        `apart` groups share no node.
        """
        shape = _shape_of_bundle(bundle)
        if apart is None and self._filling is not None and self._filling[0] == shape:
            index = self._filling[1]
            if self._slots[index].has_room(bundle):
                return index
        indexes = self._list_room(bundle, shape, rules)
        if apart is not None:
            indexes = [index for index in indexes if apart not in self._slots[index].groups]
        if not indexes:
            return None
        return min(indexes, key=lambda index: (_rank_slot(self._slots[index], bundle), index))

    def _list_room(self, bundle: Bundle, shape: object, rules: Pass) -> list[int]:
        """Return the slots that can take the bundle.

        Room only shrinks during a pass, so a slot that was too full for a shape once is not looked
        at again for it: with a thousand nodes, that is most of the work saved.
        """
        room = self._rooms.setdefault(shape, _Room())
        fresh = range(room.seen, len(self._slots))
        room.indexes += [index for index in fresh if self._is_open(index, bundle, rules)]
        room.seen = len(self._slots)
        room.indexes = [index for index in room.indexes if self._slots[index].has_room(bundle)]
        return room.indexes

    def _is_open(self, index: int, bundle: Bundle, rules: Pass) -> bool:
        slot = self._slots[index]
        return (slot.is_owned or not rules.owned_only) and bundle.accepts(slot.labels)

    def _plan_launch(
        self, wanted: Sequence[Bundle], rules: Pass, refusals: list[Refusal]
    ) -> int | None:
        """Return the first type, in order, that fits the first bundle and may be launched."""
        fitting = [offer for offer in rules.offers if fits_empty(offer, wanted[0])]
        for offer in sorted(fitting, key=lambda offer: _rank_offer(offer, wanted)):
            refusal = find_refusal(offer, self._holdings, self._limits)
            if refusal is None:
                return self._add_slot(offer)
            refusals.append(refusal)
        return None

    def _add_slot(self, offer: Offer, cause: str = "") -> int:
        slot = Slot(
            node_type=offer.name,
            is_owned=offer.is_owned,
            labels=offer.labels,
            free=dict(offer.resources),
            groups=frozenset(),
            node_id=None,
            cause=cause,
        )
        self._slots.append(slot)
        self._holdings = self._holdings.with_planned(offer)
        return len(self._slots) - 1

    def _undo(
        self, before: Mapping[int, tuple[dict[str, float], frozenset[str], bool]], count: int
    ) -> None:
        for index, (free, groups, is_used) in before.items():
            slot = self._slots[index]
            slot.free, slot.groups, slot.is_used = free, groups, is_used
        if before:
            # The only time that room grows again.
            self._rooms.clear()
        self._filling = None
        del self._slots[count:]


def fits_empty(offer: Offer, bundle: Bundle) -> bool:
    """Whether a fresh node of this type could hold the bundle."""
    return bundle.accepts(offer.labels) and covers(offer.resources, bundle.resources)


def rank_bundle(bundle: Bundle) -> tuple[object, ...]:
    """Sort key: what few nodes can take first, then the largest."""
    terms = min((len(selector) for selector in bundle.selectors), default=0)
    resources = {name: amount for name, amount in bundle.resources.items() if amount > 0}
    return (
        -terms,
        -amount_of(resources, _ACCELERATOR),
        -len(resources),
        -sum(resources.values()),
        sorted(resources.items()),
    )


def shape_of(demand: Demand) -> object:
    """Return what makes two demands equal for placement; groups kept apart are never equal."""
    if demand.strategy == "STRICT_SPREAD":
        return demand.id
    return (demand.strategy, tuple(_shape_of_bundle(bundle) for bundle in demand.bundles))


def _shape_of_bundle(bundle: Bundle) -> object:
    return (tuple(sorted(bundle.resources.items())), bundle.selectors)


def _rank_slot(slot: Slot, bundle: Bundle) -> tuple[object, ...]:
    is_wasteful = _wastes_accelerator(slot.free, bundle)
    return (not slot.is_owned, is_wasteful, slot.node_id is None, sum(slot.free.values()))


def _rank_offer(offer: Offer, wanted: Sequence[Bundle]) -> tuple[object, ...]:
    """Sort key: market, doubt, price for what it serves, then the fewest and tightest nodes."""
    free = dict(offer.resources)
    served = 0
    for bundle in wanted:
        if bundle.accepts(offer.labels) and covers(free, bundle.resources):
            subtract(free, bundle.resources)
            served += 1
    market, is_doubtful, usd_per_hour = offer.tier
    idle_ratio = sum(free[name] / amount for name, amount in offer.resources.items() if amount > 0)
    return (
        market,
        is_doubtful,
        usd_per_hour / Decimal(served),
        _wastes_accelerator(offer.resources, wanted[0]),
        -served,
        idle_ratio,
        offer.name,
    )


def _wastes_accelerator(resources: Mapping[str, float], bundle: Bundle) -> bool:
    has = amount_of(resources, _ACCELERATOR) > 0
    return has and amount_of(bundle.resources, _ACCELERATOR) == 0
