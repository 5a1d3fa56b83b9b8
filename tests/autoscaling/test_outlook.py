"""What the bins of the past say about the next minutes: rises, how long they last, and returns."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.history import BIN_S
from autoscaling.outlook import Outlook, Rise, Window, find_slope

# Ten a second are owned: 100 requests a bin.
OWNED_RPS = 10.0
CALM, HIGH = 50, 200
SOON = Window(begins_s=0.0, length_s=100.0)


def outlook(*bins: int, stay: int = 0, **changes: object) -> Outlook:
    """What arrived, bin by bin: these requests that may leave, and `stay` more that may not."""
    every = tuple(count + stay for count in bins)
    plain = Outlook(OWNED_RPS, all=every, may_burst=bins, return_s=30.0)
    return replace(plain, **changes)


def test_what_fits_is_no_rise() -> None:
    rise = outlook(*[100] * 40).over(0)
    assert (rise.now, rise.age_s, rise.gaps_s) == ((), 0.0, ())


def test_a_rise_is_what_lies_over_the_level_and_is_as_old_as_its_bins() -> None:
    """Six calm bins, then eight of 200: the mean of three passes 100 with the second of them."""
    rise = outlook(*[CALM] * 6, *[HIGH] * 8).over(0)
    assert rise.age_s == 70
    assert rise.now == (10.0,) * 6, "20 a second arrive, 10 are owned"


def test_ten_seconds_over_the_level_are_no_rise() -> None:
    """The mean of 50, 50 and 200 is 100: chance finds free slots for that."""
    assert outlook(*[CALM] * 6, HIGH).over(0).age_s == 0


def test_a_rise_whose_newest_bin_is_calm_rents_nothing_and_may_keep() -> None:
    """The mean of 200, 200 and 50 is still over 100; the rise was shorter than a node's start."""
    look = outlook(*[CALM] * 6, HIGH, HIGH, CALM)
    rise = look.over(0)
    assert (rise.is_on, rise.age_s) == (False, 20.0)
    assert look.count_spared(0, 5, SOON) == 0
    assert look.count_spared(0, 5, replace(SOON, is_kept=True)) > 0


def test_each_replica_is_judged_at_its_own_level() -> None:
    """20 a second over 10 owned: 10 for the first, 4 for one that begins after others of 6."""
    look = outlook(*[CALM] * 6, *[HIGH] * 8)
    assert [look.over(rps).now[-1] for rps in (0.0, 6.0)] == [10.0, 4.0]
    assert look.over(10.0).now == ()


def test_what_must_stay_makes_no_excess() -> None:
    """Thirty a second that may not leave fill owned capacity three times and rent nothing."""
    rise = outlook(*[0] * 40, stay=300).over(0)
    assert (rise.now, set(rise.past)) == ((), {0.0})


def test_what_must_stay_pushes_out_what_may_leave() -> None:
    """8 a second must stay and leave room for 2 of the 5 that may go."""
    rise = outlook(*[50] * 10, stay=80).over(0)
    assert rise.past == (3.0,) * 10


def test_what_must_stay_pushes_out_no_more_than_there_is() -> None:
    assert outlook(*[50] * 10, stay=900).over(0).past == (5.0,) * 10


def test_a_rise_of_d_seconds_lasts_another_t_with_chance_d_over_d_plus_t() -> None:
    rise = Rise(now=(1.0,), age_s=60.0)
    assert [rise.chance_of_lasting(t) for t in (60, 180)] == [0.5, 0.25]


def test_durations_of_earlier_rises_shift_the_chance() -> None:
    """At 60 s of age the guess for 60 more is 1/2; one of two that got this far lasted 120 s."""
    rise = Rise(now=(1.0,), age_s=60.0, durations_s=(30.0, 90.0, 600.0))
    assert rise.chance_of_lasting(60) == pytest.approx((0.5 + 1) / 3)


def test_the_rest_is_expected_to_be_its_median() -> None:
    """Half of the rises of a minute's age last another minute."""
    assert Rise(now=(1.0,), age_s=60.0).expected_rest_s() == pytest.approx(60, rel=0.25)


def test_no_rise_lasts() -> None:
    assert Rise().chance_of_lasting(1.0) == 0.0
    assert Rise().expect_rising_s(SOON) == 0.0


def test_a_first_rise_keeps_nothing_waiting_for_a_second() -> None:
    """It is over for ten seconds, and nothing says that another comes."""
    over = outlook(*[CALM] * 10, *[HIGH] * 6, *[CALM] * 4)
    assert over.over(0).gaps_s == ()
    assert over.count_spared(0, 5, replace(SOON, is_kept=True)) == 0


def test_a_quiet_that_has_lasted_goes_on_unless_longer_gaps_ended_soon() -> None:
    """After 60 s of quiet, within 100 s: the guess is 100 / 160, and one of two longer gaps ended.

    After 400 s no gap was longer, so the guess stands alone: 100 / 500.
    """
    rise = Rise(quiet_s=60.0, gaps_s=(50.0, 100.0, 300.0))
    assert rise.chance_of_return(100.0) == pytest.approx((100 / 160 + 1) / 3)
    assert replace(rise, quiet_s=400.0).chance_of_return(100.0) == pytest.approx(0.2)
    assert replace(rise, gaps_s=()).chance_of_return(100.0) == 0, "a first rise"


