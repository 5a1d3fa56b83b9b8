"""The warm tier's edge: orders on the board, demand from all gateways, and what the brain hears."""

from dataclasses import replace

import pytest

from autoscaling.observation import Observed, build_snapshot
from autoscaling.owned_nodes import list_owned_nodes
from autoscaling.owned_places import OwnedNode
from autoscaling.snapshot import BurstPolicy
from autoscaling.warm import WarmDemand
from autoscaling.warm_loop import WarmLoop, list_demands
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal
from deployments.warm_board import WarmBoard, WarmReport
from tests.autoscaling.brain_bench import Memory
from tests.autoscaling.test_owned_bounds import OFFER, summary

POOL = "onprem-h100-owned"
SIGNAL = PoolSignal(
    pool=POOL,
    site="onprem",
    owned=True,
    accelerator="h100",
    market="owned",
    gpus_per_replica=1,
    slots_per_replica=4,
    min_replicas=1,
    max_replicas=1,
    replicas_running=1,
    streams_running=0,
    ray_nodes=("r1",),
    gpu_shares=2,
)


def report(app: str, **changes: object) -> WarmReport:
    asleep = WarmReport(f"{app}-1", app, POOL, ("n/0",), "asleep", order=0, live=0, at_s=100.0)
    return replace(asleep, **changes)


def signals(*, gateway: str = "g", at_s: float = 100.0, **waiting: int) -> GatewaySignals:
    models = tuple(
        ModelSignal(app, app, 0, count - 1, 1, max(0, count - 1), 0.0, (SIGNAL,))
        for app, count in waiting.items()
    )
    return GatewaySignals(gateway, at_s, models)


@pytest.fixture
def board() -> WarmBoard:
    made = WarmBoard(Memory())
    made.put_report(report("a"))
    made.put_report(report("b"))
    return made


def test_a_model_that_waits_is_woken_by_orders_on_the_board(board: WarmBoard) -> None:
    WarmLoop(board).tick([signals(a=1)], now_s=100.0)
    assert board.get_orders().awake == {"a-1": 100.0}


def test_orders_survive_the_process_that_wrote_them(board: WarmBoard) -> None:
    """Another process goes on: `b` waits for the end of the turn of `a`, which began at 100 s."""
    WarmLoop(board).tick([signals(a=1)], now_s=100.0)
    board.put_report(report("a", state="awake", order=1, live=1))
    board.put_report(report("b", order=1))
    away = WarmLoop(board).tick([signals(b=2)], now_s=129.0)
    assert away == {("b", POOL): ["a"]}
    assert board.get_orders().awake == {"a-1": 100.0}
    WarmLoop(board).tick([signals(b=2)], now_s=130.0)
    assert board.get_orders().awake == {}


@pytest.mark.parametrize("lost", [None, b"{}}"])
def test_lost_orders_are_written_anew_and_who_is_awake_stays(lost: bytes | None) -> None:
    """Both obeyed order 57; b waits, and wakes only after a has heard a higher number."""
    memory = Memory()
    if lost is not None:
        memory.values[b"warm-orders"] = lost
    board = WarmBoard(memory)
    board.put_report(report("a", state="awake", order=57, live=1))
    board.put_report(report("b", order=57))
    WarmLoop(board).tick([signals(b=1)], now_s=100.0)
    assert (board.get_orders().number, board.get_orders().awake) == (58, {"a-1": 100.0})
    board.put_report(report("a", order=57))
    WarmLoop(board).tick([signals(b=1)], now_s=104.0)
    WarmLoop(board).tick([signals(b=1)], now_s=105.0)
    assert "b-1" not in board.get_orders().awake


def test_a_replica_that_fell_silent_is_forgotten_and_its_gpu_free(board: WarmBoard) -> None:
    board.put_report(report("a", state="awake", at_s=39.0))
    WarmLoop(board).tick([signals(b=1)], now_s=100.0)
    assert [found.replica_id for found in board.list_reports()] == ["b-1"]
    assert board.get_orders().awake == {"b-1": 100.0}


def test_demand_is_what_waits_at_all_gateways() -> None:
    """One of each gateway's waiting requests is restricted."""
    found = list_demands([signals(gateway="g1", a=3), signals(gateway="g2", a=2)])
    assert found == [WarmDemand("a", waiting=5, must_stay=2, usd_per_late_request=0.02)]


def test_the_brain_counts_no_sleeper_whose_gpu_another_model_keeps() -> None:
    """Its slots are no capacity, so what waits for it may pay for a rented node at once."""
    policy = BurstPolicy()
    observed = Observed(signals=[signals(b=1)], away={("b", POOL): ["a"]})
    ((model,), (free,)) = (
        build_snapshot(one, now_s=100.0, policy=policy).models
        for one in (observed, replace(observed, away={}))
    )
    (kept, free_pool) = model.pools[0], free.pools[0]
    assert (kept.observed, kept.blocked) == (0, "its GPU is with a")
    assert (free_pool.observed, free_pool.blocked) == (1, None)
    assert kept.gpus_per_replica == 0, "it takes no part in the split"


def test_a_gpu_shared_in_turns_is_not_split() -> None:
    """Two halves fill one of the node's four GPUs, three of them one more."""
    two = [signals(a=0, b=0)]
    (node,) = list_owned_nodes([replace(OFFER, nodes_max=1)], (summary("i", ray_id="r1"),), two)
    assert node == OwnedNode("i", "onprem", "h100", 3)
    three = [signals(a=0, b=0, c=0)]
    (node,) = list_owned_nodes([replace(OFFER, nodes_max=1)], (summary("i", ray_id="r1"),), three)
    assert node.gpus == 2
