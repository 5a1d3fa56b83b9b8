"""Ray's scheduling requests through our scheduler, with Ray's own messages and no Ray process."""

from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceConstraint,
    GangResourceRequest,
    NodeState,
    ResourceRequest,
)
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind, TerminationRequest

from autoscaling.ray_scheduler import LocalFirstScheduler
from cluster.config import parse_cluster_config

_IN = LabelSelectorOperator.LABEL_OPERATOR_IN
_PLACE = ResourceRequestUtil.PlacementConstraintType


def want(site: str | None = None, strategy: Any = None, **resources: float) -> ResourceRequest:
    selectors = [[("site", _IN, [site])]] if site else None
    constraints = [(strategy, "_PG_1", "")] if strategy else None
    return ResourceRequestUtil.make(resources or {"GPU": 1}, constraints, selectors)


def node(
    node_type: str,
    name: str,
    *,
    status: Any = Instance.RAY_RUNNING,
    idle_s: float = 0,
    kind: Any = NodeKind.WORKER,
    free: dict[str, float] | None = None,
    content: dict[str, Any],
) -> AutoscalerInstance:
    entry = content["available_node_types"].get(node_type, {"resources": {"CPU": 1}, "labels": {}})
    ray_node = None
    if status == Instance.RAY_RUNNING:
        ray_node = NodeState(
            node_id=name.encode(),
            total_resources=entry["resources"],
            available_resources=entry["resources"] | (free or {}),
            labels=entry["labels"],
            idle_duration_ms=int(idle_s * 1000),
        )
    return AutoscalerInstance(
        cloud_instance_id=name,
        ray_node=ray_node,
        im_instance=Instance(
            instance_id=name,
            cloud_instance_id=name,
            node_id=name,
            status=status,
            instance_type=node_type,
            node_kind=kind,
        ),
    )


class Bench:
    """One scheduler and the request it is asked with."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.scheduler = LocalFirstScheduler(lambda: parse_cluster_config(content))
        self.instances = [self.node("head", "head", kind=NodeKind.HEAD)]

    def node(self, node_type: str, name: str, **state: Any) -> AutoscalerInstance:
        return node(node_type, name, content=self.content, **state)

    def request(self, *tasks: ResourceRequest, **parts: Any) -> SchedulingRequest:
        config = AutoscalingConfig(self.content, skip_content_hash=True)
        return SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            idle_timeout_s=config.get_idle_timeout_s(),
            resource_requests=ResourceRequestUtil.group_by_count(list(tasks)),
            current_instances=self.instances,
            **parts,
        )

    def ask(self, *tasks: ResourceRequest, **parts: Any) -> SchedulingReply:
        return self.scheduler.schedule(self.request(*tasks, **parts))


@pytest.fixture
def bench(cluster_content: dict[str, Any]) -> Bench:
    return Bench(cluster_content)


def launched(reply: SchedulingReply) -> dict[str, int]:
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def group(*bundles: ResourceRequest) -> GangResourceRequest:
    return GangResourceRequest(requests=bundles)


def test_an_actor_with_one_gpu_goes_on_prem_where_stock_ray_launches_cloud(bench: Bench) -> None:
    stock = ResourceDemandScheduler().schedule(bench.request(want()))
    assert launched(stock) == {"cloud_gpu": 1}
    assert launched(bench.ask(want())) == {"onprem_gpu": 1}


def test_neighbours_in_the_same_tick_change_nothing_for_demand_that_fits_on_prem(
    bench: Bench,
) -> None:
    """A cloud pool's group, an infeasible request and one that costs 90 USD/h of 4."""
    reply = bench.ask(
        want(),
        want("mars"),
        want(GPU=1, dear=1),
        gang_resource_requests=[group(want("cloud", CPU=1), want("cloud"))],
    )
    assert launched(reply) == {"onprem_gpu": 1, "cloud_gpu": 1}
    assert reply.infeasible_resource_requests == [want("mars")]
    report = bench.scheduler.last_report
    assert report is not None
    assert any("91.5 $/h would be committed" in text for text in report.limits)


def test_with_on_prem_full_the_actor_goes_to_the_cloud(bench: Bench) -> None:
    bench.instances += [
        bench.node("onprem_gpu", "a", free={"GPU": 0}),
        bench.node("onprem_gpu", "b", free={"GPU": 0}),
    ]
    assert launched(bench.ask(want())) == {"cloud_gpu": 1}


def test_a_node_on_its_way_is_not_launched_twice(bench: Bench) -> None:
    bench.instances.append(bench.node("onprem_gpu", "a", status=Instance.QUEUED))
    assert launched(bench.ask(want())) == {}


