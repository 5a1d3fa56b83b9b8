"""Shadow mode: the world as it would be, what is held back, and what would have come of it.

One model: an owned pool of one replica with 4 slots at 2 requests a second, and a rented pool of 0
to 3 such replicas at 3.6 $ an hour, which is a thousandth of a dollar a second. A cold start takes
10 s, the promise is 3 s.
"""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.replicas import decide_replicas
from autoscaling.shadow import (
    Seen,
    Shadow,
    Shadowed,
    ShadowModel,
    VirtualPool,
    VirtualReplica,
    decide_in_shadow,
    follow,
    hold_back,
    imagine,
    plan,
)
from autoscaling.shadow_view import describe_shadow, say_shadow
from autoscaling.snapshot import BurstPolicy, Decision, ModelView, PoolView, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served, Targets

POLICY = BurstPolicy(mode="shadow", cold_start_s=10.0)
ONPREM = PoolView(
    name="onprem",
    site="onprem",
    market="owned",
    slots=4,
    replicas_min=1,
    replicas_max=1,
    observed=1,
    streams=4,
    rps=2.0,
)
CLOUD = PoolView(
    name="cloud",
    site="aws",
    market="on_demand",
    slots=4,
    replicas_min=0,
    replicas_max=3,
    usd_per_hour=Decimal("3.6"),
    rps=2.0,
)


def snapshot(
    now_s: float, *, waiting: int = 0, may_burst: int | None = None, cloud: PoolView = CLOUD
) -> Snapshot:
    """The world at a moment."""
    model = ModelView(
        app="m",
        pools=(ONPREM, cloud),
        waiting=waiting,
        waiting_may_burst=waiting if may_burst is None else may_burst,
        ttft_s_max=3.0,
    )
    return Snapshot(now_s, (model,))


def signals(now_s: float, *, served: Served | None = None, **counted: int) -> tuple[GatewaySignals]:
    """One gateway's words."""
    served = served or Served()
    pool = PoolSignal("onprem", "onprem", True, "cpu", "owned", 1, 4, 1, 1, 1, 4, served=served)  # noqa: FBT003 - as read
    model = ModelSignal("m", "m", 0, 0, 0, 0, 0.0, (pool,), **counted)
    return (GatewaySignals("g", now_s, (model,)),)


def decision(*, onprem: int = 1, cloud: int = 0, closing_since_s: float | None = None) -> Decision:
    """A plan, however it came about."""
    pools = {
        "onprem": PoolMemory(onprem),
        "cloud": PoolMemory(cloud, closing_since_s=closing_since_s),
    }
    return Decision((), (), (), 1.0, {"m": ModelMemory(pools)})


def told(**replicas: int) -> Targets:
    return Targets(0.0, {"m": replicas})


def planned(shadow: Shadow, world: Snapshot, *, cloud: int) -> dict[str, ShadowModel]:
    """The shadow after a plan of so many rented replicas, none of which is asked for."""
    wanted = decision(cloud=cloud)
    return plan(shadow, wanted, hold_back(wanted, world, None), world, POLICY)


def begin(*, cloud: int = 0, at_s: float = 0.0) -> dict[str, ShadowModel]:
    """A shadow that begins with so many replicas just asked for."""
    world = snapshot(at_s)
    return planned(follow({}, signals(at_s), world, POLICY), world, cloud=cloud)


def cloud_of(world: Snapshot) -> PoolView:
    return next(pool for pool in world.models[0].pools if pool.name == "cloud")


def test_what_would_raise_a_rented_pool_is_held_back_and_owned_pools_are_not() -> None:
    carried = hold_back(decision(onprem=1, cloud=2), snapshot(0.0), told(onprem=0, cloud=0))
    assert carried.targets == {"m": {"onprem": 1, "cloud": 0}}


def test_replicas_rented_before_go_home_and_are_not_replaced() -> None:
    """Two run when shadow mode begins: one is kept while one is planned, three are never asked."""
    world = snapshot(0.0, cloud=replace(CLOUD, observed=2))
    requested = told(onprem=1, cloud=2)
    for wanted, asked in ((3, 2), (1, 1), (0, 0)):
        assert hold_back(decision(cloud=wanted), world, requested).targets["m"]["cloud"] == asked


def test_routing_stops_only_where_something_really_runs() -> None:
    closing = decision(cloud=1, closing_since_s=1.0)
    assert hold_back(closing, snapshot(2.0), told(cloud=1)).closing == {}
    real = snapshot(2.0, cloud=replace(CLOUD, observed=1))
    assert hold_back(closing, real, told(cloud=1)).closing == {"m": ["cloud"]}


