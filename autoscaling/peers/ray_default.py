"""Stock Ray: Ray Serve's default policy function and Ray's v2 scheduler, both called as they are.

Source: Ray 2.60.0, `ray.serve.autoscaling_policy.default_autoscaling_policy`, wrapped as Serve's
controller wraps it (default delays: 30 s up, 600 s down; a mean over 30 s), and
`ray.autoscaler.v2.scheduler.ResourceDemandScheduler`.

One deployment on any node: stock Ray knows no pool. Its target of ongoing requests is slots /
1.25, within Ray's advice (max_ongoing_requests 20 to 50 % above it); the default of 2 would be a
straw man. What is simulated around them: Serve's choice of victims, idle nodes going home, and
routing, which is ours for all policies. Ray's policy reads the wall clock; it is handed the
simulated one while it is called.

The only file of the simulator that imports Ray, and only once this peer is chosen.
"""

from collections import deque
from types import SimpleNamespace
from typing import Any

import ray.serve.autoscaling_policy as serve_policy
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from autoscaling.demand import Node, merge_bundles
from autoscaling.guard import Limits, Offer
from autoscaling.placement import Situation
from autoscaling.simulator.policy import Placed, Signals, Wish

_SLOTS_PER_TARGET = 1.25

# What `AutoscalingState.update_autoscaling_configs` makes of the policy: bounds and delays.
_SERVE_POLICY = serve_policy._apply_autoscaling_config(  # noqa: SLF001 - Serve's own wrapping
    serve_policy.default_autoscaling_policy
)


class RayDefault:
    """One Serve deployment with its default policy, and the stock scheduler for nodes."""

    name = "ray-default"
    check_s = 1.0
    binds_market = False

    def __init__(self) -> None:
        self._scheduler = ResourceDemandScheduler()
        self._state: dict[str, Any] = {}
        self._ongoing: deque[tuple[float, int]] = deque()
        self._target = 0

    def observe(self, signals: Signals) -> Wish:
        """Return how many replicas Ray's policy wants, wherever they go."""
        specs = [pool.spec for pool in signals.pools]
        replicas_min = max(1, sum(spec.min_replicas for spec in specs))
        replicas_max = sum(spec.max_replicas for spec in specs)
        target = min(spec.slots for spec in specs) / _SLOTS_PER_TARGET
        config = AutoscalingConfig(
            min_replicas=replicas_min, max_replicas=replicas_max, target_ongoing_requests=target
        )
        streams = sum(pool.streams for pool in signals.pools)
        self._ongoing.append((signals.now_s, streams + signals.waiting))
        while self._ongoing[0][0] <= signals.now_s - config.look_back_period_s:
            self._ongoing.popleft()
        self._target = self._target or replicas_min
        context = AutoscalingContext(
            deployment_id=DeploymentID(name="model", app_name=signals.app),
            deployment_name="model",
            app_name=signals.app,
            current_num_replicas=sum(pool.running for pool in signals.pools),
            target_num_replicas=self._target,
            running_replicas=[],
            total_num_requests=sum(count for _, count in self._ongoing) / len(self._ongoing),
            total_queued_requests=float(signals.waiting),
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=replicas_min,
            capacity_adjusted_max_replicas=replicas_max,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=signals.now_s,
            config=config,
        )
        wanted, self._state = _decide_at(signals.now_s, context)
        self._target = min(replicas_max, max(replicas_min, int(wanted)))
        return Wish(anywhere=self._target)

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return Ray's launches; of our limits only what Ray has itself, nodes per type, holds."""
        del limits
        if not situation.demands:
            return Placed()
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs={offer.name: _as_config(offer) for offer in situation.offers},
            resource_requests=ResourceRequestUtil.group_by_count(
                [
                    ResourceRequestUtil.make(dict(merge_bundles(demand.bundles).resources))
                    for demand in situation.demands
                ]
            ),
            current_instances=[_as_instance(node) for node in situation.nodes],
            cloud_resource_availabilities={
                offer.name: 0.0 if offer.held else 1.0 for offer in situation.offers
            },
        )
        reply = self._scheduler.schedule(request)
        names = [one.instance_type for one in reply.to_launch for _ in range(one.count)]
        held = {offer.name for offer in situation.offers if offer.held}
        return Placed(launches=tuple(name for name in names if name not in held))


def _decide_at(now_s: float, context: Any) -> tuple[float, dict[str, Any]]:
    """Call Ray's policy with its clock at `now_s`."""
    clock = serve_policy.time
    serve_policy.time = SimpleNamespace(time=lambda: now_s)
    try:
        wanted, state = _SERVE_POLICY(context)
    finally:
        serve_policy.time = clock
    return wanted, state


def _as_config(offer: Offer) -> Any:
    return NodeTypeConfig(
        name=offer.name,
        min_worker_nodes=offer.nodes_min,
        max_worker_nodes=offer.nodes_max,
        resources=dict(offer.resources),
        labels=dict(offer.labels),
    )


def _as_instance(node: Node) -> Any:
    return AutoscalerInstance(
        cloud_instance_id=node.id,
        ray_node=NodeState(
            node_id=node.id.encode(),
            total_resources=dict(node.total),
            available_resources=dict(node.free),
            labels=dict(node.labels),
        ),
        im_instance=Instance(
            instance_id=node.id,
            cloud_instance_id=node.id,
            node_id=node.id,
            status=Instance.RAY_RUNNING,
            instance_type=node.node_type,
            node_kind=NodeKind.WORKER,
        ),
    )
