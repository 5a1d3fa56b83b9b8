"""Ray's scheduling requests through our scheduler, with Ray's own messages and no Ray process."""

from decimal import Decimal
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

from autoscaling.facts import NodeFact, SiteFacts
from autoscaling.guard import Held
from autoscaling.ray_scheduler import LocalFirstScheduler
from cluster.budget import MoneyLimits, SpendNow, budget_status
from cluster.config import parse_cluster_config
from cluster.model import Cordon

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
        self.facts = SiteFacts()
        self.scheduler = LocalFirstScheduler(
            lambda: parse_cluster_config(content), read_facts=lambda: self.facts
        )
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


def test_equal_selectors_in_another_order_are_one_demand_with_one_reason(bench: Bench) -> None:
    """Ray lists a selector's terms in changing orders; reasons must not change with them."""
    terms = [("site", _IN, ["mars"]), ("accelerator", _IN, ["cpu"])]
    texts = []
    for order in (terms, terms[::-1]):
        bench.ask(ResourceRequestUtil.make({"GPU": 1}, None, [order]))
        assert bench.scheduler.last_report is not None
        texts.append(bench.scheduler.last_report.reasons)
    assert texts[0] == texts[1]
    assert texts[0] == ("1 x {GPU: 1} at accelerator=cpu and site=mars fits no node type",)


def test_what_runs_inside_a_placement_group_asks_for_no_node_of_its_own(bench: Bench) -> None:
    """The group's bundle does; the actor inside would fit no node type."""
    inside = {"GPU_group_0_ab01": 1, "bundle_group_0_ab01": 0.001, "bundle_group_ab01": 0.001}
    reply = bench.ask(want(**inside))
    assert launched(reply) == {}
    assert list(reply.infeasible_resource_requests) == []
    assert bench.scheduler.last_report is not None
    assert bench.scheduler.last_report.reasons == ()


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
    assert bench.scheduler.last_report is not None
    assert bench.scheduler.last_report.released == ("c",)
    assert bench.ask(want("cloud")).to_terminate == []
    assert bench.scheduler.last_report.released == ()


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


def test_a_sold_out_type_is_named_with_its_reason_and_the_next_one_is_used(bench: Bench) -> None:
    """The owned type is at its maximum; the cheap cloud type is held, so the dear one is asked."""
    bench.content["provider"]["limits"]["usd_per_hour"] = 100
    why = "is sold out until 12:00:00 UTC: InsufficientInstanceCapacity"
    bench.facts = SiteFacts(holds={"cloud_gpu": Held("sold_out", why)})
    assert launched(bench.ask(want("cloud"))) == {"cloud_dear": 1}
    bench.facts = SiteFacts(holds=dict.fromkeys(("cloud_gpu", "cloud_dear"), Held("sold_out", why)))
    assert launched(bench.ask(want("cloud"))) == {}
    report = bench.scheduler.last_report
    assert report is not None
    assert f"cloud_gpu {why}" in report.limits
    assert report.refusals == {"sold_out": 2}


def test_a_spent_month_stops_the_cloud_is_reported_and_leaves_on_prem_alone(bench: Bench) -> None:
    """10.2 of 10 USD are spent: the ledger says so to whoever asks, a new process too."""
    limits = MoneyLimits(usd_per_month=Decimal(10))
    spent = budget_status(SpendNow(now_s=0.0, month_usd=Decimal("10.2")), limits)
    bench.facts = SiteFacts(budget=spent, warnings=("usd_per_month is reached",))
    assert launched(bench.ask(want("cloud"), want("onprem"))) == {"onprem_gpu": 1}
    report = bench.scheduler.last_report
    assert report is not None
    assert report.limits[0] == "usd_per_month is reached"
    assert any("10.20 $ are spent" in text for text in report.limits)


