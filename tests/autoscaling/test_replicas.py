"""What the first brain decides, and the laws it keeps for every signal.

One model: an owned pool of 1 to 2 replicas and a cloud pool of 0 to 2, 4 slots each.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.replicas import decide_replicas
from autoscaling.snapshot import (
    BurstPolicy,
    Decision,
    ModelView,
    PoolView,
    SetReplicas,
    Snapshot,
    StopRouting,
)
from autoscaling.stability import ModelMemory, PoolMemory

POLICY = BurstPolicy(up_after_s=2, down_after_s=20, min_lease_s=60, starting_s_max=100)
ONPREM = PoolView(
    name="onprem", site="onprem", market="owned", slots=4, replicas_min=1, replicas_max=2
)
CLOUD = PoolView(
    name="cloud",
    site="aws",
    market="on_demand",
    slots=4,
    replicas_min=0,
    replicas_max=2,
    usd_per_hour=Decimal(2),
)
DEAR = replace(CLOUD, name="dear", usd_per_hour=Decimal(9))


def model(
    *,
    onprem: dict[str, object] | None = None,
    cloud: dict[str, object] | None = None,
    **demand: object,
) -> ModelView:
    """Four owned slots, all busy, and no cloud, unless told otherwise."""
    owned = replace(ONPREM, **({"observed": 1, "streams": 4} | (onprem or {})))
    return ModelView(app="m", pools=(owned, replace(CLOUD, **(cloud or {}))), **demand)


def planned(decision: Decision) -> dict[str, int]:
    return decision.targets["m"]


@dataclass
class Run:
    """Ticks of one second over views that the test gives; remembers like the monitor does."""

    now_s: float = 1000.0
    policy: BurstPolicy = POLICY
    memory: dict[str, ModelMemory] | None = None

    def tick(self, view: ModelView, *, after_s: float = 1.0) -> Decision:
        self.now_s += after_s
        snapshot = Snapshot(self.now_s, (view,), self.memory or {})
        decision = decide_replicas(snapshot, self.policy)
        self.memory = dict(decision.memory)
        return decision

    def ticks(self, view: ModelView, *, seconds: int) -> Decision:
        for _ in range(seconds):
            decision = self.tick(view)
        return decision

    def commands(self, view: ModelView, *, seconds: int) -> list[object]:
        return [command for _ in range(seconds) for command in self.tick(view).commands]


def test_a_deploy_begins_at_each_pools_minimum() -> None:
    decision = Run().tick(model(onprem={"observed": 0, "streams": 0}))
    assert planned(decision) == {"onprem": 1, "cloud": 0}
    assert decision.commands == ()


def test_a_deploy_opens_no_cloud_while_the_first_owned_replica_is_still_starting() -> None:
    """Sixty wait and at most eight owned slots are to come; still nothing before one answers."""
    starting = model(onprem={"observed": 0, "streams": 0}, waiting=60, waiting_may_burst=60)
    run = Run()
    assert planned(run.ticks(starting, seconds=50))["cloud"] == 0
    started = model(waiting=56, waiting_may_burst=56)
    assert planned(run.ticks(started, seconds=5))["cloud"] == 2


def test_owned_replicas_are_raised_before_the_cloud() -> None:
    """Two waiting fit the second owned replica."""
    decision = Run().ticks(model(waiting=2, waiting_may_burst=2), seconds=3)
    assert planned(decision) == {"onprem": 2, "cloud": 0}
    assert [str(reason) for reason in decision.reasons] == [
        "m/onprem: 1 to 2 replicas: 2 waiting without a slot in sight"
    ]


def test_what_owned_replicas_on_their_way_will_take_opens_no_cloud() -> None:
    run = Run()
    waiting = model(waiting=4, waiting_may_burst=4)
    assert planned(run.ticks(waiting, seconds=50)) == {"onprem": 2, "cloud": 0}


def test_what_no_owned_replica_can_take_opens_the_cloud() -> None:
    """Owned at its maximum of 2 and full: 5 waiting need two cloud replicas of 4 slots."""
    full = model(
        onprem={"observed": 2, "streams": 8, "requested": 2}, waiting=5, waiting_may_burst=5
    )
    run = Run()
    assert planned(run.ticks(full, seconds=2))["cloud"] == 0, "2 s of waiting are not over"
    assert planned(run.tick(full)) == {"onprem": 2, "cloud": 2}


def test_an_owned_replica_that_does_not_come_stops_holding_the_cloud_closed() -> None:
    waiting = model(waiting=4, waiting_may_burst=4)
    run = Run()
    run.ticks(waiting, seconds=100)
    assert planned(run.ticks(waiting, seconds=10))["cloud"] == 1


def test_an_owned_replica_without_a_node_does_not_hold_the_cloud_closed() -> None:
    waiting = model(onprem={"blocked": "site onprem is full"}, waiting=4, waiting_may_burst=4)
    decision = Run().ticks(waiting, seconds=8)
    assert planned(decision) == {"onprem": 2, "cloud": 1}
    stuck = "onprem waits for nodes: site onprem is full"
    assert [str(reason) for reason in decision.unmet] == [
        f"m: 4 waiting without a slot in sight; owned pools can't grow ({stuck})",
        "m/onprem: 2 replicas planned, 1 run: site onprem is full",
    ]


def test_waiting_that_may_not_burst_creates_no_cloud_demand() -> None:
    full = model(
        onprem={"observed": 2, "streams": 8, "requested": 2}, waiting=50, waiting_may_burst=0
    )
    decision = Run().ticks(full, seconds=300)
    assert planned(decision)["cloud"] == 0
    assert "50 waiting without a slot in sight; owned pools can't grow" in str(decision.unmet[0])


def test_what_may_not_leave_takes_owned_room_and_pushes_out_what_may() -> None:
    """Eight more owned slots are to come, nine must stay: the one that may leave leaves."""
    view = model(onprem={"replicas_max": 3}, waiting=10, waiting_may_burst=1)
    assert planned(Run().ticks(view, seconds=3)) == {"onprem": 3, "cloud": 1}


def test_a_full_kv_cache_calls_for_an_owned_replica_though_nothing_waits() -> None:
    view = model(onprem={"kv_use_ratio": 0.9, "streams": 2})
    decision = Run().ticks(view, seconds=3)
    assert planned(decision) == {"onprem": 2, "cloud": 0}
    assert "KV cache of onprem is full" in str(decision.reasons[0])


def test_slots_of_a_full_kv_cache_are_not_free() -> None:
    """Two free slots, but no KV room: two waiting open the cloud."""
    view = model(
        onprem={"observed": 2, "streams": 6, "kv_use_ratio": 0.95, "requested": 2},
        waiting=2,
        waiting_may_burst=2,
    )
    assert planned(Run().ticks(view, seconds=3))["cloud"] == 1


def test_the_cheaper_cloud_pool_is_raised_first_and_the_dearest_lowered_first() -> None:
    owned = replace(ONPREM, observed=1, streams=4, replicas_max=1)
    wide = ModelView("m", (DEAR, replace(CLOUD, replicas_max=1), owned), 8, 8)
    run = Run()
    assert planned(run.ticks(wide, seconds=3)) == {"onprem": 1, "cloud": 1, "dear": 1}
    calm = ModelView(
        "m",
        (
            replace(DEAR, observed=1),
            replace(CLOUD, replicas_max=1, observed=1),
            replace(owned, streams=0),
        ),
    )
    lowered = [c for c in run.commands(calm, seconds=150) if isinstance(c, SetReplicas)]
    assert [command.deployment for command in lowered] == ["dear", "cloud"]


def burst(run: Run) -> ModelView:
    """Open the cloud; the view of one running cloud replica with streams on it."""
    full = model(
        onprem={"observed": 2, "streams": 8, "requested": 2}, waiting=2, waiting_may_burst=2
    )
    run.ticks(full, seconds=3)
    return model(onprem={"observed": 2, "streams": 8}, cloud={"observed": 1, "streams": 4})


def test_the_cloud_closes_while_its_streams_still_run_once_owned_slots_have_been_free() -> None:
    """Routing stops one step before the number goes to zero; the streams drain by themselves."""
    run = Run()
    opened = burst(run)
    run.ticks(opened, seconds=60)
    calm = model(onprem={"observed": 2, "streams": 1}, cloud={"observed": 1, "streams": 4})
    assert run.commands(calm, seconds=20) == []
    assert run.tick(calm).commands == (StopRouting("m", "cloud"),)
    assert run.tick(calm).commands == ()
    assert run.tick(calm).commands == (SetReplicas("m", "cloud", 1, 0),)


def test_load_that_comes_back_while_routing_is_stopped_opens_it_again() -> None:
    run = Run()
    opened = burst(run)
    run.ticks(opened, seconds=60)
    calm = model(onprem={"observed": 2, "streams": 1}, cloud={"observed": 1})
    run.ticks(calm, seconds=21)
    assert run.tick(opened).closing == {}


def test_routing_stays_stopped_until_the_last_replica_is_gone() -> None:
    run = Run()
    run.ticks(burst(run), seconds=60)
    calm = model(onprem={"observed": 2, "streams": 1}, cloud={"observed": 1, "streams": 4})
    run.ticks(calm, seconds=21)
    decision = run.ticks(calm, seconds=2)
    assert decision.commands == (SetReplicas("m", "cloud", 1, 0),)
    assert decision.closing == {"m": ["cloud"]}
    assert run.ticks(calm, seconds=5).closing == {"m": ["cloud"]}
    gone = model(onprem={"observed": 2, "streams": 1}, cloud={"observed": 0})
    assert run.tick(gone).closing == {}


def test_a_draining_replica_takes_nothing_that_waits() -> None:
    """Two of its slots are free, but it goes home: what waits opens the cloud again."""
    run = Run()
    run.ticks(burst(run), seconds=60)
    calm = model(onprem={"observed": 2, "streams": 1}, cloud={"observed": 1, "streams": 2})
    run.ticks(calm, seconds=23)
    full = model(
        onprem={"observed": 2, "streams": 8},
        cloud={"observed": 1, "streams": 2},
        waiting=2,
        waiting_may_burst=2,
    )
    decision = run.ticks(full, seconds=3)
    assert planned(decision)["cloud"] == 1
    assert decision.closing == {}


def test_an_idle_cloud_pool_goes_home_while_the_owned_pools_are_full() -> None:
    """Full owned pools don't make an idle cloud useful, nor does what may not go there."""
    for stay in (0, 9):
        run = Run()
        burst(run)
        idle = model(onprem={"observed": 2, "streams": 8}, cloud={"observed": 1}, waiting=stay)
        lowered = run.commands(idle, seconds=90)
        assert lowered == [StopRouting("m", "cloud"), SetReplicas("m", "cloud", 1, 0)]


