"""What the guard lets through, and what it says when a limit binds."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from autoscaling.guard import Held, Launch, Limits, Offer, admit, count_holdings, find_refusal
from cluster.budget import BudgetStatus, MoneyLimits, SpendNow, budget_status

CLOUD = Offer(
    name="cloud",
    site="aws",
    market="on_demand",
    resources={"GPU": 1.0},
    usd_per_hour=Decimal("1.861"),
    nodes_max=9,
)
ONPREM = Offer(name="onprem", site="onprem", market="owned", resources={"GPU": 4.0}, nodes_max=9)
OFFERS = {offer.name: offer for offer in (CLOUD, ONPREM)}


def launches(node_types: list[str]) -> list[Launch]:
    return [Launch(name) for name in node_types]


def test_the_third_cloud_node_would_exceed_four_dollars() -> None:
    """2 x 1.861 = 3.722 fits 4.0; 3 x 1.861 = 5.583 doesn't."""
    limits = Limits(launches_per_tick=9, usd_per_hour_max=Decimal("4.0"))
    found = admit(launches(["cloud"] * 3), offers=OFFERS, existing_types=[], limits=limits)
    assert found.launches == (Launch("cloud"), Launch("cloud"))
    assert [refusal.text for refusal in found.refusals] == [
        "one more cloud: 5.583 $/h would be committed, over the limit of 4.0 $/h"
    ]


def test_money_already_committed_counts() -> None:
    limits = Limits(launches_per_tick=9, usd_per_hour_max=Decimal(2))
    found = admit(launches(["cloud"]), offers=OFFERS, existing_types=["cloud"], limits=limits)
    assert found.launches == ()


def test_a_binding_money_limit_never_stops_owned_nodes() -> None:
    limits = Limits(launches_per_tick=9, usd_per_hour_max=Decimal(0))
    found = admit(
        launches(["cloud", "onprem"]), offers=OFFERS, existing_types=["cloud"], limits=limits
    )
    assert found.launches == (Launch("onprem"),)


def test_an_unknown_price_is_not_free() -> None:
    unpriced = Offer(
        name="new", site="aws", market="spot", resources={}, usd_per_hour=None, nodes_max=1
    )
    limits = Limits(launches_per_tick=9, usd_per_hour_max=Decimal(100))
    refusal = find_refusal(unpriced, count_holdings({}, []), limits)
    assert refusal is not None
    assert "the price of the asked node is unknown" in refusal.text


def test_each_limit_is_named_when_it_binds() -> None:
    limits = Limits(launches_per_tick=1, site_nodes_max={"onprem": 1}, cluster_nodes_max=3)
    two = admit(launches(["cloud"] * 2), offers=OFFERS, existing_types=[], limits=limits)
    assert two.refusals[0].text == "cloud waits for the next tick: launches_per_tick is 1"
    full = admit(launches(["onprem"]), offers=OFFERS, existing_types=["onprem"], limits=limits)
    assert full.refusals[0].text == "site onprem is full: 1 of 1 nodes"
    whole = admit(launches(["cloud"]), offers=OFFERS, existing_types=["gone"] * 3, limits=limits)
    assert whole.refusals[0].text == "the cluster is full: 3 of 3 nodes"


def budget_of(*, spent_usd: str, limit_usd: str) -> BudgetStatus:
    """A day at its first second; a launch adds its price for a lease of half an hour."""
    limits = MoneyLimits(usd_per_day=Decimal(limit_usd), lease_s_min=1800.0)
    return budget_status(SpendNow(now_s=0.0, day_usd=Decimal(spent_usd)), limits)


def test_a_day_takes_what_its_rest_can_pay_for_the_length_of_a_lease() -> None:
    """8.5 $ of 10 are spent; a node costs 1.861/2 = 0.93 $ for its lease: one fits, two don't."""
    limits = Limits(launches_per_tick=9, budget=budget_of(spent_usd="8.5", limit_usd="10"))
    planned = launches(["cloud", "cloud", "onprem"])
    found = admit(planned, offers=OFFERS, existing_types=[], limits=limits)
    assert found.launches == (Launch("cloud"), Launch("onprem"))
    (refusal,) = found.refusals
    assert refusal.limit == "usd_per_day"
    assert "8.50 $ are spent and 10.36 $ would be" in refusal.text


def test_a_spent_day_stops_the_cloud_and_never_an_owned_node() -> None:
    limits = Limits(launches_per_tick=9, budget=budget_of(spent_usd="11", limit_usd="10"))
    found = admit(launches(["cloud", "onprem"]), offers=OFFERS, existing_types=[], limits=limits)
    assert found.launches == (Launch("onprem"),)


def test_a_held_type_is_refused_with_what_its_site_said() -> None:
    held = Held("sold_out", "is sold out until 12:00:00 UTC: InsufficientInstanceCapacity")
    refusal = find_refusal(
        replace(CLOUD, held=held), count_holdings({}, []), Limits(launches_per_tick=9)
    )
    assert refusal is not None
    assert refusal.limit == "sold_out"
    expected = "cloud is sold out until 12:00:00 UTC: InsufficientInstanceCapacity"
    assert refusal.text == expected


@given(
    planned=st.lists(st.sampled_from(["cloud", "onprem"]), max_size=12),
    existing=st.lists(st.sampled_from(["cloud", "onprem", "removed"]), max_size=12),
    limits=st.builds(
        Limits,
        launches_per_tick=st.integers(0, 5),
        site_nodes_max=st.fixed_dictionaries({"aws": st.integers(0, 5)}),
        cluster_nodes_max=st.none() | st.integers(0, 9),
        usd_per_hour_max=st.none() | st.decimals(0, 10, places=2),
    ),
)
def test_nothing_is_launched_over_a_limit_even_if_it_is_exceeded_already(
    planned: list[str], existing: list[str], limits: Limits
) -> None:
    found = admit(launches(planned), offers=OFFERS, existing_types=existing, limits=limits)
    assert len(found.launches) + len(found.refusals) == len(planned)
    assert len(found.launches) <= limits.launches_per_tick
    launched = [launch.node_type for launch in found.launches]
    held = count_holdings(OFFERS, [*existing, *launched])
    if "removed" in existing and limits.usd_per_hour_max is not None:
        assert "cloud" not in launched, "what a removed type costs is unknown, never zero"
    if "cloud" in launched:
        assert held.by_site["aws"] <= limits.site_nodes_max["aws"]
        assert limits.usd_per_hour_max is None or held.usd_per_hour <= limits.usd_per_hour_max
    if found.launches and limits.cluster_nodes_max is not None:
        assert held.nodes <= limits.cluster_nodes_max


@given(
    existing=st.lists(st.sampled_from(["cloud", "onprem", "unpriced", "removed"]), max_size=6),
    planned=st.lists(st.sampled_from(["cloud", "onprem", "unpriced"]), max_size=6),
)
def test_adding_nodes_one_by_one_is_counting_all_of_them(
    existing: list[str], planned: list[str]
) -> None:
    offers = OFFERS | {"unpriced": replace(CLOUD, name="unpriced", usd_per_hour=None)}
    held = count_holdings(offers, existing)
    for name in planned:
        held = held.with_planned(offers[name])
    counted = count_holdings(offers, [*existing, *planned])
    asked = count_holdings(offers, planned).committed_usd_per_hour
    assert held == replace(counted, planned_usd_per_hour=asked)
    assert (held.committed_usd_per_hour is None) == (
        "unpriced" in existing + planned or "removed" in existing
    )
