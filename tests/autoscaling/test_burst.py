"""One model's burst: capacity of unlike pools added up, and what is said of it."""

from dataclasses import replace
from decimal import Decimal

import pytest

from autoscaling.break_even import leave_room
from autoscaling.burst import Burst, Capacity, find_cold_start_s, look_ahead, say_raise
from autoscaling.snapshot import BurstPolicy, ModelView, PoolView
from tests.autoscaling.brain_run import learned

POLICY = BurstPolicy(cold_start_s=40.0, min_lease_s=60.0)
A100 = PoolView(
    name="a100", site="onprem", market="owned", slots=32, replicas_min=0, replicas_max=4, rps=3.0
)
OWNED_L40S = replace(A100, name="owned-l40s", rps=1.0)
CLOUD = PoolView(
    name="cloud",
    site="aws",
    market="on_demand",
    slots=32,
    replicas_min=0,
    replicas_max=4,
    usd_per_hour=Decimal("3.6"),
    rps=1.0,
)
SPOT = replace(CLOUD, name="spot", market="spot", usd_per_hour=Decimal("1.8"))
# 10 s promised: room of ln(20)/10 = 0.3 requests a second.
MODEL = ModelView("m", (), ttft_s_max=10.0, usd_per_late_request=0.05, attainment_min=1.0)


def burst(
    *capacities: Capacity, rps: float, policy: BurstPolicy = POLICY, **changes: object
) -> Burst:
    """The burst after ten minutes at one rate."""
    model = replace(
        MODEL,
        pools=tuple(one.pool for one in capacities),
        learned=learned([round(rps * 10)] * 60),
        **changes,
    )
    found = look_ahead(model, capacities, policy)
    assert found is not None
    return found


def names(found: Burst) -> list[str]:
    return [worth.offering.pool for worth in found.choose_more()]


def test_owned_gpus_of_different_speeds_add_up_as_work() -> None:
    """An A100 of 3 and an L40S of 1 begin 4 a second, less the room that keeps waits short."""
    found = burst(Capacity(A100, 1, 0), Capacity(OWNED_L40S, 1, 0), rps=1)
    assert found.outlook.owned_rps == pytest.approx(leave_room(4.0, ttft_s_max=10.0, variation=1.0))


def test_requests_that_vary_more_leave_less_of_owned_replicas_to_plan_with() -> None:
    """2.6 a second of 3: with C2 of 5 the room is three times 0.3, and one more is rented."""
    capacities = (Capacity(A100, 1, 0), Capacity(CLOUD, 0, 4))
    assert names(burst(*capacities, rps=2.6)) == []
    assert names(burst(*capacities, rps=2.6, variation=5.0)) == ["cloud"]


def test_owned_replicas_that_could_still_be_raised_count_before_the_cloud() -> None:
    """5 a second arrive, 3 run and 6 more could: nothing is rented. Were they stuck, it would."""
    cloud = Capacity(CLOUD, 0, 4)
    assert names(burst(Capacity(A100, 1, 2), cloud, rps=5)) == []
    assert names(burst(Capacity(A100, 1, 0), cloud, rps=5)) != []


def test_rented_replicas_on_their_way_are_not_rented_again() -> None:
    """5 a second over 2.7 of owned: three of 1; two on their way leave one."""
    assert names(burst(Capacity(A100, 1, 0), Capacity(CLOUD, 0, 4), rps=5)) == ["cloud"] * 3
    assert names(burst(Capacity(A100, 1, 0), Capacity(CLOUD, 2, 2), rps=5)) == ["cloud"]


def test_no_more_are_chosen_than_the_pool_may_have() -> None:
    assert names(burst(Capacity(A100, 1, 0), Capacity(CLOUD, 0, 1), rps=9)) == ["cloud"]


def test_the_cheaper_pool_is_filled_first_and_the_next_takes_the_rest() -> None:
    found = burst(Capacity(A100, 1, 0), Capacity(SPOT, 0, 1), Capacity(CLOUD, 0, 4), rps=5)
    assert names(found) == ["spot", "cloud", "cloud"]


def test_on_demand_comes_first_where_spot_is_lost_often_and_always_needed() -> None:
    """Starts take 300 s, so two losses an hour cost more late requests than half the price saves.

    In the 360 s paid for, 0.2 losses x 180 s x 1 a second x $0.05 = $1.80 against $0.18.
    """
    risky = replace(SPOT, cold_start_s=300.0, losses_per_hour=2.0)
    sure = replace(CLOUD, cold_start_s=300.0)
    pools = (Capacity(A100, 1, 0), Capacity(risky, 0, 4), Capacity(sure, 0, 4))
    assert names(burst(*pools, rps=4.6))[:1] == ["cloud"]


def test_a_pool_no_node_type_can_hold_is_never_offered() -> None:
    """With and without the comparison: an infinite price is no price."""
    lost = replace(CLOUD, usd_per_hour=Decimal("Infinity"))
    for policy in (POLICY, replace(POLICY, ablated=frozenset({"break-even"}))):
        found = burst(Capacity(A100, 1, 0), Capacity(lost, 0, 4), rps=9, policy=policy)
        assert (names(found), found.find_best()) == ([], None)


def test_a_pool_so_far_away_that_the_way_breaks_the_promise_is_never_offered() -> None:
    """10 s promised: 10 s of way are too many, 1 s isn't."""
    for round_trip_s, expected in ((10.0, []), (1.0, ["cloud"])):
        far = replace(CLOUD, round_trip_s=round_trip_s)
        assert names(burst(Capacity(A100, 1, 0), Capacity(far, 0, 1), rps=9)) == expected