def test_waiting_that_may_not_burst_keeps_no_cloud_replica_though_it_has_streams() -> None:
    run = Run()
    burst(run)
    calm = model(
        onprem={"observed": 2, "streams": 4}, cloud={"observed": 1, "streams": 1}, waiting=4
    )
    assert SetReplicas("m", "cloud", 1, 0) in run.commands(calm, seconds=90)


def test_an_idle_cloud_pool_stays_while_something_waits_that_may_go_there() -> None:
    run = Run()
    burst(run)
    view = model(
        onprem={"observed": 2, "streams": 8},
        cloud={"observed": 1},
        waiting=1,
        waiting_may_burst=1,
    )
    assert run.commands(view, seconds=90) == []


def test_a_cloud_replica_that_starts_slowly_is_asked_for_once() -> None:
    """It may just load a large model: after `starting_s_max` it is reported, not doubled."""
    run = Run()
    full = model(
        onprem={"observed": 2, "streams": 8, "requested": 2}, waiting=3, waiting_may_burst=3
    )
    decision = run.ticks(full, seconds=500)
    assert planned(decision) == {"onprem": 2, "cloud": 1}
    unmet = [str(reason) for reason in decision.unmet]
    assert any("cloud waits for overdue replicas" in text for text in unmet)
    assert "m/cloud: 1 replicas planned, 0 run: more than 100 s after the last came" in unmet


