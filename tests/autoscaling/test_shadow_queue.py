"""The fluid queue: who leaves when, and how late that was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.shadow_queue import Look, Queue, advance_queue


def look(now_s: float, *, arrived: float = 0, wait_s_max: float = 2.0) -> Look:
    """A look one second after the last."""
    return Look(now_s=now_s, since_s=now_s - 1, arrived=arrived, wait_s_max=wait_s_max)


def test_the_oldest_leave_first_and_are_late_by_their_own_wait() -> None:
    """Four come at 1 s, two at 3 s; one leaves at 2 s (1 s, in time), three at 4 s (3 s, late)."""
    queue = advance_queue(Queue(), look(1, arrived=4), waiting=4)
    queue = advance_queue(queue, look(2), waiting=3)
    assert queue.late == 0
    queue = advance_queue(queue, look(3, arrived=2), waiting=5)
    queue = advance_queue(queue, look(4), waiting=2)
    assert queue.late == 3
    assert [(one.arrived_s, one.requests) for one in queue.cohorts] == [(3, 2)]


def test_who_never_waits_is_never_late() -> None:
    """A thousand come and go within each second."""
    queue = Queue()
    for now_s in range(60):
        queue = advance_queue(queue, look(now_s, arrived=1000, wait_s_max=0.0), waiting=0)
    assert (queue.late, queue.waited_s) == (0, 0)


def test_waiting_is_added_up_over_time() -> None:
    """0 to 4 waiting within a second are 2 s of waiting; 4 for another second are 4 s."""
    queue = advance_queue(Queue(), look(1, arrived=4), waiting=4)
    queue = advance_queue(queue, look(2), waiting=4)
    assert queue.waited_s == 6


def test_more_waiting_than_were_seen_to_arrive_count_from_now() -> None:
    """The queue was reported before the counters: three wait, one was counted."""
    queue = advance_queue(Queue(), look(5, arrived=1), waiting=3)
    assert [(one.arrived_s, one.requests) for one in queue.cohorts] == [(5, 3)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 400)), max_size=200))
def test_the_queue_always_holds_as_many_as_wait_in_few_cohorts(
    looks: list[tuple[int, int]],
) -> None:
    """Whatever is reported; the record must stay small."""
    queue = Queue()
    for now_s, (arrived, waiting) in enumerate(looks):
        queue = advance_queue(queue, look(now_s, arrived=arrived), waiting=waiting)
        assert queue.waiting == pytest.approx(waiting)
        assert len(queue.cohorts) <= 65
        assert queue.cohorts == tuple(sorted(queue.cohorts, key=lambda one: one.arrived_s))
