"""Laws of the brain over time: what no load and no fault of the signals makes it do.

Seconds of a small world (`brain_run`): two owned replicas and two pools of a cloud.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.record import SchedulerReport, build_record, read_memory
from autoscaling.snapshot import BRAIN_PARTS, SetReplicas
from deployments.signals import GatewaySignals, ModelSignal, Served
from tests.autoscaling.brain_run import APP, CLOUD, MODEL, ONPREM, POLICY, SPOT, BrainRun

# So many seconds with so many arrivals a second that must stay and that may leave.
_LOADS = st.lists(
    st.tuples(st.sampled_from([3, 15, 40]), st.integers(0, 4), st.integers(0, 6)), max_size=8
)
_FEW = settings(max_examples=min(10, settings().max_examples))


def burst() -> BrainRun:
    """A world with two rented replicas that run: four a second over two that are owned."""
    run = BrainRun()
    run.seconds(60, leave=1)
    run.seconds(120, leave=4)
    assert run.planned == {"onprem": 2, "cloud": 2}
    assert run.running(CLOUD) == 2
    return run


@_FEW
@given(st.lists(st.tuples(st.sampled_from([3, 15, 40]), st.integers(0, 9)), max_size=8))
def test_restricted_demand_alone_never_opens_a_cloud(load: list[tuple[int, int]]) -> None:
    """However much of it comes, for however long."""
    run = BrainRun(pools=(ONPREM, CLOUD, SPOT))
    for seconds, stay in load:
        for decision in run.seconds(seconds, stay=stay):
            assert decision.targets[APP]["cloud"] == decision.targets[APP]["spot"] == 0


@_FEW
@given(_LOADS)
def test_pools_turn_no_more_often_than_leases_and_slack_allow(
    load: list[tuple[int, int, int]],
) -> None:
    """A replica is kept for its lease, and slack must last before any goes home.

    So in T seconds a pool turns down after up at most T / down_after_s times, and at most once for
    each lease of each of its replicas.
    """
    run = BrainRun()
    seconds_all = 0
    for seconds, stay, leave in load * 3:
        run.seconds(seconds, stay=stay, leave=leave)
        seconds_all += seconds
    for steps in run.moves.values():
        turns = sum(up > 0 > down for up, down in pairwise(steps))
        assert turns <= seconds_all / POLICY.down_after_s
        assert turns <= CLOUD.max_replicas * (1 + seconds_all / POLICY.min_lease_s)


def test_a_rise_shorter_than_the_cold_start_rents_nothing() -> None:
    """Twenty seconds of three a second; a node is there after 30, and $0.05 are ten late requests.

    The same rise for three minutes rents.
    """
    run = BrainRun(model=replace(MODEL, usd_per_late_request=0.005))
    run.seconds(120, leave=1)
    run.seconds(20, leave=3)
    run.seconds(200, leave=1)
    assert "cloud" not in run.moves
    run.seconds(180, leave=3)
    assert run.planned["cloud"] > 0


def test_a_rise_that_lasts_rents_and_goes_home_when_it_is_over() -> None:
    run = burst()
    run.seconds(300, leave=1)
    assert run.planned["cloud"] == 0
    assert run.running(CLOUD) == 0


def say(report: GatewaySignals, **changes: object) -> GatewaySignals:
    """The report with other words about its one model."""
    (model,) = report.models
    return replace(report, models=(replace(model, **changes),))


def serve(model: ModelSignal, served: Served) -> tuple[object, ...]:
    return tuple(replace(pool, served=served) for pool in model.pools)


_FAULTS: dict[str, Callable[[GatewaySignals], tuple[GatewaySignals, ...]]] = {
    "absent": lambda report: (),
    "stale": lambda report: (replace(report, published_s=report.published_s - 60),),
    "from the future": lambda report: (replace(report, published_s=report.published_s + 60),),
    "nan ttft": lambda report: (say(report, ttft_s_max=math.nan),),
    "nan served": lambda report: (
        say(report, pools=serve(report.models[0], Served(hold_s=math.nan))),
    ),
    "infinite price": lambda report: (say(report, usd_per_late_request=math.inf),),
    "negative waiting": lambda report: (say(report, waiting_public=-1),),
    "negative arrivals": lambda report: (say(report, arrived=-1),),
    "more leave than come": lambda report: (say(report, arrived_may_burst=10**9),),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_signals_that_cannot_be_trusted_hold_every_number_and_say_so(fault: str) -> None:
    """For longer than every delay of the brain, in a burst, and while nothing arrives."""
    run = burst()
    for _ in range(100):
        run.advance(leave=0)
        decision = run.decide(*_FAULTS[fault](run.report()))
        assert decision.targets[APP] == {"onprem": 2, "cloud": 2}
        assert [reason.code for reason in decision.reasons] == ["doubt"]


@pytest.mark.parametrize("fault", _FAULTS)
def test_signals_that_return_move_no_number_at_once(fault: str) -> None:
    """Neither to zero nor to the maximum: what was not seen neither lasted nor arrived."""
    run = BrainRun()
    run.seconds(60, leave=1)
    for _ in range(60):
        run.advance(leave=1)
        run.decide(*_FAULTS[fault](run.report()))
    run.seconds(60, leave=1)
    assert "cloud" not in run.moves


@pytest.mark.parametrize("restart", ["at zero", "under another name"])
def test_a_gateway_that_starts_again_is_no_rise_and_no_end_of_one(restart: str) -> None:
    """Its counters fall to zero, or belong to one never heard before."""
    run = burst()
    run.arrived_leave = run.arrived_stay = 0
    run.finished = {}
    for _ in range(30):
        run.advance(leave=4)
        report = run.report()
        name = "gateway" if restart == "at zero" else "other"
        decision = run.decide(replace(report, gateway=name))
        assert decision.targets[APP] == {"onprem": 2, "cloud": 2}


def test_a_gateway_that_comes_back_is_no_rise() -> None:
    """One of two was not heard for 30 s: what it counted since it began is no demand of now."""
    run = BrainRun()
    for second in range(150):
        run.advance(leave=1)
        report = run.report()
        words = say(report, arrived=90_000, arrived_may_burst=90_000, pools=())
        other = replace(words, gateway="other")
        run.decide(report, *(() if second in range(60, 90) else (other,)))
    assert "cloud" not in run.moves


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0], ids=["back", "forward"])
@pytest.mark.parametrize("leave", [0, 4], ids=["in slack", "in need"])
def test_a_clock_that_steps_holds_until_delays_have_passed_on_the_new_one(
    step_s: float, leave: int
) -> None:
    """Brain and gateways share it: nothing is stale. The number may move after 20 s of slack."""
    run = burst()
    run.seconds(15, leave=leave)
    run.now_s += step_s
    run.ready_s = {name: [t + step_s for t in times] for name, times in run.ready_s.items()}
    for decision in run.seconds(math.floor(POLICY.down_after_s) - 1, leave=leave):
        assert decision.targets[APP] == {"onprem": 2, "cloud": 2}


def test_a_clock_that_steps_forward_makes_no_starting_replica_overdue() -> None:
    """The second owned replica was asked for a moment ago: the cloud stays closed."""
    run = BrainRun()
    run.seconds(6, leave=2)
    assert run.planned["onprem"] == 2
    run.now_s += 3600.0
    run.ready_s = {name: [t + 3600.0 for t in times] for name, times in run.ready_s.items()}
    run.seconds(10, leave=1)
    assert run.planned["cloud"] == 0


def test_a_clock_that_steps_back_keeps_leases_no_longer_than_they_are() -> None:
    """An hour back: a replica rented before it goes home after a lease and the slack, not later."""
    run = burst()
    run.now_s -= 3600.0
    run.ready_s = {name: [t - 3600.0 for t in times] for name, times in run.ready_s.items()}
    run.seconds(math.ceil(POLICY.min_lease_s + POLICY.down_after_s) + 120, leave=0)
    assert run.planned["cloud"] == 0


def test_a_process_that_starts_again_from_the_record_decides_the_same() -> None:
    """Every second another process reads the record: it takes the same steps at the same time."""
    one, other = BrainRun(), BrainRun()
    for seconds, leave in ((40, 1), (90, 4), (120, 1)):
        for _ in range(seconds):
            decision = one.second(leave=leave)
            other.advance(leave=leave)
            snapshot = other.look(other.report())
            again = other.decide(other.report())
            record = build_record(again, snapshot, SchedulerReport())
            other.memory = read_memory(json.loads(json.dumps(record)))
            assert again.commands == decision.commands


@pytest.mark.parametrize("part", BRAIN_PARTS)
def test_a_burst_opens_and_goes_home_with_any_part_switched_off(part: str) -> None:
    run = BrainRun(policy=replace(POLICY, ablated=frozenset({part})))
    run.seconds(60, leave=1)
    run.seconds(120, leave=4)
    assert run.planned["cloud"] > 0
    run.seconds(400, leave=1)
    assert run.planned["cloud"] == 0


def test_every_rental_says_what_it_costs_and_what_it_spares() -> None:
    """Once speeds are known; the first seconds of a deploy count what waits instead."""
    run = BrainRun(pools=(ONPREM, CLOUD, SPOT))
    run.seconds(60, leave=1)
    told = []
    for decision in run.seconds(150, leave=5):
        for command in decision.commands:
            if isinstance(command, SetReplicas) and command.deployment != "onprem":
                (reason,) = (r for r in decision.reasons if command.deployment in r.subject)
                told.append(reason.text)
    assert told
    for text in told:
        assert "burst +" in text
        assert "$" in text
        assert "late requests" in text


def test_without_a_node_type_for_it_a_pool_is_never_rented() -> None:
    """Its price is infinite, whatever arrives."""
    lost = replace(CLOUD, accelerator="none", gpus_per_replica=8)
    run = BrainRun(pools=(ONPREM, lost))
    run.seconds(60, leave=1)
    assert run.look(run.report()).models[0].pools[0].usd_per_hour == Decimal("Infinity")
    run.seconds(100, leave=5)
    assert run.planned["cloud"] == 0