def test_an_overdue_owned_replica_opens_the_cloud_and_is_asked_for_once() -> None:
    view = model(onprem={"replicas_max": 4}, waiting=4, waiting_may_burst=4)
    run = Run()
    assert planned(run.ticks(view, seconds=90)) == {"onprem": 2, "cloud": 0}
    assert planned(run.ticks(view, seconds=20)) == {"onprem": 2, "cloud": 1}


def test_a_cloud_replica_is_kept_for_its_lease() -> None:
    run = Run()
    burst(run)
    calm = model(onprem={"observed": 2, "streams": 0}, cloud={"observed": 1})
    decision = run.ticks(calm, seconds=50)
    assert planned(decision)["cloud"] == 1
    assert "its lease runs 10 s" in str(decision.reasons[0])


def test_owned_replicas_go_home_after_the_cloud_and_keep_their_minimum() -> None:
    run = Run()
    burst(run)
    calm = model(onprem={"observed": 2, "streams": 0}, cloud={"observed": 1})
    lowered = [c for c in run.commands(calm, seconds=300) if isinstance(c, SetReplicas)]
    assert lowered == [SetReplicas("m", "cloud", 1, 0), SetReplicas("m", "onprem", 2, 1)]


def test_doubtful_signals_hold_every_number_and_say_so() -> None:
    run = Run()
    burst(run)
    decision = run.ticks(ModelView("m", (), doubt="no gateway has reported for 30 s"), seconds=500)
    assert planned(decision) == {"onprem": 2, "cloud": 1}
    assert str(decision.reasons[0]) == ("m: all numbers are held: no gateway has reported for 30 s")


