"""The oracle's bound: below what brute force finds, below what any run pays, and not trivial."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoscaling.peers.oracle import bound_cost, build_terms, find_fast_boot_s
from autoscaling.peers.registry import run_policy
from autoscaling.simulator.generators import Shape, generate
from autoscaling.simulator.market import list_sold_out
from autoscaling.simulator.scenario import BootTimes, Scenario, SpotMarket
from autoscaling.simulator.traffic import TraceRequest, Traffic, build_traffic, mark_restricted

MakeTraffic = Callable[..., Traffic]
NO_LOSSES = SpotMarket(losses_per_hour=0.0)


def build_flood(scenario: Scenario, *, begin_s: float, end_s: float, rps: float) -> Traffic:
    """Prompts of 1,000 tokens and answers of 1: work is prefill only."""
    count = int((end_s - begin_s) * rps)
    times = [begin_s + (n + 0.5) / rps for n in range(count)]
    return build_traffic("flood", [TraceRequest(t, 1000, 1) for t in times], 900.0)


def test_nothing_is_bought_where_owned_replicas_can_do_it_all(scenario: Scenario) -> None:
    """Four owned A100 read 1,000 tokens in 0.077 s: 52 a second; 30 are asked for."""
    traffic = build_flood(scenario, begin_s=0.0, end_s=300.0, rps=30.0)
    found = bound_cost(traffic, scenario, seed=1)
    assert found.cloud_usd == pytest.approx(0.0, abs=1e-6)
    assert found.slo_attainment == pytest.approx(1.0)


def test_a_flood_costs_whole_nodes_for_their_whole_lease(scenario: Scenario) -> None:
    """From second 200 to 260, 90 requests a second come and 52 fit on owned replicas.

    38 are left. An L40S reads 13.8 prompts of 1,000 tokens a second (0.0725 s each). 54 of all may
    miss, 0.9 a second, and 2 s at the end may be caught up: (90 x 60 - 54) / 62 - 52.2 = 34, or 2.5
    L40S at the least, so three whole nodes. A lease of 600 s on spot at 0.7444 $/h is 0.124 $;
    three are 0.372 $. By the second, 2.5 nodes for 60 s would be 0.03 $.
    """
    scenario = replace(scenario, spot=NO_LOSSES)
    traffic = build_flood(scenario, begin_s=200.0, end_s=260.0, rps=90.0)
    found = bound_cost(traffic, scenario, seed=1)
    assert found.slo_attainment == pytest.approx(1.0)
    assert 0.98 * 0.372 <= found.cloud_usd <= 1.02 * 0.372


def test_what_comes_before_the_first_node_can_serve_is_lost_by_everyone(
    scenario: Scenario,
) -> None:
    """The same flood in the first minute: 52.2 of 90 a second are done by owned replicas.

    A node needs 94 s even where it is fast, so owned replicas do 52.2 x 60 = 3,130 of 5,400, and
    the last 2 s of them (180) a little later, at the most: 58 to 62 %.
    """
    scenario = replace(scenario, boot=BootTimes())
    assert find_fast_boot_s(scenario.boot) == pytest.approx(94.0, abs=1.0)
    found = bound_cost(build_flood(scenario, begin_s=0.0, end_s=60.0, rps=90.0), scenario, seed=1)
    assert 0.58 <= found.slo_attainment <= 0.62


def test_restricted_requests_have_owned_replicas_only(scenario: Scenario) -> None:
    """90 a second, all restricted, for 300 s: owned replicas do 52.2 of 90, 58 %, at no price."""
    traffic = build_flood(scenario, begin_s=120.0, end_s=420.0, rps=90.0)
    found = bound_cost(mark_restricted(traffic, 1.0, seed=1), scenario, seed=1)
    assert 0.57 <= found.slo_attainment <= 0.60
    assert found.cloud_usd == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_nobody_can_read_in_time_is_out_of_reach(scenario: Scenario) -> None:
    """30,000 tokens take 2.2 s on the fastest replica; 2 s are promised. One of two is left."""
    requests = [TraceRequest(1.0, 30_000, 5), TraceRequest(2.0, 100, 5)]
    found = bound_cost(build_traffic("two", requests, 60.0), scenario, seed=1)
    assert found.slo_attainment == pytest.approx(0.5)


def test_no_spot_while_it_is_sold_out_so_the_bound_pays_on_demand(scenario: Scenario) -> None:
    """With spot sold out throughout, three leases cost 3 x 600 s at 1.861 $/h = 0.93 $."""
    gone = SpotMarket(losses_per_hour=0.0, sold_out_ratio=1.0)
    traffic = build_flood(scenario, begin_s=200.0, end_s=260.0, rps=90.0)
    assert list_sold_out("cloud_spot", gone, seed=1, until_s=900.0) == ((0.0, 900.0),)
    found = bound_cost(traffic, replace(scenario, spot=gone), seed=1)
    assert 0.98 * 0.93 <= found.cloud_usd <= 1.02 * 0.93


def test_fewer_misses_never_cost_less(scenario: Scenario, make_traffic: MakeTraffic) -> None:
    traffic = make_traffic(mean_rps=45.0, duration_s=600.0)
    usd = [
        bound_cost(traffic, scenario, seed=1, miss_ratio=ratio).cloud_usd
        for ratio in (0.2, 0.05, 0.01, 0.0)
    ]
    assert all(fewer <= more * 1.03 + 1e-6 for fewer, more in pairwise(usd))
    assert usd[-1] > usd[0]


def test_a_boot_is_taken_three_deviations_early() -> None:
    """Stages of 30 and 40 s with a spread of 0.1: 70 - 3 x 0.1 x 50 = 55 s."""
    boot = BootTimes(0.0, 30.0, 0.0, 0.0, 0.0, 40.0, spread=0.1)
    assert find_fast_boot_s(boot) == pytest.approx(55.0)


def test_a_node_that_lives_for_its_lease_touches_no_more_cells_than_are_paid(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """600 s are 20 cells of 30 s; begun inside one they touch 21, and one more costs nothing."""
    assert build_terms(make_traffic(duration_s=1800.0), scenario).lease_cells == 22


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1000),
    rps=st.floats(15, 45),
    ratio=st.sampled_from([0.0, 0.3]),
    policy=st.sampled_from(["static-peak", "all-cloud", "queue-hpa", "tidegate"]),
)
def test_no_run_is_cheaper_than_the_bound_at_its_own_attainment(
    scenario: Scenario, seed: int, rps: float, ratio: float, policy: str
) -> None:
    """Losses are off: their luck is taken at its mean."""
    scenario = replace(scenario, spot=NO_LOSSES)
    traffic = generate("bursty", Shape(mean_rps=rps, duration_s=180.0), seed=seed)
    traffic = mark_restricted(traffic, ratio, seed=seed)
    run = run_policy(policy, traffic, scenario, seed=seed)
    bound = bound_cost(traffic, scenario, seed=seed, miss_ratio=1 - run.slo_attainment)
    assert bound.cloud_usd <= run.cloud_usd + 1e-6
    assert bound.slo_attainment >= run.slo_attainment - 1e-6
