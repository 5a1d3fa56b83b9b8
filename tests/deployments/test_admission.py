"""Admission: bounded lanes, one order of arrival, nobody blocked by who may use less."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.admission import (
    QueueLimits,
    Ticket,
    estimate_retry_after_s,
    is_anything_running,
    is_lane_full,
    plan_assignments,
)
from deployments.routing import ReplicaLoad

LIMITS = QueueLimits(waiting_max=2, wait_s_max=10.0)


def replica(replica_id: str, *, owned: bool, slots: int = 1, **changes: float) -> ReplicaLoad:
    site, market = ("onprem", "owned") if owned else ("cloud", "on_demand")
    return ReplicaLoad(replica_id, f"{site}-pool", site, owned, market, slots, **changes)  # type: ignore[arg-type]


def ticket(number: int, *, may_leave: bool = True) -> Ticket:
    return Ticket(number, may_leave)


def assigned(plan: object) -> dict[int, str]:
    return {one.number: one.route.load.replica_id for one in plan.assignments}  # type: ignore[attr-defined]


TICKETS = st.lists(st.booleans(), max_size=12).map(
    lambda leaves: [ticket(number, may_leave=may_leave) for number, may_leave in enumerate(leaves)]
)
FREE = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(
    lambda slots: [
        replica(name, owned=name == "o", slots=count)
        for name, count in zip("oc", slots, strict=True)
        if count
    ]
)


def test_each_lane_has_a_bound_of_its_own() -> None:
    waiting = [ticket(1, may_leave=False), ticket(2, may_leave=False), ticket(3)]
    assert is_lane_full(waiting, ticket(4, may_leave=False), LIMITS)
    assert not is_lane_full(waiting, ticket(4), LIMITS)


def test_a_restricted_request_without_a_slot_does_not_hold_up_the_others() -> None:
    waiting = [ticket(1, may_leave=False), ticket(2)]
    loads = [replica("o", owned=True, held=1), replica("c", owned=False)]
    assert assigned(plan_assignments(waiting, loads, LIMITS)) == {2: "c"}


def test_an_owned_slot_goes_to_the_oldest_whatever_its_lane() -> None:
    loads = [replica("o", owned=True)]
    restricted_first = [ticket(1, may_leave=False), ticket(2)]
    others_first = [ticket(1), ticket(2, may_leave=False)]
    assert assigned(plan_assignments(restricted_first, loads, LIMITS)) == {1: "o"}
    assert assigned(plan_assignments(others_first, loads, LIMITS)) == {1: "o"}


def test_a_request_that_avoids_a_failed_replica_does_not_close_its_lane() -> None:
    avoiding = Ticket(1, may_leave_owned=True, excluded=frozenset({"o"}))
    plan = plan_assignments([avoiding, ticket(2)], [replica("o", owned=True)], LIMITS)
    assert assigned(plan) == {2: "o"}


def test_old_hearsay_is_checked_before_anyone_goes_elsewhere() -> None:
    loads = [replica("o", owned=True, others=1, seen_age_s=9.0), replica("c", owned=False)]
    plan = plan_assignments([ticket(1), ticket(2, may_leave=False)], loads, LIMITS)
    assert plan.assignments == ()
    assert plan.look_again == ("o",)


@given(TICKETS, FREE)
def test_no_slot_is_given_twice_and_none_a_waiter_could_use_stays_free(
    waiting: list[Ticket], loads: list[ReplicaLoad]
) -> None:
    taken = assigned(plan_assignments(waiting, loads, LIMITS))
    for load in loads:
        used = list(taken.values()).count(load.replica_id)
        assert used <= load.slots
        left_out = [one for one in waiting if one.number not in taken]
        if used < load.slots:
            assert not [one for one in left_out if load.owned or one.may_leave_owned]


@given(TICKETS, FREE)
def test_within_a_lane_nobody_is_overtaken(waiting: list[Ticket], loads: list[ReplicaLoad]) -> None:
    taken = assigned(plan_assignments(waiting, loads, LIMITS))
    for lane in (True, False):
        served = [one.number in taken for one in waiting if one.may_leave_owned is lane]
        assert served == sorted(served, reverse=True)


@given(TICKETS, FREE)
def test_a_restricted_request_never_gets_a_paid_slot(
    waiting: list[Ticket], loads: list[ReplicaLoad]
) -> None:
    plan = plan_assignments(waiting, loads, LIMITS)
    lanes = {one.number: one.may_leave_owned for one in waiting}
    assert all(one.route.load.owned or lanes[one.number] for one in plan.assignments)


def test_busy_and_not_running_are_told_apart() -> None:
    full = replica("o", owned=True, held=1)
    none: frozenset[str] = frozenset()
    assert is_anything_running([full], may_leave_owned=False, excluded=none)
    assert not is_anything_running([], may_leave_owned=True, excluded=none)
    assert not is_anything_running(
        [replica("c", owned=False)], may_leave_owned=False, excluded=none
    )


def test_the_retry_hint_follows_the_queue_and_stays_within_a_minute() -> None:
    """7 waiting and the newcomer, 2 s per slot, 4 slots: 8 x 2 / 4 = 4 s."""
    assert estimate_retry_after_s(waiting=7, slots=4, mean_hold_s=2.0) == 4
    assert estimate_retry_after_s(waiting=0, slots=64, mean_hold_s=0.1) == 1
    assert estimate_retry_after_s(waiting=999, slots=1, mean_hold_s=30.0) == 60
    assert estimate_retry_after_s(waiting=3, slots=4, mean_hold_s=None) == 5
