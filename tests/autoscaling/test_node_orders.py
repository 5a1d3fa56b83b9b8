"""What follows from a tick's report: boot stages in the ledger, draining nodes drained once."""

from typing import Any

from autoscaling.node_orders import NodeOrders
from autoscaling.record import NodeSummary, SchedulerReport
from cluster.errors import NodeNotFoundError
from cluster.model import TAG_NOTICED, TAG_RELEASED, BootStage


class Stages:
    def __init__(self) -> None:
        self.noted: list[tuple[str, str, float]] = []
        self.tagged: list[tuple[str, Any]] = []

    def note_boot_stage(self, node_id: Any, stage: BootStage, at_s: float) -> None:
        if node_id == "unknown":
            raise NodeNotFoundError("unknown must be a node of this cluster; no record of it.")
        self.noted.append((node_id, stage.value, at_s))

    def merge_tags(self, node_id: Any, tags: Any) -> None:
        if node_id == "unknown":
            raise NodeNotFoundError("unknown must be a node of this cluster; no record of it.")
        self.tagged.append((node_id, tags))


class Bench:
    def __init__(self) -> None:
        self.stages = Stages()
        self.drained: list[str] = []
        self.serving: set[str] = set()
        self.now_s = 5.0
        self.orders = NodeOrders(
            self.stages,
            lambda ray_id, _: self.drained.append(ray_id),
            list_serving=lambda: self.serving,
            now_s=lambda: self.now_s,
        )

    def report(self, name: str = "n", *, ray_id: str | None = "r", **state: Any) -> None:
        plain = {"state": "RAY_RUNNING", "cordon": None}
        node = NodeSummary(name, "t", "s", is_owned=False, ray_id=ray_id, **(plain | state))
        self.orders.carry_out(SchedulerReport(nodes=(node,)))


def test_a_node_has_joined_when_ray_lists_it_and_serves_when_a_gateway_counts_on_it() -> None:
    bench = Bench()
    bench.report(ray_id=None, state="ALLOCATED")
    assert bench.stages.noted == []
    bench.report()
    bench.now_s = 9.0
    bench.serving = {"r"}
    bench.report()
    bench.now_s = 11.0
    bench.report()
    assert bench.stages.noted == [("n", "joined", 5.0), ("n", "serving", 9.0)]


def test_a_node_the_ledger_does_not_know_is_asked_about_once() -> None:
    bench = Bench()
    bench.report("unknown")
    bench.report("unknown")
    bench.report("n")
    assert [name for name, _, _ in bench.stages.noted] == ["n"]


def test_a_notice_is_written_down_once_for_those_who_count_losses() -> None:
    bench = Bench()
    for name in ("n", "n", "unknown"):
        bench.report(name, is_noticed=True)
    bench.report("calm")
    bench.orders.carry_out(SchedulerReport())
    assert bench.stages.tagged == [("n", {TAG_NOTICED: "true"})]


def test_a_release_is_written_down_once_so_that_it_is_no_loss() -> None:
    bench = Bench()
    for _ in range(2):
        bench.orders.carry_out(SchedulerReport(released=("n",)))
    assert bench.stages.tagged == [("n", {TAG_RELEASED: "true"})]


def test_a_draining_node_is_drained_and_a_cordoned_one_is_not() -> None:
    bench = Bench()
    bench.report(cordon="cordoned")
    assert bench.drained == []
    bench.report(cordon="draining")
    bench.report(cordon="draining")
    assert bench.drained == ["r"]


def test_a_drain_that_had_no_effect_is_asked_for_again_after_a_minute() -> None:
    bench = Bench()
    for now_s in (100.0, 130.0, 161.0):
        bench.now_s = now_s
        bench.report(cordon="draining")
    assert bench.drained == ["r", "r"]