def test_where_signals_are_in_doubt_what_was_requested_stays() -> None:
    """Nobody speaks: neither zero nor the plan of the shadow."""
    blind = Snapshot(5.0, (ModelView("m", (), doubt="no gateway has reported for 60 s"),))
    carried = hold_back(decision(cloud=3), blind, told(onprem=1, cloud=1))
    assert carried.targets == {"m": {"onprem": 1, "cloud": 1}}
    assert hold_back(decision(cloud=3), blind, None).targets == {"m": {}}


def test_a_virtual_replica_is_seen_a_cold_start_after_it_was_asked_for() -> None:
    shadow = begin(cloud=2)
    seen = [cloud_of(imagine(snapshot(now_s), shadow)).observed for now_s in (0.0, 9.9, 10.0)]
    assert seen == [0, 0, 2]


def test_the_learned_cold_start_of_the_node_type_counts_where_it_is_known() -> None:
    world = snapshot(0.0, cloud=replace(CLOUD, cold_start_s=95.0))
    shadow = planned(follow({}, signals(0.0), world, POLICY), world, cloud=1)
    assert shadow["m"].pools["cloud"].replicas == (VirtualReplica(0.0, 95.0),)


def test_the_last_asked_for_is_let_go_first() -> None:
    shadow = planned(begin(cloud=1), snapshot(5.0), cloud=2)
    shadow = planned(shadow, snapshot(6.0), cloud=1)
    assert shadow["m"].pools["cloud"].replicas == (VirtualReplica(0.0, 10.0),)


def test_virtual_replicas_cost_money_from_asking_to_letting_go() -> None:
    """Two for 20 s and one for 10 s more at 0.001 $ a second: 0.05 $, and nothing after that."""
    shadow = begin(cloud=2)
    for now_s, wanted in ((20.0, 1), (30.0, 0), (300.0, 0)):
        world = snapshot(now_s)
        shadow = planned(follow(shadow, signals(now_s), world, POLICY), world, cloud=wanted)
    described = describe_shadow(shadow, now_s=300.0)["m"]
    assert (described["usd"], described["usd_per_hour"]) == (0.05, 0.0)


def test_money_is_counted_while_nobody_speaks() -> None:
    """A gap of ten minutes at 0.001 $ a second."""
    blind = Snapshot(600.0, (ModelView("m", (), doubt="no gateway has reported for 600 s"),))
    shadow = follow(begin(cloud=1), (), blind, POLICY)
    assert describe_shadow(shadow, now_s=600.0)["m"]["usd"] == 0.6


def test_a_ready_replica_takes_what_waits_up_to_its_slots() -> None:
    """Six wait: four get its slots, two still wait, and the brain is shown just that."""
    shadow: Shadow = follow(begin(cloud=1), signals(9.5), snapshot(9.5), POLICY)
    shadow = follow(shadow, signals(10.0), snapshot(10.0, waiting=6), POLICY)
    world = imagine(snapshot(10.0, waiting=6), shadow)
    assert (world.models[0].waiting, world.models[0].waiting_may_burst) == (2, 2)
    assert (cloud_of(world).streams, cloud_of(world).observed) == (4, 1)


def test_before_it_is_ready_it_takes_nothing() -> None:
    shadow = follow(begin(cloud=1), signals(9.0), snapshot(9.0, waiting=6), POLICY)
    assert imagine(snapshot(9.0, waiting=6), shadow).models[0].waiting == 6


def test_what_must_stay_is_never_taken() -> None:
    """Six wait, two of which may leave: the other four wait as they did."""
    world = snapshot(10.0, waiting=6, may_burst=2)
    shadow = follow(begin(cloud=1), signals(10.0), world, POLICY)
    imagined = imagine(world, shadow).models[0]
    assert (imagined.waiting, imagined.waiting_may_burst) == (4, 0)


def test_a_full_virtual_replica_takes_as_many_a_second_as_it_sustains() -> None:
    """Three a second come on top and two a second are taken: one a second is left waiting.

    The real queue has 3 more each second; the virtual one, after four went to free slots, 1 more.
    """
    shadow: Shadow = begin(cloud=1)
    for second in range(1, 31):
        now_s = 10.0 + second
        world = snapshot(now_s, waiting=3 * second)
        shadow = follow(shadow, signals(now_s, arrived=3 * second), world, POLICY)
    left = shadow["m"].virtual_may_burst
    assert left == pytest.approx(30 - 4, abs=4)


