"""Which idle nodes go home, in which order, and what keeps the others."""

from dataclasses import replace
from decimal import Decimal
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from autoscaling.releases import Homecoming, Resident, decide_releases

CLOUD = Resident(
    id="c",
    node_type="cloud",
    is_owned=False,
    usd_per_hour=Decimal("1.5"),
    is_idle=True,
    is_overdue=True,
    launched_s=0.0,
)
OWNED = replace(CLOUD, id="o", node_type="onprem", is_owned=True, usd_per_hour=Decimal(0))


def decide(*residents: Resident, now_s: float = 1000.0, lease_s_min: float = 600.0) -> Homecoming:
    return decide_releases(residents, now_s=now_s, lease_s_min=lease_s_min)


def test_cloud_goes_before_owned_and_the_dearest_first() -> None:
    dear = replace(CLOUD, id="d", usd_per_hour=Decimal(9))
    unpriced = replace(CLOUD, id="u", usd_per_hour=None)
    assert decide(OWNED, CLOUD, dear, unpriced).releases == ("u", "d", "c", "o")


def test_an_owned_node_stays_while_any_other_does() -> None:
    busy = replace(CLOUD, is_idle=False, is_overdue=False)
    found = decide(OWNED, busy)
    assert found.releases == ()
    assert found.kept == ("o idles and stays: owned nodes go last, 1 others are there",)
    assert decide(OWNED).releases == ("o",)


def test_a_cloud_node_is_kept_for_its_lease() -> None:
    """Launched at 0 with a lease of 600 s: at 590 s ten are left, at 600 s none."""
    found = decide(CLOUD, now_s=590.0)
    assert found.releases == ()
    assert found.kept == ("c idles and stays 10 s more: lease_s_min is 600 s",)
    assert decide(CLOUD, now_s=600.0).releases == ("c",)


def test_a_draining_node_waits_for_its_work_and_for_nothing_else() -> None:
    """Neither its lease nor its idle time nor owned nodes going last keeps it."""
    draining = replace(CLOUD, is_draining=True, is_overdue=False)
    assert decide(draining, now_s=1.0).releases == ("c",)
    assert decide(replace(draining, is_idle=False), now_s=1.0).releases == ()
    owned = replace(OWNED, is_draining=True, is_overdue=False)
    assert decide(owned, replace(CLOUD, is_overdue=False)).releases == ("o",)


def test_a_node_that_waiting_demand_counts_on_stays() -> None:
    assert decide(replace(CLOUD, is_needed=True)) == Homecoming((), ())


def test_a_node_nobody_charges_for_yet_has_no_lease() -> None:
    assert decide(replace(CLOUD, launched_s=None), now_s=1.0).releases == ("c",)


residents = st.builds(
    Resident,
    id=st.uuids().map(str),
    node_type=st.just("t"),
    is_owned=st.booleans(),
    usd_per_hour=st.none() | st.decimals(0, 9, places=1),
    is_idle=st.booleans(),
    is_overdue=st.booleans(),
    is_needed=st.booleans(),
    is_draining=st.booleans(),
    launched_s=st.none() | st.floats(0, 2000),
)


@given(st.lists(residents, max_size=8, unique_by=lambda one: one.id), st.randoms())
def test_the_order_asked_in_changes_nothing_and_no_busy_node_goes(
    asked: list[Resident], random: Random
) -> None:
    found = decide(*asked)
    shuffled = asked.copy()
    random.shuffle(shuffled)
    assert decide(*shuffled) == found
    by_id = {one.id: one for one in asked}
    assert all(by_id[gone].is_idle or by_id[gone].is_overdue for gone in found.releases)
    assert [by_id[gone].is_owned for gone in found.releases] == sorted(
        by_id[gone].is_owned for gone in found.releases
    )
