"""Dollars against late requests, worked out by hand."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from autoscaling.break_even import (
    _LATE_RATIO_MAX,
    Offering,
    Terms,
    choose_more,
    find_capacity,
    judge_kept,
    judge_more,
    leave_room,
)
from autoscaling.outlook import Outlook

TERMS = Terms(usd_per_late_request=0.01, lease_s=60.0)
CLOUD = Offering("cloud", "on_demand", 1.0, Decimal("3.6"), cold_start_s=40.0)
SPOT = replace(CLOUD, pool="spot", market="spot", usd_per_hour=Decimal("1.8"))
DEAR = replace(CLOUD, pool="dear", usd_per_hour=Decimal(9))


def endless(over_rps: float, *, owned_rps: float = 2.0) -> Outlook:
    """What arrives is over owned capacity by so much, for ever: sums can be done by hand."""
    bins = (round((owned_rps + over_rps) * 10),) * 6
    return Outlook(owned_rps, bins, bins, return_s=40.0, is_blind=True)


def test_one_more_spares_what_it_begins_in_its_lease_and_costs_its_cold_start_too() -> None:
    """1 of 3 over for 60 s: 60 requests at $0.01; 100 s at $3.6/h are $0.10."""
    worth = judge_more(endless(3), CLOUD, have_rps=0, terms=TERMS)
    assert worth.spared == pytest.approx(60)
    assert worth.usd_spared == pytest.approx(0.60)
    assert worth.usd_cost == pytest.approx(0.10)
    assert worth.usd_net == pytest.approx(0.50)


def test_what_others_begin_is_not_spared_again() -> None:
    """Of 3 over, 2.5 are begun by those there: half a request a second for 60 s."""
    worth = judge_more(endless(3), CLOUD, have_rps=2.5, terms=TERMS)
    assert worth.spared == pytest.approx(30)


def test_a_longer_cold_start_costs_more_and_spares_no_more() -> None:
    """400 s are paid instead of 100."""
    slow = replace(CLOUD, cold_start_s=340.0)
    worth = judge_more(endless(3), slow, have_rps=0, terms=TERMS)
    assert (worth.spared, worth.usd_cost) == (pytest.approx(60), pytest.approx(0.40))


def test_answers_that_are_paid_by_the_byte_cost_with_each_request() -> None:
    """60 answers at $0.001 to send home, on top of $0.10."""
    far = replace(CLOUD, usd_per_request=0.001)
    worth = judge_more(endless(3), far, have_rps=0, terms=TERMS)
    assert worth.usd_cost == pytest.approx(0.16)
    dear = replace(CLOUD, usd_per_request=0.02)
    assert judge_more(endless(3), dear, have_rps=0, terms=TERMS).usd_net < 0


def test_one_that_runs_is_judged_over_the_time_a_return_would_take() -> None:
    """1 a second for 40 s at $0.01 against 40 s at $3.6/h; without a lease, as it is there."""
    rising = endless(3)
    worth = judge_kept(rising, CLOUD, have_rps=0, terms=TERMS)
    assert worth.spared == pytest.approx(40)
    assert worth.usd_cost == pytest.approx(0.04)


def test_replicas_are_rented_while_each_pays_and_no_further() -> None:
    """2.1 over: two replicas of 1; a third would spare 6 requests, $0.06 against $0.10."""
    chosen = choose_more(endless(2.1), lambda _: [CLOUD], have_rps=0, terms=TERMS)
    assert [worth.offering.pool for worth in chosen] == ["cloud", "cloud"]
    assert chosen[1].spared == pytest.approx(60)


def test_the_pool_that_wins_the_most_is_chosen_whatever_order_they_are_offered_in() -> None:
    for offers in ([DEAR, CLOUD], [CLOUD, DEAR]):
        chosen = choose_more(
            endless(1), lambda taken, offers=offers: offers, have_rps=0, terms=TERMS
        )
        assert [worth.offering.pool for worth in chosen] == ["cloud"]


def test_one_large_replica_is_chosen_before_the_small_that_would_win_less() -> None:
    """Two a second for $0.25 spare 120; one a second for $0.10 spares 60 and $0.15 less."""
    large = replace(DEAR, extra_rps=2.0)
    chosen = choose_more(endless(2), lambda _: [CLOUD, large], have_rps=0, terms=TERMS)
    assert [worth.offering.pool for worth in chosen] == ["dear"]


def test_nothing_is_rented_when_nothing_is_offered_or_over() -> None:
    assert choose_more(endless(3), lambda _: [], have_rps=0, terms=TERMS) == []
    assert choose_more(endless(0), lambda _: [CLOUD], have_rps=0, terms=TERMS) == []


def test_spot_is_charged_the_requests_its_loss_would_make_late() -> None:
    """Lost once in 100 s, and 340 s are paid for: 3.4 losses.

    Another is there after 280 s, 160 s after the notice's 120: 160 requests at $0.01 each time.
    """
    risky = replace(SPOT, cold_start_s=280.0, losses_per_hour=36.0)
    calm = replace(risky, losses_per_hour=0.0)
    found = judge_more(endless(3), risky, have_rps=0, terms=TERMS)
    without = judge_more(endless(3), calm, have_rps=0, terms=TERMS)
    assert found.usd_cost - without.usd_cost == pytest.approx(3.4 * 160 * 0.01)


def test_a_loss_that_the_notice_covers_costs_nothing() -> None:
    """Another is there after 40 s, and the notice comes 120 s before the end."""
    risky = replace(SPOT, losses_per_hour=36.0)
    found = judge_more(endless(3), risky, have_rps=0, terms=TERMS)
    assert found.usd_cost == pytest.approx(1.8 * 100 / 3600)


@pytest.mark.parametrize(
    ("over_rps", "losses_per_hour", "pool"),
    [(1.0, 1.0, "cloud"), (1.0, 0.01, "spot"), (0.05, 1.0, "spot")],
    ids=["always needed and lost often", "lost rarely", "needed for little"],
)
def test_spot_is_left_where_it_is_lost_often_and_always_needed(
    over_rps: float, losses_per_hour: float, pool: str
) -> None:
    """With a cold start of 300 s spot saves $0.18 in the 360 s paid for.

    A loss makes 180 s of requests late at $0.15: $27 when the replica is full, $1.35 when it begins
    0.05 a second. One loss an hour is a tenth in 360 s: $2.70 or $0.135.
    """
    spot = replace(SPOT, cold_start_s=300.0, losses_per_hour=losses_per_hour)
    sure = replace(CLOUD, cold_start_s=300.0)
    (chosen,) = choose_more(
        endless(1.0),
        lambda taken: [] if taken else [spot, sure],
        have_rps=1.0 - over_rps,
        terms=replace(TERMS, usd_per_late_request=0.15),
    )
    assert chosen.offering.pool == pool


def test_a_lease_or_return_of_no_time_spares_nothing_and_is_no_error() -> None:
    assert judge_more(endless(3), SPOT, have_rps=0, terms=replace(TERMS, lease_s=0.0)).spared == 0
    at_once = replace(SPOT, cold_start_s=0.0, losses_per_hour=1.0)
    assert judge_kept(endless(3), at_once, have_rps=0, terms=TERMS).usd_net == 0


def test_without_the_comparison_any_late_request_is_worth_a_node() -> None:
    """One request in 60 s at $0.01 never pays $0.10, and is rented for nonetheless."""
    few = endless(0.1)
    assert choose_more(few, lambda _: [CLOUD], have_rps=0.05, terms=TERMS) == []
    terms = replace(TERMS, is_any_worth=True)
    more = choose_more(few, lambda t: [] if t else [CLOUD], have_rps=0.05, terms=terms)
    assert len(more) == 1


def test_the_room_left_is_the_same_however_large_the_capacity_is() -> None:
    """exp(-room x 2 s) = 1/20 of those that wait: ln(20) / 2 = 1.5 a second."""
    for rps in (10.0, 1000.0):
        assert rps - leave_room(rps, ttft_s_max=2.0, variation=1.0) == pytest.approx(
            -math.log(_LATE_RATIO_MAX) / 2
        )


@pytest.mark.parametrize(
    ("variation", "times"),
    [(0.0, 0.5), (1.0, 1.0), (3.0, 2.0)],
    ids=["constant", "exponential", "heavy tail"],
)
def test_the_more_work_varies_the_more_room_is_left(variation: float, times: float) -> None:
    """(1 + C2) / 2 of the 1.5 requests a second that exponential work needs."""
    room = math.log(20) / 2 * times
    assert 10 - leave_room(10.0, ttft_s_max=2.0, variation=variation) == pytest.approx(room)


def wait_in_line(rate: float, works: Sequence[float], *, longer_than_s: float) -> float:
    """The share of those that wait at all that wait longer, of 200,000 at random at one server."""
    chance = random.Random(7)
    wait_s, waited, late = 0.0, 0, 0
    for _ in range(200_000):
        wait_s = max(0.0, wait_s + chance.choice(works) - chance.expovariate(rate))
        waited += wait_s > 0
        late += wait_s > longer_than_s
    return late / waited


@pytest.mark.parametrize(
    ("works", "variation"),
    [([0.1], 0.0), ([0.05] * 9 + [0.55], 2.25)],
    ids=["constant", "one in ten is long"],
)
def test_one_in_twenty_of_those_that_wait_in_a_line_waits_too_long(
    works: Sequence[float], variation: float
) -> None:
    """Ten a second are done of both; long ones vary by 9/10 x 0.05^2 + 1/10 x 0.45^2 over 0.1^2.

    Kingman's tail is exact in the limit of a full line only: hence the width.
    """
    rate = leave_room(10.0, ttft_s_max=2.0, variation=variation)
    assert wait_in_line(rate, works, longer_than_s=2.0) == pytest.approx(0.05, abs=0.015)


def test_those_queued_that_still_wait_when_it_comes_are_spared_too() -> None:
    """150 wait; 2 a second are begun for the 40 s until it is there: 70 are left, it begins 60.

    With those over, 60 in its lease, that is 120; where only 100 wait, 20 are left.
    """
    for queued, spared in ((150, 120), (100, 80), (80, 60)):
        look = replace(endless(1), queued=queued)
        assert judge_more(look, CLOUD, have_rps=0, terms=TERMS).spared == pytest.approx(spared)


def test_what_a_site_charges_for_answers_is_part_of_the_cost() -> None:
    """60 requests at $0.002 on the way home."""
    far = replace(CLOUD, usd_per_request=0.002)
    worth = judge_more(endless(3), far, have_rps=0, terms=TERMS)
    assert worth.usd_cost == pytest.approx(0.10 + 60 * 0.002)


def test_no_more_than_half_of_a_capacity_is_left_free() -> None:
    for variation in (1.0, 9.0):
        assert leave_room(1.0, ttft_s_max=2.0, variation=variation) == 0.5
    assert leave_room(0.0, ttft_s_max=2.0, variation=1.0) == 0.0


@pytest.mark.parametrize("rps", [0.3, 2.0, 40.0])
@pytest.mark.parametrize("variation", [0.0, 1.0, 4.0])
def test_the_capacity_a_rate_needs_leaves_that_rate_its_room(rps: float, variation: float) -> None:
    needed = find_capacity(rps, ttft_s_max=2.0, variation=variation)
    assert leave_room(needed, ttft_s_max=2.0, variation=variation) == pytest.approx(rps)