def test_slots_held_for_less_than_a_second_are_taken_several_times_in_it() -> None:
    """Four slots at 40 requests a second: 30 that wait are begun within the second, 3 at a time."""
    fast = replace(CLOUD, rps=40.0)
    shadow: Shadow = follow(begin(cloud=1), signals(19.0), snapshot(19.0, cloud=fast), POLICY)
    world = snapshot(20.0, waiting=30, cloud=fast)
    shadow = follow(shadow, signals(20.0), world, POLICY)
    assert imagine(world, shadow).models[0].waiting == 0
    assert shadow["m"].pools["cloud"].streams == pytest.approx(3.0)


def test_what_was_refused_would_have_been_served_or_refused_there_too() -> None:
    """The real queue stays at 8 as two a second are refused; a replica takes just these."""
    shadow: Shadow = begin(cloud=1)
    for second in range(31):
        now_s = 10.0 + second
        counted = {"arrived": 2 * second, "refused_may_burst": 2 * second, "late": 2 * second}
        world = snapshot(now_s, waiting=8)
        shadow = follow(shadow, signals(now_s, **counted), world, POLICY)
    assert 0 < shadow["m"].virtual_may_burst < 8
    assert shadow["m"].virtual_may_burst == pytest.approx(4, abs=2)


def test_a_pool_whose_speed_nobody_knows_is_credited_with_nothing() -> None:
    model = snapshot(10.0, waiting=6).models[0]
    pools = tuple(replace(pool, rps=None) for pool in model.pools)
    world = Snapshot(10.0, (replace(model, pools=pools),))
    shadow = follow(begin(cloud=1), signals(10.0), world, POLICY)
    assert imagine(world, shadow).models[0].waiting == 6


def test_late_requests_are_those_counted_less_those_it_would_have_spared() -> None:
    """Twelve wait for 8 s while 3 s are promised, and gateways count them all as late.

    Four slots are free at once and two a second after that, so ten would have begun within 3 s.
    """
    shadow: Shadow = follow(begin(cloud=1, at_s=-20.0), signals(-0.5), snapshot(-0.5), POLICY)
    for second in range(9):
        has_begun = second == 8
        counted = {"arrived": 12, "late": 12 * has_begun}
        world = snapshot(float(second), waiting=12 * (not has_begun))
        shadow = follow(shadow, signals(float(second), **counted), world, POLICY)
    described = describe_shadow(shadow, now_s=8.0)["m"]
    assert [described[name] for name in ("requests", "late", "late_then")] == [12, 12, 2]


def test_without_a_virtual_replica_both_worlds_are_the_same() -> None:
    shadow: Shadow = begin()
    for second in range(1, 60):
        waiting = max(0, 30 - second)
        counted = {"arrived": 30, "late": min(27, second)}
        world = snapshot(float(second), waiting=waiting)
        shadow = follow(shadow, signals(float(second), **counted), world, POLICY)
    described = describe_shadow(shadow, now_s=60.0)["m"]
    assert described["late"] == described["late_then"] == 27
    assert shadow["m"].real == shadow["m"].virtual


def test_the_mean_ttft_is_told_as_seen_and_as_it_would_have_been() -> None:
    """Ten streams: 40 s until their first tokens, 30 s of them waiting, of which a third is left.

    Each had 1 s of its own and 3 s of waiting: 4 s as it was, 1 + 3 / 3 = 2 s then.
    """
    served = Served(first_tokens=10, ttft_s=40.0, waited_s=30.0)
    before = follow({}, signals(10.0), snapshot(10.0), POLICY)
    model = follow(before, signals(11.0, arrived=10, served=served), snapshot(11.0), POLICY)["m"]
    real, virtual = (replace(model.real, waited_s=waited_s) for waited_s in (60.0, 20.0))
    described = describe_shadow({"m": replace(model, real=real, virtual=virtual)}, now_s=11.0)["m"]
    assert (described["ttft_mean_s"], described["ttft_mean_then_s"]) == (4.0, 2.0)


def test_a_gateway_that_restarted_counts_from_zero() -> None:
    shadow = follow(begin(), signals(1.0, arrived=100, late=5), snapshot(1.0), POLICY)
    shadow = follow(shadow, signals(2.0, arrived=3, late=1), snapshot(2.0), POLICY)
    assert (shadow["m"].total.arrived, shadow["m"].total.late) == (103, 6)


