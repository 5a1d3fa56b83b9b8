"""What a cluster would launch or release now, what that costs, and why. Pure: `infra.look` looks.

The launches come from the decision that the autoscaler itself uses (`autoscaling.placement`), asked
for what must exist whatever the load: the head and every `min_workers`. Demand that waits is known
to the autoscaler only; its own reasons stand beside the plan when the head answers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from autoscaling.demand import Node
from autoscaling.guard import Held, Limits, Offer
from autoscaling.placement import Placement, Situation, plan_placement
from cluster.backend_settings import SshBackendSettings
from cluster.budget import BudgetStatus
from cluster.config import ClusterSettings
from cluster.model import Cordon, Instance, InstanceState, NodeTypeName, SiteName

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class SiteLook:
    """What a site said. `error` = it couldn't be asked, and then nothing is known about it."""

    instances: tuple[Instance, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything a plan may know.

    `nodes_max` is the cluster's max_workers and the head. `budget` and `held` come from a ledger,
    `record` from the head; None and empty = not to be had.
    """

    sites: Mapping[SiteName, SiteLook]
    nodes_max: int
    held: Mapping[NodeTypeName, Held] = field(default_factory=dict)
    budget: BudgetStatus | None = None
    record: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One node to come or go. `usd_per_hour` None = unknown; it is not negative for a release."""

    action: Literal["launch", "release"]
    node_type: NodeTypeName
    site: SiteName
    usd_per_hour: Decimal | None
    why: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """What would be done now, what isn't done and why, and what was not to be learnt.

    Money in $/h; None = unknown, because a price is.
    """

    changes: tuple[Change, ...]
    refusals: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    nodes: Mapping[SiteName, int]
    usd_per_hour_now: Decimal | None
    usd_per_hour_after: Decimal | None

    @property
    def is_complete(self) -> bool:
        """Whether every site answered."""
        return all(count >= 0 for count in self.nodes.values())


UNKNOWN_COUNT = -1
"""How many nodes a site has that couldn't be asked."""


def plan_changes(settings: ClusterSettings, observed: Observed) -> ChangePlan:
    """Return what would change now."""
    instances = [one for look in observed.sites.values() for one in look.instances]
    releases = tuple(_list_releases(settings, instances))
    leaving = {change.node for change in releases}
    staying = [one for one in instances if one.spec.node_id not in leaving]
    placement = _place(settings, observed, staying, instances)
    launches = tuple(_list_launches(settings, observed, staying, placement))
    now = _sum(_list_prices(settings, observed))
    deltas = [change.usd_per_hour for change in launches]
    deltas += [None if c.usd_per_hour is None else -c.usd_per_hour for c in releases]
    return ChangePlan(
        changes=(*launches, *releases),
        refusals=tuple(refusal.text for refusal in placement.refusals),
        reasons=tuple(_list_reasons(observed.record)),
        notes=(*observed.notes, *_list_silent(observed)),
        nodes={
            site: UNKNOWN_COUNT if look.error else len(look.instances)
            for site, look in observed.sites.items()
        },
        usd_per_hour_now=now,
        usd_per_hour_after=_sum([now, *deltas]),
    )


def _list_releases(settings: ClusterSettings, instances: Sequence[Instance]) -> Iterator[Change]:
    for one in instances:
        why = _find_reason_to_release(settings, one)
        if why is not None:
            yield Change(
                action="release",
                node_type=one.spec.node_type,
                site=one.spec.site,
                usd_per_hour=_price(settings, one.spec.node_type),
                why=why,
                node=one.spec.node_id,
            )


def _find_reason_to_release(settings: ClusterSettings, one: Instance) -> str | None:
    node_type = settings.node_types.get(one.spec.node_type)
    if node_type is None or node_type.site != one.spec.site:
        return "its node type left the cluster file"
    backend = settings.sites[one.spec.site].backend
    if isinstance(backend, SshBackendSettings) and one.offering not in {None, *backend.hosts}:
        return f"host {one.offering} left the cluster file"
    if one.cordon is Cordon.DRAINING:
        return "an operator drains it; it goes when nothing is left on it"
    if one.state is InstanceState.STOPPED and not one.spec.is_head:
        return "it serves no more: its machine is stopped or its Ray ended"
    return None


def _place(
    settings: ClusterSettings,
    observed: Observed,
    staying: Sequence[Instance],
    instances: Sequence[Instance],
) -> Placement:
    """Return where the autoscaler's own decision would put the nodes that must exist."""
    stayed = {one.spec.node_id for one in staying}
    situation = Situation(
        offers=tuple(_list_offers(settings, observed)),
        nodes=tuple(_build_node(settings, one) for one in staying if one.cordon is None),
        leaving=tuple(o.spec.node_type for o in instances if o.spec.node_id not in stayed),
        retiring=tuple(one.spec.node_type for one in staying if one.cordon is not None),
    )
    limits = Limits(
        # The plan shows all that would come, not the first tick's share of it.
        launches_per_tick=max(1, observed.nodes_max),
        site_nodes_max={name: site.max_nodes for name, site in settings.sites.items()},
        cluster_nodes_max=observed.nodes_max,
        usd_per_hour_max=settings.limits.usd_per_hour,
        budget=observed.budget,
    )
    return plan_placement(situation, limits)


def _list_offers(settings: ClusterSettings, observed: Observed) -> Iterator[Offer]:
    """Yield the types of sites that answered: what others have isn't known."""
    for name, kind in settings.node_types.items():
        if observed.sites[kind.site].error is None:
            yield Offer(
                name=name,
                site=kind.site,
                market=kind.market,
                resources=kind.resources,
                labels=kind.labels,
                usd_per_hour=kind.usd_per_hour,
                nodes_min=kind.min_nodes,
                nodes_max=kind.max_nodes,
                held=observed.held.get(name),
            )


def _build_node(settings: ClusterSettings, one: Instance) -> Node:
    kind = settings.node_types[one.spec.node_type]
    return Node(
        id=one.spec.node_id,
        node_type=kind.name,
        is_owned=kind.market == "owned",
        total=kind.resources,
        free=kind.resources,
        labels=kind.labels,
        groups=frozenset(),
    )


def _list_launches(
    settings: ClusterSettings,
    observed: Observed,
    staying: Sequence[Instance],
    placement: Placement,
) -> Iterator[Change]:
    head = settings.node_types[settings.head_node_type]
    has_head = any(one.spec.is_head for one in staying)
    if not has_head and observed.sites[head.site].error is None:
        yield Change("launch", head.name, head.site, head.usd_per_hour, "the cluster has no head")
    for launch in placement.launches:
        kind = settings.node_types[NodeTypeName(launch.node_type)]
        yield Change("launch", kind.name, kind.site, kind.usd_per_hour, launch.cause)


def _list_reasons(record: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what the autoscaler itself says, if it was asked."""
    for key in ("reasons", "unmet", "limits"):
        yield from (str(text) for text in (record or {}).get(key, ()))


def _list_silent(observed: Observed) -> Iterator[str]:
    for site, look in observed.sites.items():
        if look.error is not None:
            yield f"site {site} couldn't be asked, so nothing is planned there: {look.error}"
        doubtful = Counter(one.is_silent for one in look.instances)[True]
        if doubtful:
            yield f"site {site}: {doubtful} of its machines didn't answer; shown as last seen"


def _list_prices(settings: ClusterSettings, observed: Observed) -> Iterator[Decimal | None]:
    """Yield what every node costs, and unknown for a site that charges and couldn't be asked."""
    for site, look in observed.sites.items():
        if look.error is not None and not settings.sites[site].owned:
            yield None
        yield from (_price(settings, one.spec.node_type) for one in look.instances)


def _price(settings: ClusterSettings, node_type: NodeTypeName) -> Decimal | None:
    kind = settings.node_types.get(node_type)
    return None if kind is None else kind.usd_per_hour


def _sum(prices: Sequence[Decimal | None] | Iterator[Decimal | None]) -> Decimal | None:
    total = _ZERO
    for price in prices:
        if price is None:
            return None
        total += price
    return total
