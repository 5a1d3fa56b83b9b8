"""Ray's scheduling request as the values that our decisions take.

Translates only. One of the files that use Ray's private interface; checked against Ray 2.60.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.autoscaler.v2.instance_manager.common import InstanceUtil
from ray.autoscaler.v2.scheduler import SchedulingRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance

from autoscaling.demand import Bundle, Demand, Node, Selector, Term
from autoscaling.facts import SiteFacts
from autoscaling.guard import Limits, Offer
from cluster.budget import add_launches
from cluster.config import ClusterSettings

# What Ray adds to the request of a task or actor that runs inside a placement group.
_BUNDLE_OF_GROUP = "bundle_group_"
_GONE = (Instance.TERMINATED, Instance.ALLOCATION_FAILED)


@dataclass(frozen=True, slots=True)
class Asked:
    """Ray's demand as ours, each entry findable by its id."""

    demands: tuple[Demand, ...]
    reservation: Demand | None
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]

    @classmethod
    def read(cls, request: SchedulingRequest) -> "Asked":
        """What a request asks for."""
        tasks: dict[str, Any] = {}
        demands: list[Demand] = []
        for index, by_count in enumerate(request.resource_requests):
            if _is_inside_group(by_count.request):
                continue
            bundles = (_read_bundle(by_count.request),)
            keys = [f"task-{index}-{copy}" for copy in range(by_count.count)]
            tasks |= dict.fromkeys(keys, by_count.request)
            demands += [Demand(key, bundles) for key in keys]
        groups = {f"group-{index}": raw for index, raw in enumerate(request.gang_resource_requests)}
        demands += [_read_group(key, raw) for key, raw in groups.items()]
        return cls(
            demands=tuple(demand for demand in demands if demand.bundles),
            reservation=_read_reservation(request.cluster_resource_constraints),
            tasks=tasks,
            groups=groups,
        )


def _is_inside_group(raw: Any) -> bool:
    """Whether a placement group has room for it: only the group itself asks for nodes."""
    return any(name.startswith(_BUNDLE_OF_GROUP) for name in raw.resources_bundle)


def _read_bundle(raw: Any) -> Bundle:
    resources = {name: amount for name, amount in raw.resources_bundle.items() if amount > 0}
    return Bundle(resources, tuple(_read_selector(selector) for selector in raw.label_selectors))


def _read_selector(raw: Any) -> Selector:
    """Return the terms by key: Ray sends equal selectors in changing orders."""
    terms = [
        Term(
            key=term.label_key,
            values=frozenset(term.label_values),
            is_negated=term.operator == LabelSelectorOperator.LABEL_OPERATOR_NOT_IN,
        )
        for term in raw.label_constraints
    ]
    return tuple(sorted(terms, key=lambda term: (term.key, sorted(term.values))))


def _read_group(key: str, raw: Any) -> Demand:
    """Return a placement group. Ray sends its strategy as constraints on the bundles.

    Of several `bundle_selectors` Ray itself schedules by the first.
    """
    requests = raw.bundle_selectors[0].resource_requests if raw.bundle_selectors else raw.requests
    bundles = tuple(_read_bundle(request) for request in requests)
    for request in requests:
        for constraint in request.placement_constraints:
            if constraint.HasField("anti_affinity"):
                return Demand(key, bundles, "STRICT_SPREAD", constraint.anti_affinity.label_name)
            if constraint.HasField("affinity"):
                return Demand(key, bundles, "STRICT_PACK", constraint.affinity.label_name)
    return Demand(key, bundles)


def _read_reservation(constraints: Sequence[Any]) -> Demand | None:
    """Return what `request_resources` asks to exist; Ray keeps one such request at a time."""
    bundles = tuple(
        _read_bundle(by_count.request)
        for constraint in constraints
        for by_count in constraint.resource_requests
        for _ in range(by_count.count)
    )
    return Demand("reservation", bundles) if bundles else None


