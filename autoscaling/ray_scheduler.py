"""Our scheduler in the seat of Ray's: Ray's requests in, our placement out.

Decides nothing itself: `autoscaling.placement` chooses the launches, `autoscaling.guard` limits
them, and Ray's own scheduler keeps what is not ours, the termination of idle and outdated nodes.
One of the three files that use Ray's private interface; checked against Ray 2.60.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.autoscaler.v2.instance_manager.common import InstanceUtil
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import (
    IResourceScheduler,
    ResourceDemandScheduler,
    SchedulingReply,
    SchedulingRequest,
)
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import (
    Instance,
    LaunchRequest,
    NodeKind,
    TerminationRequest,
)

from autoscaling.demand import Bundle, Demand, Node, Selector, Term
from autoscaling.guard import Limits, Offer, count_holdings
from autoscaling.placement import (
    Placement,
    Situation,
    explain_placement,
    find_blocked_sites,
    plan_placement,
)
from autoscaling.record import NodeSummary, SchedulerReport
from cluster.config import ClusterSettings

_log = logging.getLogger(__name__)

_GONE = (Instance.TERMINATED, Instance.ALLOCATION_FAILED)


class LocalFirstScheduler(IResourceScheduler):  # type: ignore[misc] # Ray ships no types
    """Launches by local-first placement; terminates as Ray does, limits excepted.

    Ray ends nodes at once, without draining, when a `max_workers` is lowered below what runs. That
    would cut streams, so the limits Ray is shown are never below what exists.
    """

    def __init__(
        self, read_settings: Callable[[], ClusterSettings], *, event_logger: Any = None
    ) -> None:
        self.last_report: SchedulerReport | None = None
        self._read_settings = read_settings
        self._event_logger = event_logger
        self._ray_scheduler = ResourceDemandScheduler()

    def schedule(self, request: SchedulingRequest) -> SchedulingReply:
        """Return what to launch and what to end for this tick."""
        settings = self._read_settings()
        asked = _Asked.read(request)
        situation = Situation(
            offers=tuple(_build_offers(request, settings)),
            nodes=tuple(_list_nodes(request, settings)),
            leaving=tuple(_list_leaving(request)),
            demands=tuple(asked.demands),
            reservation=asked.reservation,
        )
        placement = plan_placement(situation, _build_limits(request, settings))
        reply = self._build_reply(request, placement, asked)
        self._report(_summarise(request, settings, situation, placement))
        self._log_events(reply)
        return reply

    def _build_reply(
        self, request: SchedulingRequest, placement: Placement, asked: "_Asked"
    ) -> SchedulingReply:
        reply = self._ray_scheduler.schedule(_without_scaling(request))
        infeasible = {demand.id for demand in placement.infeasible}
        launched = [launch.node_type for launch in placement.launches]
        reply.to_launch = [
            LaunchRequest(instance_type=name, count=count, id=str(uuid.uuid4()))
            for name, count in Counter(launched).items()
        ]
        reply.to_terminate = [
            termination
            for termination in reply.to_terminate
            if termination.cause != TerminationRequest.Cause.IDLE
            or termination.instance_id not in placement.used_nodes
        ]
        for name in launched:
            for resource, amount in request.node_type_configs[name].resources.items():
                total = reply.cluster_resources.get(resource, 0.0)
                reply.cluster_resources[resource] = total + amount
        reply.infeasible_resource_requests = [
            raw for key, raw in asked.tasks.items() if key in infeasible
        ]
        reply.infeasible_gang_resource_requests = [
            raw for key, raw in asked.groups.items() if key in infeasible
        ]
        if not placement.is_reservation_met:
            reply.infeasible_cluster_resource_constraints = list(
                request.cluster_resource_constraints
            )
        return reply

    def _report(self, report: SchedulerReport) -> None:
        """Keep the report; log what changed since the last one."""
        known = self.last_report.reasons if self.last_report is not None else ()
        for reason in report.reasons:
            if reason not in known:
                _log.info("placement: %s", reason)
        self.last_report = report

    def _log_events(self, reply: SchedulingReply) -> None:
        """Tell the dashboard's event log, as Ray's own scheduler does."""
        if self._event_logger is None:
            return
        try:
            self._event_logger.log_cluster_scheduling_update(
                launch_requests=reply.to_launch,
                terminate_requests=reply.to_terminate,
                infeasible_requests=reply.infeasible_resource_requests,
                infeasible_gang_requests=reply.infeasible_gang_resource_requests,
                infeasible_cluster_resource_constraints=reply.infeasible_cluster_resource_constraints,
                cluster_resources=reply.cluster_resources,
            )
        except Exception:  # noqa: BLE001 - the event log is a courtesy; nodes must not wait for it
            _log.exception("writing the scheduling events failed")


@dataclass(frozen=True, slots=True)
class _Asked:
    """Ray's demand as ours, each entry findable by its id."""

    demands: tuple[Demand, ...]
    reservation: Demand | None
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]

    @classmethod
    def read(cls, request: SchedulingRequest) -> "_Asked":
        tasks = {
            f"task-{index}-{copy}": by_count.request
            for index, by_count in enumerate(request.resource_requests)
            for copy in range(by_count.count)
        }
        groups = {f"group-{index}": raw for index, raw in enumerate(request.gang_resource_requests)}
        demands = [Demand(key, (_read_bundle(raw),)) for key, raw in tasks.items()]
        demands += [_read_group(key, raw) for key, raw in groups.items()]
        return cls(
            demands=tuple(demand for demand in demands if demand.bundles),
            reservation=_read_reservation(request.cluster_resource_constraints),
            tasks=tasks,
            groups=groups,
        )


