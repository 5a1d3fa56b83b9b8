"""Admission: bounded lanes, one order of arrival, nobody blocked by who may use less."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deployments.admission import (
    Plan,
    QueueLimits,
    Ticket,
    choose_refused,
    estimate_retry_after_s,
    is_anything_running,
    plan_assignments,
)
from deployments.routing import ReplicaLoad

LIMITS = QueueLimits(waiting_max=2, wait_s_max=10.0)


def replica(replica_id: str, *, owned: bool, slots: int = 1, **changes: float) -> ReplicaLoad:
    site, market = ("onprem", "owned") if owned else ("cloud", "on_demand")
    return ReplicaLoad(replica_id, f"{site}-pool", site, owned, market, slots, **changes)  # type: ignore[arg-type]


def ticket(number: int, *, may_leave: bool = True) -> Ticket:
    return Ticket(number, may_leave)


def ticket_at(number: int, arrived_s: float) -> Ticket:
    return Ticket(number, may_leave_owned=True, arrived_s=arrived_s)


def plan(
    waiting: list[Ticket],
    loads: list[ReplicaLoad],
    *,
    in_time_s: float | None = None,
    now_s: float = 0.0,
) -> Plan:
    limits = replace(LIMITS, in_time_s=in_time_s)
    return plan_assignments(waiting, loads, limits, now_s=now_s)


def assigned(found: Plan) -> dict[int, str]:
    return {one.number: one.route.load.replica_id for one in found.assignments}


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
    assert choose_refused(waiting, ticket(4, may_leave=False), LIMITS, now_s=0.0) == 4
    assert choose_refused(waiting, ticket(4), LIMITS, now_s=0.0) is None


def test_a_full_lane_refuses_the_oldest_late_one_and_the_newcomer_only_if_all_are_in_time() -> None:
    """Two places: at 2.5 s the first, 1.5 s old, is late; the other lane's late one stays."""
    limits = replace(LIMITS, in_time_s=1.2)
    waiting = [Ticket(1, may_leave_owned=False), *(ticket_at(n, float(n - 1)) for n in (2, 3))]
    newcomer = ticket_at(4, 2.5)
    assert choose_refused(waiting, newcomer, limits, now_s=2.5) == 2
    assert choose_refused(waiting, newcomer, replace(limits, in_time_s=2.0), now_s=2.5) == 4
    assert choose_refused(waiting, newcomer, LIMITS, now_s=2.5) == 4


def test_a_late_one_that_comes_back_to_a_full_lane_is_refused_before_those_in_time() -> None:
    waiting = [ticket_at(n, 2.0) for n in (2, 3)]
    limits = replace(LIMITS, in_time_s=1.2)
    assert choose_refused(waiting, ticket_at(1, 0.0), limits, now_s=2.5) == 1


def test_a_restricted_request_without_a_slot_does_not_hold_up_the_others() -> None:
    waiting = [ticket(1, may_leave=False), ticket(2)]
    loads = [replica("o", owned=True, held=1), replica("c", owned=False)]
    assert assigned(plan(waiting, loads)) == {2: "c"}


def test_an_owned_slot_goes_to_the_oldest_whatever_its_lane() -> None:
    loads = [replica("o", owned=True)]
    restricted_first = [ticket(1, may_leave=False), ticket(2)]
    others_first = [ticket(1), ticket(2, may_leave=False)]
    assert assigned(plan(restricted_first, loads)) == {1: "o"}
    assert assigned(plan(others_first, loads)) == {1: "o"}


def test_a_request_that_avoids_a_failed_replica_does_not_close_its_lane() -> None:
    avoiding = Ticket(1, may_leave_owned=True, excluded=frozenset({"o"}))
    found = plan([avoiding, ticket(2)], [replica("o", owned=True)])
    assert assigned(found) == {2: "o"}


def test_old_hearsay_is_checked_before_anyone_goes_elsewhere() -> None:
    loads = [replica("o", owned=True, others=1, seen_age_s=9.0), replica("c", owned=False)]
    found = plan([ticket(1), ticket(2, may_leave=False)], loads)
    assert found.assignments == ()
    assert found.look_again == ("o",)


@given(TICKETS, FREE)
def test_no_slot_is_given_twice_and_none_a_waiter_could_use_stays_free(
    waiting: list[Ticket], loads: list[ReplicaLoad]
) -> None:
    taken = assigned(plan(waiting, loads))
    for load in loads:
        used = list(taken.values()).count(load.replica_id)
        assert used <= load.slots
        left_out = [one for one in waiting if one.number not in taken]
        if used < load.slots:
            assert not [one for one in left_out if load.owned or one.may_leave_owned]