def test_replicas_are_needed_from_the_last_one_on() -> None:
    """1.5 over 2.7: of four that run two are needed."""
    found = burst(Capacity(A100, 1, 0), Capacity(CLOUD, 4, 0), rps=4.2)
    assert found.count_needed("cloud") == 2


def test_the_dearer_ones_are_those_that_are_not_needed() -> None:
    """1.5 over 2.7: two on spot are enough, so it is two on demand that may go."""
    found = burst(Capacity(A100, 1, 0), Capacity(SPOT, 2, 0), Capacity(CLOUD, 2, 0), rps=4.2)
    assert (found.count_needed("spot"), found.count_needed("cloud")) == (2, 0)


def test_none_is_needed_when_owned_capacity_does() -> None:
    assert burst(Capacity(A100, 1, 0), Capacity(CLOUD, 4, 0), rps=1).count_needed("cloud") == 0


def test_a_model_without_owned_pools_rents_all_it_needs() -> None:
    assert names(burst(Capacity(CLOUD, 0, 4), rps=2)) == ["cloud"] * 2


def test_a_model_with_owned_pools_only_rents_nothing() -> None:
    found = burst(Capacity(A100, 1, 0), rps=90)
    assert (names(found), found.rented_rps, found.find_best()) == ([], 0, None)


def test_several_sites_offer_side_by_side() -> None:
    """The same price and speed at two sites: what one may not have, the other takes."""
    other = replace(CLOUD, name="other", site="gcp")
    found = burst(Capacity(A100, 1, 0), Capacity(CLOUD, 0, 2), Capacity(other, 0, 4), rps=5)
    assert names(found) == ["cloud", "cloud", "other"]


@pytest.mark.parametrize(
    ("rps", "ablated"), [((None, None), ""), ((1.0, 1.0), "capacity")], ids=["unknown", "ablated"]
)
def test_without_speeds_there_is_no_burst_to_judge(
    rps: tuple[float | None, float | None], ablated: str
) -> None:
    pools = (replace(A100, rps=rps[0]), replace(CLOUD, rps=rps[1]))
    model = replace(MODEL, pools=pools, learned=learned([10] * 60))
    policy = replace(POLICY, ablated=frozenset({ablated} - {""}))
    assert look_ahead(model, [Capacity(pool, 1, 0) for pool in pools], policy) is None


def test_without_arrivals_there_is_no_burst_to_judge() -> None:
    model = replace(MODEL, pools=(A100,))
    assert look_ahead(model, [Capacity(A100, 1, 0)], POLICY) is None


def test_a_pool_of_unknown_speed_counts_as_the_slowest_slot_known() -> None:
    """3 a second in 32 slots; 16 slots of a pool nothing is known of do half."""
    unknown = replace(CLOUD, rps=None, slots=16)
    found = burst(Capacity(A100, 1, 0), Capacity(unknown, 1, 0), rps=1)
    assert found.rps == {"a100": 3.0, "cloud": 1.5}


@pytest.mark.parametrize(
    ("known_s", "ablated", "found_s"),
    [(None, "", 40.0), (95.0, "", 95.0), (95.0, "cold-start", 40.0)],
    ids=["setting", "learned", "ablated"],
)
def test_a_cold_start_is_the_setting_until_it_is_learned(
    known_s: float | None, ablated: str, found_s: float
) -> None:
    policy = replace(POLICY, ablated=frozenset({ablated} - {""}))
    assert find_cold_start_s(replace(CLOUD, cold_start_s=known_s), policy) == found_s


def test_the_reason_names_the_work_the_end_the_cold_start_and_both_sides_of_the_comparison() -> (
    None
):
    """26 queued over 2.7 a second are 10 s; one for 100 s at $3.6/h is $0.10.

    A rise of 600 s lasts another 600 s with chance 1/2: 1000 s after midnight it ends at ~00:26.
    """
    found = burst(Capacity(A100, 1, 0), Capacity(CLOUD, 0, 1), rps=5)
    text = say_raise(found, found.choose_more(), waiting=26, now_s=1000.0)
    queued, over, cold, money = text.split(", ")
    assert queued == "26 queued = 10 s of work"
    over_rps = 5 - leave_room(3.0, ttft_s_max=10.0, variation=1.0)
    assert over.startswith(f"{over_rps:.1f} req/s over capacity until ~00:2")
    assert cold == "cold start 40 s"
    assert money.startswith("$0.10 against 5")
    assert money.endswith(" late requests")


def test_those_who_wait_for_free_owned_slots_are_no_queue_for_the_cloud() -> None:
    """32 slots, 12 held: of 30 waiting 20 begin there, of which 5 must stay; ten are left."""
    for kv_use_ratio, queued in ((None, 10), (0.95, 25)):
        owned = replace(A100, streams=12, kv_use_ratio=kv_use_ratio)
        found = burst(Capacity(owned, 1, 0), rps=1, waiting=30, waiting_may_burst=25)
        assert found.outlook.queued == queued


def test_a_site_farther_away_than_the_promise_is_never_offered() -> None:
    far = replace(CLOUD, round_trip_s=10.0)
    assert names(burst(Capacity(A100, 1, 0), Capacity(far, 0, 4), rps=9)) == []