def test_a_strict_pack_group_needs_one_node_and_a_strict_spread_group_two(bench: Bench) -> None:
    packed = group(want(None, _PLACE.AFFINITY), want(None, _PLACE.AFFINITY))
    assert launched(bench.ask(gang_resource_requests=[packed])) == {"onprem_gpu": 1}
    spread = group(want(None, _PLACE.ANTI_AFFINITY), want(None, _PLACE.ANTI_AFFINITY))
    assert launched(bench.ask(gang_resource_requests=[spread])) == {"onprem_gpu": 2}


def test_an_infeasible_group_is_reported_to_ray(bench: Bench) -> None:
    impossible = group(want("mars"))
    reply = bench.ask(gang_resource_requests=[impossible])
    assert reply.infeasible_gang_resource_requests == [impossible]


def test_request_resources_is_served_on_prem_first(bench: Bench) -> None:
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([want()] * 5)
    )
    assert launched(bench.ask(cluster_resource_constraints=[constraint])) == {"onprem_gpu": 2}


def test_an_idle_node_is_ended_and_one_that_is_needed_is_not(bench: Bench) -> None:
    bench.instances.append(bench.node("cloud_gpu", "c", idle_s=6))
    ended = bench.ask().to_terminate
    assert [(t.instance_id, t.cause) for t in ended] == [("c", TerminationRequest.Cause.IDLE)]
    assert bench.ask(want("cloud")).to_terminate == []


def test_an_idle_node_that_is_the_minimum_stays(bench: Bench) -> None:
    bench.content["available_node_types"]["onprem_gpu"]["min_workers"] = 1
    bench.instances.append(bench.node("onprem_gpu", "a", idle_s=1000))
    assert bench.ask().to_terminate == []


def test_the_minimum_is_launched(bench: Bench) -> None:
    bench.content["available_node_types"]["onprem_gpu"]["min_workers"] = 1
    assert launched(bench.ask()) == {"onprem_gpu": 1}


def test_a_lowered_limit_blocks_launches_and_ends_no_node(bench: Bench) -> None:
    """Stock Ray would end one of the two nodes at once, with its streams."""
    bench.instances += [bench.node("cloud_gpu", n, free={"GPU": 0}) for n in ("c", "d")]
    bench.content["available_node_types"]["cloud_gpu"]["max_workers"] = 1
    bench.content["max_workers"] = 1
    assert len(ResourceDemandScheduler().schedule(bench.request()).to_terminate) == 1
    reply = bench.ask(want("cloud"))
    assert reply.to_terminate == []
    assert launched(reply) == {}


def test_an_outdated_node_is_still_ended(bench: Bench) -> None:
    bench.instances.append(bench.node("onprem_gpu", "a"))
    request = bench.request()
    request.disable_launch_config_check = False
    ended = bench.scheduler.schedule(request).to_terminate
    assert [(t.instance_id, t.cause) for t in ended] == [("a", TerminationRequest.Cause.OUTDATED)]


def test_a_node_whose_type_left_the_file_breaks_nothing_and_ends_when_idle(bench: Bench) -> None:
    bench.instances.append(bench.node("removed", "r", idle_s=1000))
    with pytest.raises(KeyError):
        ResourceDemandScheduler().schedule(bench.request())
    assert [t.instance_id for t in bench.ask().to_terminate] == ["r"]


def test_a_node_on_its_way_out_still_costs_money(bench: Bench) -> None:
    """3.0 of 4.0 USD/h are committed while the first two end; the third waits for them."""
    bench.instances += [bench.node("cloud_gpu", n, status=Instance.TERMINATING) for n in ("c", "d")]
    assert launched(bench.ask(want("cloud"))) == {}
    bench.instances.pop()
    assert launched(bench.ask(want("cloud"))) == {"cloud_gpu": 1}


def test_an_owned_type_whose_node_did_not_join_still_comes_before_the_cloud(bench: Bench) -> None:
    """Ray's score stays below 1.0 for ten minutes; all demand would go to the cloud meanwhile."""
    reply = bench.ask(want(), recoverable_resource_availabilities={"onprem_gpu": 0.2})
    assert launched(reply) == {"onprem_gpu": 1}


def test_the_report_says_what_was_launched_and_for_what(bench: Bench) -> None:
    bench.ask(want("cloud"))
    report = bench.scheduler.last_report
    assert report is not None
    assert report.reasons == ("launch 1 x cloud_gpu for {GPU: 1} at site=cloud",)
    assert [(n.id, n.state, n.site) for n in report.nodes] == [("head", "HEAD", "onprem")]
    assert str(report.usd_per_hour) == "1.5"
