"""Our scheduler in the seat of Ray's: Ray's requests in, our placement out.

Decides nothing itself: `autoscaling.placement` chooses the launches, `autoscaling.guard` limits
them, `autoscaling.releases` chooses who goes home among the nodes that Ray's own scheduler finds
idle or outdated. `autoscaling.ray_demand` translates what Ray asks. Both use Ray's private
interface; checked against Ray 2.60.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import (
    IResourceScheduler,
    ResourceDemandScheduler,
    SchedulingReply,
    SchedulingRequest,
)
from ray.core.generated.instance_manager_pb2 import (
    Instance,
    LaunchRequest,
    NodeKind,
    TerminationRequest,
)

from autoscaling.facts import SiteFacts
from autoscaling.guard import count_holdings
from autoscaling.placement import (
    Placement,
    Situation,
    explain_placement,
    find_blocked_sites,
    plan_placement,
)
from autoscaling.ray_demand import (
    Asked,
    build_limits,
    build_offers,
    is_there,
    is_usable,
    ledger_id,
    list_leaving,
    list_nodes,
    list_retiring,
)
from autoscaling.record import NodeSummary, SchedulerReport
from autoscaling.releases import Homecoming, Resident, decide_releases
from cluster.config import ClusterSettings

_log = logging.getLogger(__name__)

# A node that is being emptied counts as empty once it has been idle for this long.
_EMPTY_S = 1.0
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class _Tick:
    """What one tick looks at."""

    request: SchedulingRequest
    settings: ClusterSettings
    facts: SiteFacts
    asked: Asked


class LocalFirstScheduler(IResourceScheduler):  # type: ignore[misc] # Ray ships no types
    """Launches by local-first placement; terminates as Ray does, limits excepted.

    Ray ends nodes at once, without draining, when a `max_workers` is lowered below what runs. That
    would cut streams, so the limits Ray is shown are never below what exists. `on_report` is told
    what each tick saw and decided; it must not block.
    """

    def __init__(
        self,
        read_settings: Callable[[], ClusterSettings],
        *,
        read_facts: Callable[[], SiteFacts] = SiteFacts,
        on_report: Callable[[SchedulerReport], None] = lambda _: None,
        event_logger: Any = None,
    ) -> None:
        self.last_report: SchedulerReport | None = None
        self._read_settings = read_settings
        self._read_facts = read_facts
        self._on_report = on_report
        self._event_logger = event_logger
        self._ray_scheduler = ResourceDemandScheduler()

    def schedule(self, request: SchedulingRequest) -> SchedulingReply:
        """Return what to launch and what to end for this tick."""
        began_s = time.monotonic()
        tick = _Tick(request, self._read_settings(), self._read_facts(), Asked.read(request))
        situation = Situation(
            offers=tuple(build_offers(request, tick.settings, tick.facts)),
            nodes=tuple(list_nodes(request, tick.settings, tick.facts)),
            leaving=tuple(list_leaving(request, tick.facts)),
            retiring=tuple(list_retiring(request, tick.facts)),
            demands=tuple(tick.asked.demands),
            reservation=tick.asked.reservation,
        )
        placement = plan_placement(situation, build_limits(request, tick.settings, tick.facts))
        reply = self._build_reply(request, placement, tick.asked)
        homecoming = _choose_releases(tick, placement, reply.to_terminate)
        reply.to_terminate = _order_terminations(tick, homecoming, reply.to_terminate)
        report = replace(
            _summarise(tick, situation, placement, homecoming),
            released=_list_released(request, reply.to_terminate),
        )
        self._report(replace(report, tick_s=time.monotonic() - began_s))
        self._log_events(reply)
        return reply

    def _build_reply(
        self, request: SchedulingRequest, placement: Placement, asked: Asked
    ) -> SchedulingReply:
        reply = self._ray_scheduler.schedule(_without_scaling(request))
        infeasible = {demand.id for demand in placement.infeasible}
        launched = [launch.node_type for launch in placement.launches]
        reply.to_launch = [
            LaunchRequest(instance_type=name, count=count, id=str(uuid.uuid4()))
            for name, count in Counter(launched).items()
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
        """Keep the report and pass it on; log what changed since the last one."""
        known = self.last_report.reasons if self.last_report is not None else ()
        for reason in report.reasons:
            if reason not in known:
                _log.info("placement: %s", reason)
        self.last_report = report
        self._on_report(report)

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


def _choose_releases(
    tick: _Tick, placement: Placement, found: Sequence[TerminationRequest]
) -> Homecoming:
    """Return who goes home of those Ray's scheduler found idle and those being emptied."""
    overdue = {t.instance_id for t in found if t.cause == TerminationRequest.Cause.IDLE}
    residents = [
        _describe_resident(instance, tick, placement, overdue)
        for instance in tick.request.current_instances
        if is_usable(instance) and instance.im_instance.node_kind != NodeKind.HEAD
    ]
    return decide_releases(
        residents, now_s=tick.facts.read_s, lease_s_min=tick.settings.limits.lease_s_min
    )