def test_launches_on_their_way_to_the_ledger_count_against_the_day(bench: Bench) -> None:
    """A lease of an hour at 1.5 USD; 2 USD are left: one queued node leaves no room for another."""
    limits = MoneyLimits(usd_per_day=Decimal(2), lease_s_min=3600.0)
    bench.facts = SiteFacts(budget=budget_status(SpendNow(now_s=0.0), limits))
    assert launched(bench.ask(want("cloud"))) == {"cloud_gpu": 1}
    queued = bench.node("cloud_gpu", "q", status=Instance.QUEUED)
    queued.im_instance.cloud_instance_id = ""
    bench.instances.append(queued)
    assert launched(bench.ask(want("cloud"), want("cloud"))) == {}


@pytest.mark.parametrize("cordon", list(Cordon))
def test_a_cordoned_node_takes_no_demand_and_keeps_its_place(bench: Bench, cordon: Cordon) -> None:
    """One of two on-prem nodes is cordoned, four GPUs free: the fifth task goes to the cloud."""
    bench.instances += [bench.node("onprem_gpu", name) for name in ("a", "b")]
    assert launched(bench.ask(*[want()] * 5)) == {}
    bench.facts = SiteFacts(nodes={"b": NodeFact(0.0, cordon)})
    assert launched(bench.ask(*[want()] * 5)) == {"cloud_gpu": 1}


def test_a_noticed_node_is_replaced_before_it_is_gone(bench: Bench) -> None:
    bench.instances.append(bench.node("cloud_gpu", "c"))
    assert launched(bench.ask(want("cloud"))) == {}
    bench.facts = SiteFacts(noticed=frozenset({"c"}))
    assert launched(bench.ask(want("cloud"))) == {"cloud_gpu": 1}
    report = bench.scheduler.last_report
    assert report is not None
    assert [node.is_noticed for node in report.nodes] == [False, True]


def test_a_draining_node_goes_as_soon_as_it_is_idle_and_not_before(bench: Bench) -> None:
    bench.instances.append(bench.node("onprem_gpu", "a", idle_s=0))
    bench.facts = SiteFacts(read_s=10.0, nodes={"a": NodeFact(0.0, Cordon.DRAINING)})
    assert bench.ask().to_terminate == []
    bench.instances[-1] = bench.node("onprem_gpu", "a", idle_s=2)
    (ended,) = bench.ask().to_terminate
    assert (ended.instance_id, ended.cause) == ("a", TerminationRequest.Cause.IDLE)
    assert ended.ray_node_id == "a"


def test_a_draining_head_is_never_ended(bench: Bench) -> None:
    bench.instances = [bench.node("head", "head", kind=NodeKind.HEAD, idle_s=1e6)]
    bench.facts = SiteFacts(nodes={"head": NodeFact(0.0, Cordon.DRAINING)})
    assert bench.ask().to_terminate == []


def test_an_idle_cloud_node_is_kept_for_its_lease_and_the_record_says_so(bench: Bench) -> None:
    bench.content["provider"]["limits"]["lease_s_min"] = 600
    bench.instances.append(bench.node("cloud_gpu", "c", idle_s=100))
    bench.facts = SiteFacts(read_s=1500.0, nodes={"c": NodeFact(launched_s=1000.0)})
    assert bench.ask().to_terminate == []
    report = bench.scheduler.last_report
    assert report is not None
    assert report.reasons == ("c idles and stays 100 s more: lease_s_min is 600 s",)
    bench.facts = SiteFacts(read_s=1600.0, nodes={"c": NodeFact(launched_s=1000.0)})
    assert [t.instance_id for t in bench.ask().to_terminate] == ["c"]


def test_idle_nodes_go_home_dearest_first_and_owned_ones_last(bench: Bench) -> None:
    kinds = {"o": "onprem_gpu", "c": "cloud_gpu", "d": "cloud_dear"}
    bench.instances += [bench.node(kind, name, idle_s=1000) for name, kind in kinds.items()]
    assert [t.instance_id for t in bench.ask().to_terminate] == ["d", "c", "o"]
    bench.instances[2] = bench.node("cloud_gpu", "c", idle_s=0)
    assert [t.instance_id for t in bench.ask().to_terminate] == ["d"]
