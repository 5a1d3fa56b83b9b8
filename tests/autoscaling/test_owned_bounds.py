"""What the brain makes of the split: one set of owned GPUs, decided for all models at once.

Two GPUs. Model `open` may go to the cloud, model `kept` may not; one replica of each answers 1
request/s on 1 GPU. History is in bins of 10 s.
"""

from dataclasses import replace
from decimal import Decimal

from autoscaling.guard import Offer
from autoscaling.history import DemandHistory
from autoscaling.learning import Learned
from autoscaling.owned_nodes import list_owned_nodes
from autoscaling.owned_places import OwnedNode
from autoscaling.record import (
    NodeSummary,
    SchedulerReport,
    build_record,
    read_memory,
)
from autoscaling.replicas import decide_replicas
from autoscaling.snapshot import BurstPolicy, Decision, ModelView, PoolView, Snapshot
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal

POLICY = BurstPolicy(up_after_s=2, down_after_s=20, min_lease_s=60, route_stop_s=1.5)
NAME = "onprem-h100-owned"
NODES = (OwnedNode("n1", "onprem", "h100", 1), OwnedNode("n2", "onprem", "h100", 1))
POOL = PoolView(
    name=NAME,
    site="onprem",
    market="owned",
    slots=4,
    replicas_min=0,
    replicas_max=2,
    rps=1.0,
    accelerator="h100",
    gpus_per_replica=1,
)
CLOUD = replace(POOL, name="cloud", site="aws", market="on_demand", usd_per_hour=Decimal(2))


def learned(*, per_bin: int, may_burst: bool) -> Learned:
    bins = (per_bin,) * 6
    return Learned(history=DemandHistory(all=bins, may_burst=bins if may_burst else (0,) * 6))


def open_model(*, running: int, per_bin: int = 30) -> ModelView:
    owned = replace(POOL, observed=running, streams=4 * running)
    return ModelView(
        app="open", pools=(owned, CLOUD), learned=learned(per_bin=per_bin, may_burst=True)
    )


def kept_model(*, running: int, per_bin: int, waiting: int = 0) -> ModelView:
    pool = replace(POOL, observed=running)
    return ModelView(
        app="kept",
        pools=(pool,),
        waiting=waiting,
        learned=learned(per_bin=per_bin, may_burst=False),
    )


class Ticks:
    """Decisions a second apart, with the memory the process keeps."""

    def __init__(self, *, nodes: tuple[OwnedNode, ...] = NODES) -> None:
        self.now_s = 1000.0
        self.memory = read_memory({})
        self.nodes = nodes

    def tick(self, *models: ModelView, after_s: float = 1.0) -> Decision:
        self.now_s += after_s
        snapshot = Snapshot(self.now_s, models, self.memory, self.nodes)
        decision = decide_replicas(snapshot, POLICY)
        record = build_record(decision, snapshot, SchedulerReport())
        self.memory = read_memory(record)
        return decision


def owned(decision: Decision) -> dict[str, int]:
    return {app: pools[NAME] for app, pools in decision.targets.items()}


def test_the_model_whose_requests_must_stay_gets_the_gpus_another_runs_on() -> None:
    """`open` runs on both. 3 requests arrive for `kept` in 10 s: it gets one GPU at once."""
    ticks = Ticks()
    assert owned(ticks.tick(open_model(running=2), kept_model(running=0, per_bin=0))) == {
        "open": 2,
        "kept": 0,
    }
    decision = ticks.tick(open_model(running=2), kept_model(running=0, per_bin=3, waiting=3))
    assert owned(decision)["open"] == 1
    said = [str(reason) for reason in decision.reasons if reason.code == "split"]
    gives = "may have 1 replicas of 1 GPU on 2 owned GPUs, gives up 1 for kept (1 GPU a replica)"
    assert said == [f"open/{NAME}: {gives}; its demand fills 2"]
    decision = ticks.tick(open_model(running=2), kept_model(running=0, per_bin=3, waiting=3))
    assert owned(decision) == {"open": 1, "kept": 1}


def test_what_was_taken_stays_taken_when_the_other_becomes_worth_more() -> None:
    """`kept` needed it for a moment only; its replica goes home by its own slack, not by force."""
    ticks = Ticks()
    ticks.tick(open_model(running=2), kept_model(running=0, per_bin=0))
    for _ in range(3):
        ticks.tick(open_model(running=2), kept_model(running=0, per_bin=3, waiting=3))
    decision = ticks.tick(open_model(running=1), kept_model(running=1, per_bin=1))
    assert owned(decision) == {"open": 1, "kept": 1}
    for _ in range(100):
        decision = ticks.tick(open_model(running=1), kept_model(running=1, per_bin=0))
    assert owned(decision)["kept"] == 0
    for _ in range(5):
        decision = ticks.tick(open_model(running=1), kept_model(running=0, per_bin=0))
    assert owned(decision) == {"open": 2, "kept": 0}