def _describe_resident(
    instance: Any, tick: _Tick, placement: Placement, overdue: set[str]
) -> Resident:
    im_instance, ray_node = instance.im_instance, instance.ray_node
    ours = tick.settings.node_types.get(im_instance.instance_type)
    fact = tick.facts.nodes.get(ledger_id(instance))
    idle_s = ray_node.idle_duration_ms / _MS_PER_S if ray_node is not None else None
    return Resident(
        id=im_instance.instance_id,
        node_type=im_instance.instance_type,
        is_owned=ours is not None and ours.market == "owned",
        usd_per_hour=None if ours is None else ours.usd_per_hour,
        is_idle=idle_s is None or idle_s >= _EMPTY_S,
        is_overdue=im_instance.instance_id in overdue,
        is_needed=im_instance.instance_id in placement.used_nodes,
        is_draining=tick.facts.is_draining(ledger_id(instance)),
        launched_s=None if fact is None else fact.launched_s,
    )


def _order_terminations(
    tick: _Tick, homecoming: Homecoming, found: Sequence[TerminationRequest]
) -> list[TerminationRequest]:
    """Return outdated nodes as Ray found them, then those that go home, in their order."""
    idle = {t.instance_id: t for t in found if t.cause == TerminationRequest.Cause.IDLE}
    others = [t for t in found if t.cause != TerminationRequest.Cause.IDLE]
    instances = {
        instance.im_instance.instance_id: instance
        for instance in tick.request.current_instances
        if instance.im_instance is not None
    }
    # Those being emptied aren't idle for long enough for Ray's scheduler to have found them.
    return others + [idle.get(key) or _terminate(instances[key]) for key in homecoming.releases]


def _list_released(
    request: SchedulingRequest, terminations: Sequence[TerminationRequest]
) -> tuple[str, ...]:
    """Return the nodes that are ended on our word, by the ledger's ids."""
    ended = {termination.instance_id for termination in terminations}
    return tuple(
        ledger_id(instance)
        for instance in request.current_instances
        if instance.im_instance is not None and instance.im_instance.instance_id in ended
    )


def _terminate(instance: Any) -> TerminationRequest:
    im_instance, ray_node = instance.im_instance, instance.ray_node
    return TerminationRequest(
        id=str(uuid.uuid4()),
        instance_id=im_instance.instance_id,
        ray_node_id=im_instance.node_id,
        # Ray drains a node for this cause only; one that has work again refuses.
        cause=TerminationRequest.Cause.IDLE,
        instance_type=im_instance.instance_type,
        instance_status=im_instance.status,
        idle_duration_ms=0 if ray_node is None else ray_node.idle_duration_ms,
        details="drained by an operator and idle",
    )


def _without_scaling(request: SchedulingRequest) -> SchedulingRequest:
    """Return the request that makes Ray's scheduler look for idle and outdated nodes only.

    No demand, and room for exactly the nodes that exist: nothing to launch, and no node too many.
    A running node whose type left the file gets a stand-in, else Ray's scheduler fails on it.
    """
    counts = Counter(i.im_instance.instance_type for i in request.current_instances if is_usable(i))
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
    tick: _Tick, situation: Situation, placement: Placement, homecoming: Homecoming
) -> SchedulerReport:
    nodes = tuple(
        _summarise_node(instance, tick)
        for instance in tick.request.current_instances
        if is_there(instance)
    )
    offers = {offer.name: offer for offer in situation.offers}
    launched = tuple(launch.node_type for launch in placement.launches)
    held = count_holdings(offers, (*(node.node_type for node in nodes), *launched))
    waiting = [refusal for unplaced in placement.waiting for refusal in unplaced.refusals]
    refusals = [*placement.refusals, *waiting]
    texts = (*tick.facts.warnings, *(refusal.text for refusal in refusals))
    return SchedulerReport(
        nodes=nodes,
        launches=launched,
        reasons=(*explain_placement(placement), *homecoming.kept),
        limits=tuple(dict.fromkeys(texts)),
        refusals=dict(Counter(refusal.limit for refusal in refusals)),
        usd_per_hour=held.usd_per_hour,
        blocked_sites=find_blocked_sites(placement),
    )


def _summarise_node(instance: Any, tick: _Tick) -> NodeSummary:
    im_instance = instance.im_instance
    ours = tick.settings.node_types.get(im_instance.instance_type)
    is_head = im_instance.node_kind == NodeKind.HEAD
    node_id = ledger_id(instance)
    fact = tick.facts.nodes.get(node_id)
    return NodeSummary(
        id=node_id,
        node_type=im_instance.instance_type,
        site=ours.site if ours is not None else "unknown",
        is_owned=ours is not None and ours.market == "owned",
        state="HEAD" if is_head else Instance.InstanceStatus.Name(im_instance.status),
        ray_id=im_instance.node_id if instance.ray_node is not None else None,
        cordon=None if fact is None or fact.cordon is None else fact.cordon.value,
        is_noticed=node_id in tick.facts.noticed,
    )
