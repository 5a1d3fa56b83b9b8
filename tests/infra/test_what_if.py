"""What one more owned node would have saved: worked out by hand, and never when it wouldn't."""

from dataclasses import replace

import pytest

from autoscaling.simulator.tally import Outcome
from cluster.errors import ConfigError
from infra.simulated_files import Choices, read_scenario
from infra.what_if import S_PER_WEEK, Payback, Purchase, add_node, find_payback


def outcome(cloud_usd: float, attainment: float) -> Outcome:
    return Outcome(
        name="tidegate",
        slo_attainment=attainment,
        ttft_p50_s=0.1,
        ttft_p99_s=1.0,
        tpot_p50_s=0.02,
        cloud_usd=cloud_usd,
        owned_usd=0.0,
        cloud_gpu_hours=1.0,
        completed=1000,
        rejected=0,
        residency_violations=0,
        launches=1,
        reversals=0,
        wall_s=1.0,
    )


def payback(
    *, saved_usd: float, usd_per_month: float = 0.0, traffic_s: float = S_PER_WEEK
) -> Payback:
    """Return the answer for a node of $1,000 that saves this much cloud in the traffic's time."""
    return find_payback(
        Purchase("big", usd=1000.0, usd_per_month=usd_per_month),
        without=[outcome(300.0, 0.98)],
        having=[outcome(300.0 - saved_usd, 0.99)],
        requests=[10_000],
        traffic_s=traffic_s,
        usd_per_late_request=0.01,
    )


def test_weeks_are_the_price_over_what_is_saved_a_week() -> None:
    """$100 saved a week: 10 weeks; with the requests kept in time $101 a week: 9.9 weeks.

    2 % of 10,000 requests were late, 1 % still are: 100 at $0.01 are $1 a week.
    """
    found = payback(saved_usd=100.0)
    assert found.weeks == pytest.approx(10.0)
    assert found.late_usd_per_week == pytest.approx(1.0)
    assert found.weeks_with_late == pytest.approx(1000 / 101)
    assert "One more big node at $1,000 would have paid back in 10 weeks." in found.answer
    assert "100 more requests in time a week" in found.answer


def test_running_costs_are_taken_off_first() -> None:
    """A month has 4.348 weeks: $217.41 a month are $50 a week, which leaves $50 of $100."""
    found = payback(saved_usd=100.0, usd_per_month=50 * 365.25 / 12 / 7)
    assert found.running_usd_per_week == pytest.approx(50.0)
    assert found.weeks == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("saved_usd", "usd_per_month", "why"),
    [
        (0.0, 0.0, "it saves no cloud money on this traffic"),
        (-5.0, 0.0, "it saves no cloud money on this traffic"),
        (10.0, 200.0, "it saves $10.00 of cloud a week and costs $46.00 a week to run"),
    ],
)
def test_it_never_pays_back_what_it_does_not_save(
    saved_usd: float, usd_per_month: float, why: str
) -> None:
    found = payback(saved_usd=saved_usd, usd_per_month=usd_per_month)
    assert found.weeks is None
    assert f"would never have paid back: {why}." in found.answer
    assert found.as_json()["weeks"] is None


def test_an_hour_is_not_a_week_and_the_answer_says_so() -> None:
    """$1 saved in an hour is $168 in the 168 hours of a week."""
    found = payback(saved_usd=1.0, traffic_s=3600.0)
    assert found.saved_usd_per_week == pytest.approx(168.0)
    assert "Extrapolated: 60 minutes of traffic stand for a week, taken 168 times" in found.caution
    assert "nights and weekends" in found.caution
    assert payback(saved_usd=1.0).caution == "Measured over 7.0 days of traffic."


def test_a_payback_beyond_the_life_of_hardware_is_called_that() -> None:
    assert "longer than hardware is usually kept" in payback(saved_usd=0.5).answer


def test_seeds_give_the_spread() -> None:
    found = find_payback(
        Purchase("big", usd=1000.0),
        without=[outcome(10.0, 1.0), outcome(20.0, 1.0)],
        having=[outcome(8.0, 1.0), outcome(14.0, 1.0)],
        requests=[10, 10],
        traffic_s=S_PER_WEEK,
        usd_per_late_request=0.01,
    )
    assert (found.saved_usd_per_week_low, found.saved_usd_per_week_high) == (2.0, 6.0)
    assert found.weeks == pytest.approx(250.0)
    assert "($2.00 to $6.00 over 2 seeds)" in found.arithmetic[0]


def test_one_more_node_makes_its_site_type_and_pool_larger_and_no_other() -> None:
    """A node has two A100; all four replicas are kept running, so all six are."""
    before = read_scenario(Choices())
    after = add_node(before, Purchase("onprem_a100", usd=1.0))
    pools = {pool.market: pool for pool in after.model.pools}
    assert (pools["owned"].min_replicas, pools["owned"].max_replicas) == (6, 6)
    assert [p for p in after.model.pools if p.market != "owned"] == [
        p for p in before.model.pools if p.market != "owned"
    ]
    kinds = {kind.name: kind for kind in after.settings.node_types.values()}
    assert (kinds["onprem_a100"].min_nodes, kinds["onprem_a100"].max_nodes) == (3, 3)
    assert after.settings.sites["onprem"].max_nodes == before.settings.sites["onprem"].max_nodes + 1
    assert after.settings.sites["cloud"] == before.settings.sites["cloud"]


@pytest.mark.parametrize("name", ["cloud_spot", "head", "nothing"])
def test_only_owned_nodes_with_gpus_can_be_bought(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--buy must be one of onprem_a100; got '{name}'"):
        add_node(read_scenario(Choices()), Purchase(name, usd=1.0))


def test_a_node_that_no_pool_of_the_model_runs_on_is_refused() -> None:
    scenario = read_scenario(Choices())
    pools = tuple(pool for pool in scenario.model.pools if not pool.owned)
    rented_only = replace(scenario, model=scenario.model.model_copy(update={"pools": pools}))
    with pytest.raises(ConfigError, match="must be a node that a pool of llama"):
        add_node(rented_only, Purchase("onprem_a100", usd=1.0))
