"""The timeline keeps what it is told in the right bin, and no more of it than a person can see."""

import pytest

from autoscaling.simulator.policy import Wish
from autoscaling.simulator.timeline import (
    ANYWHERE,
    NodeEvent,
    Sample,
    Timeline,
    build_timeline,
    find_bin_s,
)
from autoscaling.simulator.traffic import TraceRequest, build_traffic


def build(*arrivals_s: float, duration_s: float = 60.0) -> Timeline:
    requests = [TraceRequest(arrival_s, 10, 5) for arrival_s in arrivals_s]
    return build_timeline(build_traffic("made", requests, duration_s))


def sample(at_s: float, waiting: int = 0) -> Sample:
    return Sample(at_s, waiting, {}, {}, {}, cloud_usd=0.0, cloud_usd_per_hour=0.0)


@pytest.mark.parametrize(
    ("duration_s", "bin_s"), [(60, 10), (3600, 10), (7300, 15), (86_400, 120), (1_209_600, 1800)]
)
def test_a_bin_is_round_and_there_are_at_most_720(duration_s: float, bin_s: float) -> None:
    assert find_bin_s(duration_s) == bin_s


def test_arrivals_and_answers_count_where_the_request_arrived() -> None:
    """Arrivals at 1, 9 and 25 s; the answer to the one at 9 comes late, that to 25 in time."""
    timeline = build(1.0, 9.0, 25.0)
    timeline.answer(9.0, 30.0, is_in_time=False)
    timeline.answer(25.0, 0.5, is_in_time=True)
    assert timeline.arrivals == [2, 0, 1, 0, 0, 0]
    assert timeline.in_time == [0, 0, 1, 0, 0, 0]
    assert timeline.list_ttft_s(50) == [30.0, None, 0.5, None, None, None]


def test_what_happens_after_the_traffic_is_not_shown() -> None:
    timeline = build(1.0)
    timeline.sample(sample(50.0, waiting=3))
    timeline.sample(sample(70.0, waiting=9))
    timeline.decide(70.0, Wish({"a": 1}, reasons=("late",)))
    assert [one.waiting for one in timeline.samples.values()] == [3]
    assert not timeline.holds


def test_a_decision_is_kept_when_it_changes_the_wish_and_reasons_by_bin() -> None:
    timeline = build(1.0)
    for at_s, replicas in ((0.0, 0), (1.0, 0), (12.0, 2), (13.0, 2)):
        timeline.decide(at_s, Wish({"cloud": replicas}, reasons=(f"at {at_s:g}",)))
    (decided,) = timeline.decisions
    assert (decided.at_s, decided.before, decided.after) == (12.0, {"cloud": 0}, {"cloud": 2})
    assert decided.reasons == ("at 12",)
    assert timeline.holds == {0: ("at 1",), 1: ("at 13",)}


def test_a_wish_for_replicas_anywhere_is_kept_like_one_for_a_pool() -> None:
    timeline = build(1.0)
    timeline.decide(0.0, Wish(anywhere=2))
    timeline.decide(5.0, Wish(anywhere=3))
    (decided,) = timeline.decisions
    assert (decided.before, decided.after) == ({ANYWHERE: 2}, {ANYWHERE: 3})


def test_a_node_has_one_span_from_its_request_to_its_end() -> None:
    timeline = build(1.0)
    timeline.note_node(NodeEvent(5.0, "", "spot", "sold_out"))
    for at_s, turn in ((6.0, "asked"), (40.0, "joined"), (50.0, "notice"), (55.0, "lost")):
        timeline.note_node(NodeEvent(at_s, "spot-1", "spot", turn))
    (span,) = timeline.spans.values()
    assert (span.asked_s, span.joined_s, span.ended_s, span.end) == (6.0, 40.0, 55.0, "lost")
    assert [event.at_s for event in timeline.sold_out] == [5.0]