def test_what_was_not_seen_did_not_last() -> None:
    """Slack before and after a blind spell isn't added up."""
    run = Run()
    burst(run)
    calm = model(onprem={"observed": 2, "streams": 0}, cloud={"observed": 1})
    run.ticks(calm, seconds=79)
    run.tick(ModelView("m", (), doubt="blind"))
    assert run.commands(calm, seconds=20) == []


def test_new_bounds_of_a_deployment_apply_at_once() -> None:
    run = Run()
    burst(run)
    narrow = model(
        onprem={"observed": 2, "streams": 8},
        cloud={"observed": 1, "replicas_max": 3, "replicas_min": 2},
    )
    assert run.tick(narrow).commands == (SetReplicas("m", "cloud", 1, 2),)


def test_a_restarted_process_goes_on_from_what_was_requested() -> None:
    """Without memory, the numbers Serve was last told are kept and not counted down at once."""
    view = model(
        onprem={"observed": 2, "streams": 1, "requested": 2}, cloud={"observed": 1, "requested": 1}
    )
    assert planned(Run().tick(view)) == {"onprem": 2, "cloud": 1}


_POOLS = st.tuples(
    st.integers(0, 3),
    st.integers(0, 12),
    st.none() | st.floats(0, 1),
    st.integers(0, 3),
    st.integers(0, 4),
)
_CLOCKS = st.none() | st.floats(0, 1000)
_MEMORIES = st.builds(
    ModelMemory,
    pools=st.fixed_dictionaries(
        {
            name: st.builds(
                PoolMemory,
                planned=st.integers(0, 5),
                observed=st.integers(0, 3),
                starting_since_s=_CLOCKS,
                slack_since_s=_CLOCKS,
                leases_s=st.lists(st.floats(0, 1000), max_size=3).map(tuple),
                closing_since_s=_CLOCKS,
            )
            for name in ("onprem", "cloud", "dear")
        }
    ),
    owned_short_since_s=_CLOCKS,
    burst_short_since_s=_CLOCKS,
    has_answered=st.booleans(),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    pools = []
    for pool in (ONPREM, CLOUD, DEAR):
        observed, streams, kv, low, more = draw(_POOLS)
        pools.append(
            replace(
                pool,
                observed=observed,
                streams=streams,
                kv_use_ratio=kv,
                replicas_min=low,
                replicas_max=low + more,
                blocked=draw(st.none() | st.just("full")),
            )
        )
    waiting = draw(st.integers(0, 40))
    view = ModelView("m", tuple(pools), waiting, draw(st.integers(0, waiting)))
    return Snapshot(1000.0, (view,), {"m": draw(_MEMORIES)})


@given(snapshots())
def test_the_same_snapshot_always_gives_the_same_decision(snapshot: Snapshot) -> None:
    (view,) = snapshot.models
    shuffled = list(view.pools)
    random.Random(7).shuffle(shuffled)
    again = replace(snapshot, models=(replace(view, pools=tuple(shuffled)),))
    assert decide_replicas(snapshot, POLICY) == decide_replicas(again, POLICY)


@given(snapshots(), st.integers(0, 40), st.integers(0, 40))
def test_more_demand_never_gives_fewer_replicas(snapshot: Snapshot, stay: int, leave: int) -> None:
    (view,) = snapshot.models
    more = replace(
        view,
        waiting=view.waiting + stay + leave,
        waiting_may_burst=view.waiting_may_burst + leave,
    )
    fewer = planned(decide_replicas(snapshot, POLICY))
    larger = planned(decide_replicas(replace(snapshot, models=(more,)), POLICY))
    assert all(larger[name] >= number for name, number in fewer.items())


@given(snapshots())
def test_every_number_stays_within_its_pools_bounds(snapshot: Snapshot) -> None:
    numbers = planned(decide_replicas(snapshot, POLICY))
    for pool in snapshot.models[0].pools:
        assert pool.replicas_min <= numbers[pool.name] <= pool.replicas_max


@given(snapshots())
def test_without_waiting_that_may_burst_no_closed_cloud_pool_opens(snapshot: Snapshot) -> None:
    (view,) = snapshot.models
    closed = tuple(
        pool if pool.is_owned else replace(pool, observed=0, streams=0, replicas_min=0)
        for pool in view.pools
    )
    memory = snapshot.memory["m"]
    pools = {
        name: known if name == "onprem" else replace(known, planned=0)
        for name, known in memory.pools.items()
    }
    bound = replace(
        snapshot,
        models=(replace(view, pools=closed, waiting_may_burst=0),),
        memory={"m": replace(memory, pools=pools)},
    )
    numbers = planned(decide_replicas(bound, POLICY))
    assert (numbers["cloud"], numbers["dear"]) == (0, 0)


def _jump(rng: random.Random, run: Run, replicas: dict[str, int]) -> Decision:
    """One second of the worst load: it jumps anywhere; replicas follow the plan at once."""
    load = rng.choice([0, 0, 1, 4, 7, 8, 9, 12, 16, 30])
    on_owned = min(load, 4 * replicas["onprem"])
    on_cloud = min(load - on_owned, 4 * replicas["cloud"])
    waiting = load - on_owned - on_cloud
    view = ModelView(
        "m",
        (
            replace(ONPREM, observed=replicas["onprem"], streams=on_owned),
            replace(CLOUD, observed=replicas["cloud"], streams=on_cloud),
        ),
        waiting,
        waiting,
    )
    return run.tick(view)


@settings(max_examples=min(15, settings().max_examples))
@given(st.integers(0, 2**32))
def test_reversals_are_bounded_by_the_lease_under_any_load(seed: int) -> None:
    """In 600 s a replica goes home at most 600 / 60 times; two of a pool move, so 20 reversals."""
    rng, run = random.Random(seed), Run()
    replicas = {"onprem": 1, "cloud": 0}
    moves: dict[str, list[int]] = {"onprem": [], "cloud": []}
    for _ in range(600):
        for command in _jump(rng, run, replicas).commands:
            if isinstance(command, SetReplicas):
                moves[command.deployment].append(command.replicas_to - command.replicas_from)
        assert run.memory is not None
        replicas = {name: pool.planned for name, pool in run.memory["m"].pools.items()}
    for steps in moves.values():
        assert _count_reversals(steps) <= 2 * 600 / POLICY.min_lease_s


def _count_reversals(steps: Iterable[int]) -> int:
    signs = [step > 0 for step in steps]
    return sum(up and not then for up, then in pairwise(signs))