def test_new_replicas_wait_for_the_next_rise_only_while_gaps_were_longer() -> None:
    """Of gaps of 50, 100 and 300 s two are longer than 60 s of quiet, and one more never ends."""
    rise = Rise(quiet_s=60.0, gaps_s=(50.0, 100.0, 300.0))
    assert rise.chance_of_more == pytest.approx(2 / 3)
    assert replace(rise, quiet_s=400.0).chance_of_more == 0


def test_rises_that_return_keep_a_replica_for_their_beginnings_only() -> None:
    """Four rises of 10 bins each 30 bins; a node is back after 3 bins, so only 3 of 10 are missed.

    After 60 s of quiet the next comes within 100 s with (100 / 160 + 0) / 4: no gap was that short.
    """
    look = outlook(*([CALM] * 20 + [HIGH] * 10) * 4, *[CALM] * 6)
    rise = look.over(5.0)
    chance = 100 / 160 / 4
    assert rise.chance_of_return(100.0) == pytest.approx(chance)
    missed = [rate for rate in rise.onsets if rate > 0]
    assert len(missed) == 4 * 3
    assert sum(rate > 0 for rate in rise.past) > len(missed)
    each_time = sum(min(rate, 5.0) for rate in missed) * BIN_S / 4
    kept = look.count_spared(5, 10, replace(SOON, is_kept=True))
    assert kept == pytest.approx(chance * each_time)


def test_a_rise_that_was_on_when_the_record_begins_tells_no_duration() -> None:
    """It may have been longer."""
    assert outlook(*[HIGH] * 5, *[CALM] * 5).over(0).durations_s == ()


def test_requests_spared_are_those_over_what_is_there_while_the_rise_is_expected_to_last() -> None:
    """10 over for ever, 4 are there, 3 more begin 3 a second for 100 s."""
    look = outlook(*[HIGH] * 6, is_blind=True)
    assert look.count_spared(4, 7, SOON) == pytest.approx(300)
    assert look.count_spared(4, 30, SOON) == pytest.approx(600), "no more than there are"


def test_the_late_that_are_allowed_are_not_spared() -> None:
    """A tenth of 10 a second may be late: of 1.5 over, 0.5 count."""
    look = outlook(*[115] * 6, is_blind=True, late_ratio_max=0.1)
    assert look.count_spared(0, 10, SOON) == pytest.approx(50)


def test_a_steady_climb_announces_a_rise_before_there_is_one() -> None:
    """+2 a bin for 30 bins ends at 98 of 100; 3 bins ahead it is over."""
    climb = [2 * n + 40 for n in range(30)]
    rise = outlook(*climb).over(0)
    assert set(rise.past) == {0.0}
    assert rise.age_s == 300, "as old as the climb"
    assert rise.now[-1] > 0


def test_a_climb_that_ends_below_the_level_announces_nothing() -> None:
    assert outlook(*range(30)).over(0).age_s == 0


def test_a_step_is_no_climb() -> None:
    """Twenty-five calm bins and five high ones have a slope, but nothing says it goes on."""
    assert find_slope((CALM,) * 25 + (HIGH,) * 5) == 0.0


def test_two_spells_are_no_climb_though_each_half_ends_higher_than_it_began() -> None:
    """Of a half's 105 pairs 50 climb; the median pair is one of those that don't."""
    assert find_slope(((CALM,) * 10 + (HIGH,) * 5) * 2) == 0.0


def test_noise_is_no_climb() -> None:
    assert find_slope((40, 60) * 15) == 0.0


def test_a_climb_has_the_slope_of_its_bins() -> None:
    assert find_slope(tuple(range(0, 60, 2))) == pytest.approx(2.0)


def test_nothing_known_is_nothing_over() -> None:
    empty = outlook()
    assert (empty.level_rps, empty.over(0)) == (0.0, Rise())
    assert empty.count_spared(0, 1, SOON) == 0


_BINS = st.lists(st.integers(0, 300), min_size=1, max_size=60)
_WINDOWS = st.builds(Window, st.floats(0, 600), st.floats(0, 600), st.booleans())


@given(_BINS, st.floats(0, 30), st.floats(0.1, 10), _WINDOWS)
def test_no_more_is_spared_than_capacity_can_begin(
    bins: list[int], have_rps: float, more_rps: float, window: Window
) -> None:
    """In the time of the window, and nothing negative or NaN; with and without a forecast."""
    for is_blind in (False, True):
        look = outlook(*bins, is_blind=is_blind, late_ratio_max=0.005)
        spared = look.count_spared(have_rps, have_rps + more_rps, window)
        assert 0 <= spared <= more_rps * window.length_s * (1 + 1e-9)


@given(_BINS, _WINDOWS)
def test_what_may_not_leave_spares_nothing(bins: list[int], window: Window) -> None:
    look = replace(outlook(*[0] * len(bins)), all=tuple(bins))
    assert look.count_spared(0, 100, window) == 0


@given(_BINS, st.floats(0, 30), st.floats(0, 1000), st.floats(0, 1000))
def test_chances_are_chances_lasting_falls_with_time_and_returning_grows(
    bins: list[int], level_rps: float, sooner_s: float, by_s: float
) -> None:
    rise = outlook(*bins).over(level_rps)
    soon, by_then = rise.chance_of_return(sooner_s), rise.chance_of_return(sooner_s + by_s)
    assert 0 <= soon <= by_then <= 1
    assert 0 <= rise.chance_of_more <= 1
    sooner, later = rise.chance_of_lasting(sooner_s), rise.chance_of_lasting(sooner_s + by_s)
    assert 0 <= later <= sooner <= 1
    assert rise.expected_rest_s() >= BIN_S