def _read_bundle(raw: Any) -> Bundle:
    resources = {name: amount for name, amount in raw.resources_bundle.items() if amount > 0}
    return Bundle(resources, tuple(_read_selector(selector) for selector in raw.label_selectors))


def _read_selector(raw: Any) -> Selector:
    return tuple(
        Term(
            key=term.label_key,
            values=frozenset(term.label_values),
            is_negated=term.operator == LabelSelectorOperator.LABEL_OPERATOR_NOT_IN,
        )
        for term in raw.label_constraints
    )


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


def _build_offers(request: SchedulingRequest, settings: ClusterSettings) -> Iterable[Offer]:
    """Yield the node types: counts and resources as Ray has them now, the rest from our section."""
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
        )


def _find_doubt(name: str, availabilities: Mapping[str, float]) -> str | None:
    """Return why a type is tried last in its market; Ray's score recovers over ten minutes."""
    score = availabilities.get(name, 1.0)
    return None if score >= 1.0 else f"a node of {name} did not join; availability {score:.2f}"


def _build_limits(request: SchedulingRequest, settings: ClusterSettings) -> Limits:
    return Limits(
        launches_per_tick=settings.limits.launches_per_tick,
        site_nodes_max={name: site.max_nodes for name, site in settings.sites.items()},
        cluster_nodes_max=request.max_num_nodes,
        usd_per_hour_max=settings.limits.usd_per_hour,
    )


def _list_nodes(request: SchedulingRequest, settings: ClusterSettings) -> Iterable[Node]:
    """Yield the nodes that take demand: running, or on their way to it."""
    for instance in request.current_instances:
        if not _is_usable(instance):
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


def _list_leaving(request: SchedulingRequest) -> Iterable[str]:
    """Yield the types of nodes that still fill a place and cost money, and take no demand."""
    for instance in request.current_instances:
        im_instance = instance.im_instance
        if im_instance is None or im_instance.status in _GONE or _is_usable(instance):
            continue
        yield im_instance.instance_type


def _is_usable(instance: Any) -> bool:
    """Whether the node runs Ray or may come to; as Ray's own scheduler judges it."""
    im_instance = instance.im_instance
    if im_instance is None or not InstanceUtil.is_ray_running_reachable(im_instance.status):
        return False
    return im_instance.status != Instance.RAY_RUNNING or instance.ray_node is not None


def _without_scaling(request: SchedulingRequest) -> SchedulingRequest:
    """Return the request that makes Ray's scheduler look for idle and outdated nodes only.

    No demand, and room for exactly the nodes that exist: nothing to launch, and no node too many.
    A running node whose type left the file gets a stand-in, else Ray's scheduler fails on it.
    """
    counts = Counter(
        i.im_instance.instance_type for i in request.current_instances if _is_usable(i)
    )
    types = {
        name: replace(
            ray_type,
            min_worker_nodes=min(ray_type.min_worker_nodes, counts[name]),
            max_worker_nodes=counts[name],
        )
        for name, ray_type in request.node_type_configs.items()
    }
    if request.disable_launch_config_check:
        for name in counts.keys() - types.keys():
            types[name] = NodeTypeConfig(
                name=name, min_worker_nodes=0, max_worker_nodes=counts[name]
            )
    return replace(
        request,
        node_type_configs=types,
        max_num_nodes=None,
        resource_requests=[],
        gang_resource_requests=[],
        cluster_resource_constraints=[],
    )


def _summarise(
    request: SchedulingRequest,
    settings: ClusterSettings,
    situation: Situation,
    placement: Placement,
) -> SchedulerReport:
    nodes = tuple(
        _summarise_node(instance.im_instance, settings)
        for instance in request.current_instances
        if instance.im_instance is not None and instance.im_instance.status not in _GONE
    )
    offers = {offer.name: offer for offer in situation.offers}
    launched = tuple(launch.node_type for launch in placement.launches)
    held = count_holdings(offers, (*(node.node_type for node in nodes), *launched))
    limits = [refusal.text for refusal in placement.refusals]
    limits += [r.text for unplaced in placement.waiting for r in unplaced.refusals]
    return SchedulerReport(
        nodes=nodes,
        launches=launched,
        reasons=explain_placement(placement),
        limits=tuple(dict.fromkeys(limits)),
        usd_per_hour=held.usd_per_hour,
        blocked_sites=find_blocked_sites(placement),
    )


def _summarise_node(im_instance: Any, settings: ClusterSettings) -> NodeSummary:
    ours = settings.node_types.get(im_instance.instance_type)
    is_head = im_instance.node_kind == NodeKind.HEAD
    return NodeSummary(
        id=im_instance.cloud_instance_id or im_instance.instance_id,
        node_type=im_instance.instance_type,
        site=ours.site if ours is not None else "unknown",
        is_owned=ours is not None and ours.market == "owned",
        state="HEAD" if is_head else Instance.InstanceStatus.Name(im_instance.status),
    )