def build_offers(
    request: SchedulingRequest, settings: ClusterSettings, facts: SiteFacts
) -> Iterable[Offer]:
    """Yield the node types: counts and resources as Ray has them now, the rest from our side."""
    for name, ray_type in request.node_type_configs.items():
        ours = settings.node_types.get(name)
        if ours is None:
            continue
        yield Offer(
            name=name,
            site=ours.site,
            market=ours.market,
            resources=dict(ray_type.resources),
            labels=dict(ray_type.labels),
            usd_per_hour=ours.usd_per_hour,
            nodes_min=ray_type.min_worker_nodes,
            nodes_max=ray_type.max_worker_nodes,
            doubt=_find_doubt(name, request.recoverable_resource_availabilities),
            held=facts.holds.get(name),
        )


def _find_doubt(name: str, availabilities: Mapping[str, float]) -> str | None:
    """Return why a type is tried last in its market; Ray's score recovers over ten minutes."""
    score = availabilities.get(name, 1.0)
    return None if score >= 1.0 else f"a node of {name} did not join; availability {score:.2f}"


def build_limits(request: SchedulingRequest, settings: ClusterSettings, facts: SiteFacts) -> Limits:
    """Return what may be launched. What Ray has asked for and the ledger lacks is committed too."""
    budget = facts.budget
    if budget is not None:
        in_flight = [i.im_instance for i in request.current_instances if _is_unwritten(i)]
        kinds = [settings.node_types.get(one.instance_type) for one in in_flight]
        budget = add_launches(budget, [kind.usd_per_hour if kind else None for kind in kinds])
    return Limits(
        launches_per_tick=settings.limits.launches_per_tick,
        site_nodes_max={name: site.max_nodes for name, site in settings.sites.items()},
        cluster_nodes_max=request.max_num_nodes,
        usd_per_hour_max=settings.limits.usd_per_hour,
        budget=budget,
    )


def list_nodes(
    request: SchedulingRequest, settings: ClusterSettings, facts: SiteFacts
) -> Iterable[Node]:
    """Yield the nodes that take demand: running, or on their way to it."""
    for instance in request.current_instances:
        if not is_usable(instance) or facts.is_retiring(ledger_id(instance)):
            continue
        im_instance, ray_node = instance.im_instance, instance.ray_node
        ours = settings.node_types.get(im_instance.instance_type)
        is_running = im_instance.status == Instance.RAY_RUNNING
        configured = request.node_type_configs.get(im_instance.instance_type)
        if not is_running and configured is None:
            continue
        yield Node(
            id=im_instance.instance_id,
            node_type=im_instance.instance_type,
            is_owned=ours is not None and ours.market == "owned",
            total=dict(ray_node.total_resources if is_running else configured.resources),
            free=dict(ray_node.available_resources if is_running else configured.resources),
            labels=dict(ray_node.labels if is_running else configured.labels),
            groups=frozenset(ray_node.dynamic_labels) if is_running else frozenset(),
        )


def list_leaving(request: SchedulingRequest, facts: SiteFacts) -> Iterable[str]:
    """Yield the types of nodes that still fill a place and cost money, and take no demand."""
    for instance in request.current_instances:
        if not is_there(instance) or facts.is_retiring(ledger_id(instance)):
            continue
        if not is_usable(instance):
            yield instance.im_instance.instance_type


def list_retiring(request: SchedulingRequest, facts: SiteFacts) -> Iterable[str]:
    """Yield the types of nodes that an operator or their site wants emptied, at their own pace."""
    for instance in request.current_instances:
        if is_there(instance) and facts.is_retiring(ledger_id(instance)):
            yield instance.im_instance.instance_type


def ledger_id(instance: Any) -> str:
    """Return the id that the ledger knows a node by, Ray's own for one it doesn't know yet."""
    im_instance = instance.im_instance
    return str(im_instance.cloud_instance_id or im_instance.instance_id)


def is_there(instance: Any) -> bool:
    """Whether the node exists or is asked for."""
    return instance.im_instance is not None and instance.im_instance.status not in _GONE


def is_usable(instance: Any) -> bool:
    """Whether the node runs Ray or may come to; as Ray's own scheduler judges it."""
    im_instance = instance.im_instance
    if im_instance is None or not InstanceUtil.is_ray_running_reachable(im_instance.status):
        return False
    return im_instance.status != Instance.RAY_RUNNING or instance.ray_node is not None


def _is_unwritten(instance: Any) -> bool:
    return is_there(instance) and not instance.im_instance.cloud_instance_id