def test_what_came_before_shadow_mode_is_not_counted() -> None:
    shadow = follow({}, signals(0.0, arrived=1000, late=50), snapshot(0.0), POLICY)
    assert (shadow["m"].total.arrived, shadow["m"].total.late) == (0, 0)


def test_the_brain_is_asked_about_the_world_it_would_have_made() -> None:
    """A sustained shortage: in the real world it would ask for all three, here one is enough."""
    shadow: Shadow = {}
    memory: dict[str, ModelMemory] = {}
    carried: Decision | None = None
    most = 0
    for second in range(120):
        now_s = float(second)
        world = replace(snapshot(now_s, waiting=3), memory=memory)
        done, shadowed = _decide(shadow, world, carried)
        memory, shadow, carried = dict(done.memory), shadowed.shadow, shadowed.carried
        most = max(most, done.targets["m"]["cloud"])
        assert carried.targets["m"] == {"onprem": 1, "cloud": 0}
    assert most == 1


def _decide(shadow: Shadow, world: Snapshot, carried: Decision | None) -> tuple[Decision, Shadowed]:
    requested = None if carried is None else Targets(0.0, carried.targets)
    return decide_in_shadow(shadow, Seen(signals(world.now_s), requested), world, POLICY)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(0, 60),
            st.floats(-5, 60),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_whatever_is_seen_nothing_is_asked_of_a_rented_pool(
    looks: list[tuple[int, int, float, int, bool]],
) -> None:
    """Queues, clocks that step, gaps, blind spells; two replicas were rented before."""
    shadow: Shadow = {}
    memory: dict[str, ModelMemory] = {}
    requested, now_s = told(onprem=1, cloud=2), 0.0
    for waiting, may_burst, gap_s, running, is_blind in looks:
        now_s += gap_s
        world = snapshot(
            now_s,
            waiting=waiting,
            may_burst=min(waiting, may_burst),
            cloud=replace(CLOUD, observed=running),
        )
        if is_blind:
            world = Snapshot(now_s, (ModelView("m", (), doubt="nobody speaks"),))
        world = replace(world, memory=memory)
        seen = Seen(signals(now_s, arrived=round(now_s) if now_s > 0 else 0), requested)
        done, shadowed = decide_in_shadow(shadow, seen, world, POLICY)
        carried = shadowed.carried.targets.get("m", {})
        assert carried.get("cloud", 0) <= requested.replicas["m"]["cloud"]
        described = describe_shadow(shadowed.shadow, now_s=now_s)["m"]
        assert described["usd"] >= 0
        assert described["late_then"] <= described["late"]
        memory, shadow = dict(done.memory), shadowed.shadow
        requested = Targets(now_s, {"m": {**requested.replicas["m"], **carried}})


def test_with_nothing_to_hold_back_the_decision_is_the_brains_own() -> None:
    """No shortage: shadow mode decides what acting mode decides."""
    world = snapshot(5.0)
    done, shadowed = decide_in_shadow({}, Seen(signals(5.0)), world, POLICY)
    assert done == shadowed.carried == decide_replicas(world, POLICY)


def test_the_words_tell_replicas_money_late_requests_and_ttft() -> None:
    """Noon UTC plus five minutes."""
    noon_s = 1_799_928_000.0
    pool = VirtualPool(
        replicas=(VirtualReplica(noon_s + 300, noon_s + 395),) * 2, usd_per_hour=1.86, usd=1.0234
    )
    model = ShadowModel(noon_s, noon_s + 360, pools={"aws-l40s-spot": pool})
    (line,) = say_shadow(describe_shadow({"m": model}, now_s=noon_s + 360))
    assert line == (
        "m: would run 2 aws-l40s-spot since 12:05 UTC (0 ready), $3.72/h, $1.02 so far; "
        "0 of 0 requests since 12:00 UTC late now, 0 then"
    )
    served = replace(model.total, arrived=840, late=31, first_tokens=2, ttft_s=4.8, waited_s=4.0)
    quiet = replace(model, pools={}, total=served)
    (line,) = say_shadow(describe_shadow({"m": quiet}, now_s=noon_s + 360))
    assert line == (
        "m: would run nothing on sites that aren't owned, $0.00/h, $0.00 so far; "
        "31 of 840 requests since 12:00 UTC late now, 31 then; mean TTFT 2.40 s now, 2.40 s then"
    )