@given(TICKETS, FREE)
def test_within_a_lane_nobody_is_overtaken(waiting: list[Ticket], loads: list[ReplicaLoad]) -> None:
    taken = assigned(plan(waiting, loads))
    for lane in (True, False):
        served = [one.number in taken for one in waiting if one.may_leave_owned is lane]
        assert served == sorted(served, reverse=True)


@given(TICKETS, FREE)
def test_a_restricted_request_never_gets_a_paid_slot(
    waiting: list[Ticket], loads: list[ReplicaLoad]
) -> None:
    found = plan(waiting, loads)
    lanes = {one.number: one.may_leave_owned for one in waiting}
    assert all(one.route.load.owned or lanes[one.number] for one in found.assignments)


AGED = st.lists(st.tuples(st.booleans(), st.floats(0.0, 4.0)), max_size=12).map(
    lambda given: [
        Ticket(number, may_leave, arrived_s=arrived_s)
        for number, (may_leave, arrived_s) in enumerate(sorted(given, key=lambda one: one[1]))
    ]
)
NOW_S = 4.0
IN_TIME_S = st.floats(0.5, 5.0)


@given(AGED, FREE, IN_TIME_S)
def test_nobody_in_time_waits_while_a_late_one_has_a_slot_it_could_use(
    waiting: list[Ticket], loads: list[ReplicaLoad], in_time_s: float
) -> None:
    """A slot that a late one took is owned, or both it and the one who waits may leave."""
    taken = assigned(plan(waiting, loads, in_time_s=in_time_s, now_s=NOW_S))
    is_late = {one.number: NOW_S - one.arrived_s > in_time_s for one in waiting}
    owned = {load.replica_id: load.owned for load in loads}
    taken_late = [replica_id for number, replica_id in taken.items() if is_late[number]]
    for one in waiting:
        if one.number not in taken and not is_late[one.number]:
            assert not [r for r in taken_late if owned[r] or one.may_leave_owned]


@given(AGED, FREE, IN_TIME_S)
def test_late_ones_get_every_slot_the_others_leave_and_go_by_age_themselves(
    waiting: list[Ticket], loads: list[ReplicaLoad], in_time_s: float
) -> None:
    taken = assigned(plan(waiting, loads, in_time_s=in_time_s, now_s=NOW_S))
    for load in loads:
        used = list(taken.values()).count(load.replica_id)
        assert used <= load.slots
        left_out = [one for one in waiting if one.number not in taken]
        if used < load.slots:
            assert not [one for one in left_out if load.owned or one.may_leave_owned]
    for lane in (True, False):
        late = [
            one.number in taken
            for one in waiting
            if one.may_leave_owned is lane and NOW_S - one.arrived_s > in_time_s
        ]
        assert late == sorted(late, reverse=True)


@given(AGED, FREE)
def test_as_long_as_nobody_is_late_the_order_is_that_of_arrival(
    waiting: list[Ticket], loads: list[ReplicaLoad]
) -> None:
    by_arrival = plan(waiting, loads, now_s=NOW_S)
    assert plan(waiting, loads, in_time_s=NOW_S, now_s=NOW_S) == by_arrival


def test_one_slot_goes_to_the_oldest_in_time_and_with_no_such_one_to_the_oldest() -> None:
    waiting = [Ticket(n, may_leave_owned=True, arrived_s=float(n)) for n in (1, 2, 3, 4)]
    loads = [replica("o", owned=True)]
    assert assigned(plan(waiting, loads, in_time_s=2.0, now_s=4.5)) == {3: "o"}
    assert assigned(plan(waiting, loads, in_time_s=2.0, now_s=9.0)) == {1: "o"}
    assert assigned(plan(waiting, loads, in_time_s=None, now_s=4.5)) == {1: "o"}


def test_prompts_are_spread_and_stop_where_there_is_enough_to_read() -> None:
    """1,000 tokens each, up to 1,500: two on each of two replicas, and the fifth waits."""
    waiting = [Ticket(n, may_leave_owned=True, prompt_tokens=1000) for n in range(5)]
    loads = [
        replica(name, owned=True, slots=8, reading_tokens_max=1500)  # four slots more than needed
        for name in ("a", "b")
    ]
    assert assigned(plan(waiting, loads)) == {0: "a", 1: "b", 2: "a", 3: "b"}


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
