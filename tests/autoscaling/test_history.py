"""What gateways count becomes bins of ten seconds, whatever happens to the counters on the way."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.history import BIN_S, Counts, DemandHistory, note_arrivals


def note(looks: Iterable[tuple[float, dict[str, int]]], *, keep_s: float = 600.0) -> DemandHistory:
    """The history after looks at these times; all requests may leave."""
    history = DemandHistory()
    for now_s, arrived in looks:
        seen = {gateway: Counts(count, count) for gateway, count in arrived.items()}
        history = note_arrivals(history, seen, now_s=now_s, keep_s=keep_s)
    return history


def test_differences_of_counters_go_into_bins_of_ten_seconds() -> None:
    """Three a second for 25 s: two bins of 30, and 15 in the one still open."""
    history = note((float(now_s), {"a": 3 * now_s}) for now_s in range(26))
    assert history.all == (30, 30)
    assert (history.open_all, history.closed) == (15, 2)


def test_what_arrived_before_the_first_look_is_not_demand_of_now() -> None:
    assert note([(0.0, {"a": 9000}), (10.0, {"a": 9004})]).all == (4,)


def test_gateways_add_up_and_those_that_may_leave_are_counted_apart() -> None:
    history = DemandHistory()
    for now_s, one, other in ((0.0, Counts(), Counts()), (10.0, Counts(5, 2), Counts(7, 0))):
        history = note_arrivals(history, {"a": one, "b": other}, now_s=now_s, keep_s=600)
    assert (history.all, history.may_burst) == ((12,), (2,))


def test_a_counter_that_fell_begins_again_at_zero() -> None:
    """A gateway started again: 4 came until its end was seen, 3 since."""
    assert note([(0.0, {"a": 100}), (5.0, {"a": 104}), (10.0, {"a": 3})]).all == (7,)


def test_a_gateway_that_comes_back_adds_only_what_comes_from_then_on() -> None:
    """It was not heard for one look of 1 s: its 5,000 requests are no rise."""
    looks = [(float(t), {"a": t, "b": 5000 + t}) for t in range(11)]
    looks[5] = (5.0, {"a": 5})
    assert note(looks).all == (10 + 8,)


def test_a_silence_is_a_gap_and_not_an_absence_of_demand() -> None:
    """Ten looks, a silence of 60 s in which 500 came, ten looks: two bins, none of them empty."""
    before = [(float(t), {"a": 2 * t}) for t in range(11)]
    after = [(70.0 + t, {"a": 500 + 2 * t}) for t in range(11)]
    assert note([*before, *after]).all == (20, 20)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0], ids=["back", "forward"])
def test_a_clock_that_steps_is_a_gap(step_s: float) -> None:
    before = [(5000.0 + t, {"a": 2 * t}) for t in range(16)]
    after = [(5015.0 + step_s + t, {"a": 30 + 2 * t}) for t in range(11)]
    history = note([*before, *after])
    assert history.all == (20, 20), "what the open bin held is left out"
    assert history.closed == 2


def test_late_looks_do_not_make_the_rate_larger() -> None:
    """A look every 9.9 s at ten a second: 990 s hold 9,900, and 99 bins of 10 s about as many."""
    history = note(((9.9 * n, {"a": round(99 * n)}) for n in range(101)), keep_s=10_000)
    assert sum(history.all) / len(history.all) == pytest.approx(100, rel=0.02)


def test_no_more_than_asked_for_is_kept_and_the_oldest_goes_first() -> None:
    """60 s are six bins; the seconds of arrivals are 0, 1, 2 ... so the last bins are largest."""
    history = note(((10.0 * n, {"a": n * n}) for n in range(20)), keep_s=60)
    assert history.all == tuple(2 * n + 1 for n in range(13, 19))
    assert history.closed == 19


def test_a_look_keeps_what_it_was_given_unchanged() -> None:
    before = note([(0.0, {"a": 1}), (1.0, {"a": 2})])
    note_arrivals(before, {"a": Counts(9, 9)}, now_s=2.0, keep_s=600)
    assert (before.open_all, before.looked_s) == (1, 1.0)


_STEPS = st.lists(
    st.tuples(st.floats(-100, 100), st.dictionaries(st.sampled_from("abc"), st.integers(0, 50))),
    max_size=60,
)


@given(_STEPS)
def test_no_sequence_of_looks_makes_more_arrivals_than_there_were(
    steps: list[tuple[float, dict[str, int]]],
) -> None:
    """Time goes anywhere, gateways come, go and start again; a reset counts from zero."""
    history, now_s, most = DemandHistory(), 0.0, 0
    for by_s, arrived in steps:
        now_s += by_s
        # A counter's value is the most that can have come through it since it began.
        most += sum(arrived.values())
        seen = {gateway: Counts(count, count // 2) for gateway, count in arrived.items()}
        history = note_arrivals(history, seen, now_s=now_s, keep_s=1e9)
        assert all(count >= 0 for count in (*history.all, *history.may_burst))
        assert len(history.all) == len(history.may_burst) <= history.closed
        assert sum(history.all) + history.open_all <= most
        assert history.open_since_s is not None
        assert now_s - history.open_since_s < 2 * BIN_S
