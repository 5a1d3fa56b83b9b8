"""Which nodes to launch for the demand that waits: owned capacity first.

Two passes that never mix (DESIGN decision 3). The first sees owned types and owned nodes only. The
second gets what remains, with the first pass's launches counted as nodes that exist. So demand that
fits owned capacity never launches anything else, whatever waits beside it.

Inside a pass, demand that few nodes can take goes first, nodes that exist come before a launch, and
types are tried in the order of `Offer.tier`. Limits come from `autoscaling.guard`, which also has
the last word. Nothing here ends a node. Next: `autoscaling.ray_scheduler` translates Ray's requests
to and from these values.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes

from autoscaling.demand import Demand, Node, covers, describe_demand, merge_bundles
from autoscaling.guard import Launch, Limits, Offer, Refusal, admit
from autoscaling.packing import Packing, Pass, fits_empty, rank_bundle, shape_of
from cluster.model import LABEL_SITE


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything one placement may know.

    `leaving` holds the types of nodes on their way out: they take no demand, and still fill a place
    and cost money; what only they stand in the way of waits for them. `retiring` holds those of
    nodes that take no more demand and may stay for long (cordoned, or with a notice): what they
    stand in the way of goes to the next tier. `reservation` is capacity that must exist whether
    used or not, measured on whole nodes (Ray's `request_resources`).
    """

    offers: tuple[Offer, ...]
    nodes: tuple[Node, ...] = ()
    leaving: tuple[str, ...] = ()
    retiring: tuple[str, ...] = ()
    demands: tuple[Demand, ...] = ()
    reservation: Demand | None = None


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A demand that has no place now. Without `refusals`, what it needs is in use, not refused."""

    demand: Demand
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """The launches to make now, in order, and what they leave open.

    `planned` holds every launch the demand asks for; `refusals` says why one is not in `launches`.
    `used_nodes` are existing nodes that the demand counts on: they must not be ended as idle.
    `infeasible` fits no node type even when empty.
    """

    launches: tuple[Launch, ...]
    planned: tuple[Launch, ...]
    refusals: tuple[Refusal, ...]
    infeasible: tuple[Demand, ...]
    waiting: tuple[Unplaced, ...]
    used_nodes: frozenset[str]
    is_reservation_met: bool


def plan_placement(situation: Situation, limits: Limits) -> Placement:
    """Return what to launch for the situation under the limits."""
    offers = {offer.name: offer for offer in situation.offers}
    passes = _plan_passes(situation.offers)

    whole = [with_changes(node, free=node.total) for node in situation.nodes]
    retiring = situation.retiring
    reserved = Packing(whole, offers=offers, limits=limits, retiring=retiring)
    refusals = _launch_minimum(reserved, situation)
    reservation = [] if situation.reservation is None else [situation.reservation]
    for rules in passes:
        reservation = reserved.place_all(reservation, rules)

    packing = Packing(situation.nodes, offers=offers, limits=limits, retiring=retiring)
    for launch in reserved.launches:
        packing.launch(offers[launch.node_type], launch.cause)
    left = sorted(situation.demands, key=_rank_demand)
    for rules in passes:
        left = packing.place_all(left, rules)

    admission = admit(
        packing.launches,
        offers=offers,
        existing_types=[
            *(node.node_type for node in situation.nodes),
            *situation.leaving,
            *situation.retiring,
        ],
        limits=limits,
    )
    feasible, infeasible = _split_feasible(left, situation)
    return Placement(
        launches=admission.launches,
        planned=tuple(packing.launches),
        refusals=tuple(dict.fromkeys((*refusals, *admission.refusals))),
        infeasible=infeasible,
        waiting=tuple(Unplaced(d, packing.refusals.get(d.id, ())) for d in feasible),
        used_nodes=packing.used_nodes | reserved.used_nodes,
        is_reservation_met=not reservation,
    )


def _plan_passes(offers: Sequence[Offer]) -> tuple[Pass, Pass]:
    """Return the owned pass and the pass over everything.

    A type in doubt (its nodes don't join) keeps its pass: one node that fails to join must not send
    to a cloud what fits owned capacity. Doubt orders the types of one market (`Offer.tier`).
    """
    owned = tuple(offer for offer in offers if offer.is_owned)
    return (Pass(owned, owned_only=True), Pass(tuple(offers), owned_only=False))


def _launch_minimum(packing: Packing, situation: Situation) -> list[Refusal]:
    """Plan what each type's minimum lacks; return what forbids it."""
    existing = Counter(node.node_type for node in situation.nodes)
    refusals: list[Refusal] = []
    for offer in sorted(situation.offers, key=lambda offer: (*offer.tier, offer.name)):
        for _ in range(offer.nodes_min - existing[offer.name]):
            refusal = packing.launch(offer, f"the minimum of {offer.nodes_min}")
            if refusal is not None:
                refusals.append(refusal)
                break
    return refusals


def _split_feasible(
    demands: Sequence[Demand], situation: Situation
) -> tuple[tuple[Demand, ...], tuple[Demand, ...]]:
    """Return what some node could hold, and what none could; equal demand is judged once."""
    judged: dict[object, bool] = {}
    for demand in demands:
        shape = shape_of(demand)
        if shape not in judged:
            judged[shape] = _is_feasible(demand, situation)
    feasible = tuple(demand for demand in demands if judged[shape_of(demand)])
    return feasible, tuple(demand for demand in demands if not judged[shape_of(demand)])


def _is_feasible(demand: Demand, situation: Situation) -> bool:
    """Whether each part fits a node type or a node that exists, were it empty."""
    is_whole = demand.strategy == "STRICT_PACK"
    bundles = (merge_bundles(demand.bundles),) if is_whole else demand.bundles
    offers = [offer for offer in situation.offers if offer.nodes_max > 0]
    return all(
        any(fits_empty(offer, bundle) for offer in offers)
        or any(
            bundle.accepts(node.labels) and covers(node.total, bundle.resources)
            for node in situation.nodes
        )
        for bundle in bundles
    )


def _rank_demand(demand: Demand) -> tuple[object, ...]:
    """Sort key: what the fewest nodes can take first, then groups, then the largest."""
    hardest = min(rank_bundle(bundle) for bundle in demand.bundles)
    return (hardest[0], -len(demand.bundles), hardest, demand.id)


def explain_placement(placement: Placement) -> tuple[str, ...]:
    """Return what the placement does and leaves undone, one sentence each, for a person."""
    reasons = [
        f"launch {count} x {launch.node_type} for {launch.cause}"
        for launch, count in Counter(placement.launches).items()
    ]
    reasons += [refusal.text for refusal in placement.refusals]
    waiting: Counter[str] = Counter()
    for unplaced in placement.waiting:
        why = "; ".join(refusal.text for refusal in unplaced.refusals)
        waiting[
            f"{describe_demand(unplaced.demand)} waits: {why or 'all that fits is in use'}"
        ] += 1
    reasons += [f"{count} x {text}" for text, count in waiting.items()]
    infeasible = Counter(describe_demand(demand) for demand in placement.infeasible)
    reasons += [f"{count} x {text} fits no node type" for text, count in infeasible.items()]
    if not placement.is_reservation_met:
        reasons.append("the capacity asked for by request_resources() can't be had")
    return tuple(dict.fromkeys(reasons))


def find_blocked_sites(placement: Placement) -> dict[str, str]:
    """Return the sites that demand is bound to and that have no room for it, with the reason.

    What is infeasible says nothing about a site's room for anything else.
    """
    blocked: dict[str, str] = {}
    for unplaced in placement.waiting:
        why = "; ".join(refusal.text for refusal in unplaced.refusals) or "its nodes are in use"
        for site in _bound_sites(unplaced.demand):
            blocked.setdefault(site, why)
    return blocked


def _bound_sites(demand: Demand) -> list[str]:
    """Return the sites that a demand's bundles must be at, each named by a selector of its own."""
    terms = [
        term
        for bundle in demand.bundles
        if len(bundle.selectors) == 1
        for term in bundle.selectors[0]
    ]
    named = [t.values for t in terms if t.key == LABEL_SITE and not t.is_negated]
    return sorted({site for values in named if len(values) == 1 for site in values})