def test_a_pool_that_gives_up_its_last_replica_stops_routing_first() -> None:
    """Both GPUs must go to `kept`; `open` keeps one replica for 1.5 s, closed to new requests."""
    ticks = Ticks()
    ticks.tick(open_model(running=2), kept_model(running=0, per_bin=0))
    demand = {"per_bin": 15, "waiting": 5}
    first = ticks.tick(open_model(running=2), kept_model(running=0, **demand))
    assert (owned(first)["open"], first.closing) == (1, {"open": [NAME]})
    second = ticks.tick(open_model(running=2), kept_model(running=0, **demand))
    assert (owned(second)["open"], second.closing) == (1, {"open": [NAME]})
    third = ticks.tick(open_model(running=2), kept_model(running=0, **demand))
    assert (owned(third), third.closing) == ({"open": 0, "kept": 2}, {"open": [NAME]})


def test_a_model_of_unknown_speed_gets_the_replicas_whose_slots_its_requests_fill() -> None:
    """Five wait and four run: nine need three replicas of 4 slots, and there are two GPUs."""
    ticks = Ticks()
    unknown = replace(POOL, rps=None, observed=1, streams=4)
    busy = ModelView(app="open", pools=(unknown,), waiting=5, waiting_may_burst=5)
    for _ in range(4):
        decision = ticks.tick(busy, kept_model(running=0, per_bin=0))
    assert owned(decision) == {"open": 2, "kept": 0}


def test_without_owned_nodes_each_pool_keeps_its_own_bounds() -> None:
    ticks = Ticks(nodes=())
    ticks.tick(open_model(running=2), kept_model(running=0, per_bin=0))
    for _ in range(5):
        decision = ticks.tick(open_model(running=2), kept_model(running=0, per_bin=9, waiting=3))
    assert owned(decision) == {"open": 2, "kept": 2}


def test_no_owned_pool_grows_or_gives_up_anything_while_a_model_is_in_doubt() -> None:
    ticks = Ticks()
    ticks.tick(open_model(running=2), kept_model(running=0, per_bin=0))
    doubted = ModelView(app="open", pools=(), doubt="absurd signals")
    for _ in range(5):
        decision = ticks.tick(doubted, kept_model(running=0, per_bin=9, waiting=3))
    assert owned(decision) == {"open": 2, "kept": 0}
    assert "open: owned pools keep their GPUs while it is in doubt" in map(str, decision.reasons)


OFFER = Offer(
    name="gpu_host",
    site="onprem",
    market="owned",
    resources={"GPU": 4.0, "CPU": 32.0},
    labels={"site": "onprem", "accelerator": "h100"},
    nodes_max=3,
)


def summary(node_id: str, *, ray_id: str | None, cordon: str | None = None) -> NodeSummary:
    return NodeSummary(
        id=node_id,
        node_type="gpu_host",
        site="onprem",
        is_owned=True,
        state="RAY_RUNNING",
        ray_id=ray_id,
        cordon=cordon,
    )


def test_nodes_hold_what_gateways_see_on_them_and_those_to_come_are_empty() -> None:
    """Two of three nodes are up; the one that is cordoned counts for its one replica of 2 GPUs."""
    pool = PoolSignal(
        pool=NAME,
        site="onprem",
        owned=True,
        accelerator="h100",
        market="owned",
        gpus_per_replica=2,
        slots_per_replica=4,
        min_replicas=0,
        max_replicas=4,
        replicas_running=3,
        streams_running=0,
        ray_nodes=("r1", "r1", "r2"),
    )
    reports = [
        GatewaySignals("g1", 0.0, (ModelSignal("m", "m", 0, 0, 0, 0, 0.0, (pool,)),)),
        GatewaySignals(
            "g2",
            0.0,
            (ModelSignal("m", "m", 0, 0, 0, 0, 0.0, (replace(pool, ray_nodes=("r1",)),)),),
        ),
    ]
    nodes = (summary("i-1", ray_id="r1"), summary("i-2", ray_id="r2", cordon="cordoned"))
    cloud = replace(OFFER, name="cloud", market="spot")
    head = replace(OFFER, name="head", resources={"CPU": 4.0, "GPU": 0.0})
    assert list_owned_nodes([cloud, head, OFFER], nodes, reports) == (
        OwnedNode("i-1", "onprem", "h100", 4, {("m", NAME): 2}),
        OwnedNode("i-2", "onprem", "h100", 2, {("m", NAME): 1}),
        OwnedNode("gpu_host#2", "onprem", "h100", 4),
    )
