"""Laws of one decision, in any state: what the brain may never do, whatever it learned.

`test_replicas` holds them for the rule that counts waiting requests; here speeds are known.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.record import SchedulerReport, build_record, read_memory
from autoscaling.replicas import decide_replicas
from autoscaling.snapshot import BRAIN_PARTS, Decision, SetReplicas, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory
from tests.autoscaling.brain_states import CLOUD, ONPREM, POLICY, SPOT, states, with_more

_MORE = st.integers(0, 200)


def planned(decision: Decision) -> dict[str, int]:
    return decision.targets["m"]


def before(snapshot: Snapshot, name: str) -> int:
    """The number planned of a pool before the decision."""
    memory = snapshot.memory.get("m", ModelMemory())
    pool = next(pool for pool in snapshot.models[0].pools if pool.name == name)
    first = PoolMemory(max(pool.replicas_min, pool.observed))
    return memory.pools.get(name, first).planned


@given(states(), states(app="n"), st.randoms(use_true_random=False))
def test_the_same_snapshot_gives_the_same_decision_in_whatever_order(
    one: Snapshot, other: Snapshot, rng: st.DataObject
) -> None:
    """Models, pools and memories are listed in any order; two models don't touch each other."""
    both = replace(one, models=one.models + other.models, memory={**one.memory, **other.memory})
    mixed = [
        replace(model, pools=tuple(rng.sample(model.pools, len(model.pools))))
        for model in both.models
    ]
    memory = dict(rng.sample(sorted(both.memory.items()), len(both.memory)))
    shuffled = replace(both, models=tuple(rng.sample(mixed, 2)), memory=memory)
    decision = decide_replicas(both, POLICY)
    assert decide_replicas(shuffled, POLICY) == decision
    assert decide_replicas(one, POLICY).targets["m"] == decision.targets["m"]


@given(states(kinds=(ONPREM, CLOUD)), _MORE, _MORE)
def test_more_demand_never_gives_fewer_replicas(snapshot: Snapshot, stay: int, leave: int) -> None:
    """More that wait and more that came in the last ten seconds, some of which may leave."""
    fewer = planned(decide_replicas(snapshot, POLICY))
    larger = planned(decide_replicas(with_more(snapshot, stay=stay, leave=leave), POLICY))
    assert all(larger[name] >= number for name, number in fewer.items())


@given(states(), _MORE, _MORE)
def test_more_demand_never_gives_fewer_rented_replicas_in_all(
    snapshot: Snapshot, stay: int, leave: int
) -> None:
    """Which of two like pools it is may change: what is always needed is safer on demand."""
    fewer = planned(decide_replicas(snapshot, POLICY))
    larger = planned(decide_replicas(with_more(snapshot, stay=stay, leave=leave), POLICY))
    assert larger["onprem"] >= fewer["onprem"]
    assert larger["cloud"] + larger["spot"] >= fewer["cloud"] + fewer["spot"]


@given(states())
def test_every_number_stays_within_its_pools_bounds(snapshot: Snapshot) -> None:
    numbers = planned(decide_replicas(snapshot, POLICY))
    for pool in snapshot.models[0].pools:
        assert pool.replicas_min <= numbers[pool.name] <= pool.replicas_max


@given(states(may_burst=False))
def test_restricted_demand_never_raises_a_rented_pool(snapshot: Snapshot) -> None:
    """Whatever arrives and waits: none may leave, so no rented pool goes above its minimum."""
    numbers = planned(decide_replicas(snapshot, POLICY))
    for pool in snapshot.models[0].pools:
        if not pool.is_owned:
            assert numbers[pool.name] <= max(pool.replicas_min, before(snapshot, pool.name))


@given(states())
def test_nothing_is_rented_while_an_owned_pool_could_grow(snapshot: Snapshot) -> None:
    """It is at its maximum, or asks for replicas that don't come."""
    decision = decide_replicas(snapshot, POLICY)
    rented = [r for r in decision.reasons if r.code == "raise" and r.subject != "m/onprem"]
    onprem = next(pool for pool in snapshot.models[0].pools if pool.is_owned)
    known = decision.memory["m"].pools["onprem"]
    if rented and known.planned < onprem.replicas_max:
        starting_s = snapshot.now_s - (known.starting_since_s or snapshot.now_s)
        is_stuck = onprem.blocked is not None or starting_s >= POLICY.starting_s_max
        assert is_stuck
        assert known.planned > onprem.observed


@given(states())
def test_every_change_has_a_reason_and_every_rental_says_what_it_costs_and_spares(
    snapshot: Snapshot,
) -> None:
    decision = decide_replicas(snapshot, POLICY)
    assert decision.reasons
    told = {(reason.code, reason.subject): reason.text for reason in decision.reasons}
    for command in decision.commands:
        if not isinstance(command, SetReplicas):
            assert ("close", f"m/{command.deployment}") in told
            continue
        subject = f"m/{command.deployment}"
        codes = {code for code, about in told if about == subject}
        assert codes & {"raise", "lower", "bounds"}
        if "raise" in codes and snapshot.models[0].learned.history.all and "onprem" not in subject:
            assert "$" in told["raise", subject]
            assert "late requests" in told["raise", subject]


@given(states())
def test_the_memory_survives_the_record_unchanged(snapshot: Snapshot) -> None:
    """The next process goes on from the JSON on the blackboard."""
    decision = decide_replicas(snapshot, POLICY)
    record = json.loads(json.dumps(build_record(decision, snapshot, SchedulerReport())))
    assert read_memory(record) == decision.memory


@pytest.mark.parametrize("part", BRAIN_PARTS)
@given(snapshot=states())
def test_the_bounds_hold_with_any_part_switched_off(part: str, snapshot: Snapshot) -> None:
    policy = replace(POLICY, ablated=frozenset({part}))
    numbers = planned(decide_replicas(snapshot, policy))
    for pool in snapshot.models[0].pools:
        assert pool.replicas_min <= numbers[pool.name] <= pool.replicas_max


@given(states())
def test_a_doubt_holds_every_number(snapshot: Snapshot) -> None:
    (model,) = snapshot.models
    doubted = replace(snapshot, models=(replace(model, pools=(), doubt="nobody speaks"),))
    decision = decide_replicas(doubted, POLICY)
    known = snapshot.memory.get("m", ModelMemory()).pools
    assert planned(decision) == {name: pool.planned for name, pool in known.items()}
    assert decision.commands == ()
    assert [reason.code for reason in decision.reasons] == ["doubt"]


def test_the_states_cover_renting_lowering_and_holding() -> None:
    """The laws above would hold of a brain that never moves: this one does in these states."""
    codes: set[str] = set()

    @settings(max_examples=60)
    @given(states())
    def look(snapshot: Snapshot) -> None:
        for reason in decide_replicas(snapshot, POLICY).reasons:
            is_rented = reason.subject in {f"m/{CLOUD.name}", f"m/{SPOT.name}"}
            codes.add(f"{reason.code} rented" if is_rented else reason.code)

    look()
    assert codes >= {"raise", "raise rented", "lower rented", "hold"}
