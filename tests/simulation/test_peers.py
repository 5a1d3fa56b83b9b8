"""The peers do what their originals publish, shown by arithmetic."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from autoscaling.peers.queue_hpa import QueueHpa
from autoscaling.peers.sizing import Sizing
from autoscaling.peers.skyserve import SkyServe
from autoscaling.peers.static import AllCloud, OnPremOnly, StaticPeak
from autoscaling.peers.wva import Wva
from autoscaling.simulator.policy import PoolState, Signals
from autoscaling.simulator.scenario import Scenario
from deployments.signals import GatewaySignals
from deployments.spec import PoolSpec

OWNED, SPOT, ON_DEMAND = "onprem-a100-80-owned", "cloud-l40s-spot", "cloud-l40s-on_demand"
PRICES = {OWNED: Decimal(0), SPOT: Decimal("0.74"), ON_DEMAND: Decimal("1.86")}
SIZING = Sizing({OWNED: 8.0, SPOT: 4.0, ON_DEMAND: 4.0}, peak_rps=50.0)


@pytest.fixture
def pools(scenario: Scenario) -> Mapping[str, PoolSpec]:
    """One to four owned replicas, up to twelve on each market."""
    return {pool.name: pool for pool in scenario.model.pools}


def build_signals(
    pools: Mapping[str, PoolSpec],
    *,
    now_s: float = 0.0,
    waiting: int = 0,
    arrivals: int = 0,
    kv: float = 0.0,
    planned: Mapping[str, int] | None = None,
    running: Mapping[str, int] | None = None,
) -> Signals:
    planned = {OWNED: 4, **(planned or {})}
    running = planned if running is None else {OWNED: 4, **running}
    states = tuple(
        PoolState(
            spec=spec,
            planned=planned.get(name, 0),
            running=running.get(name, 0),
            streams=0,
            kv_use_ratio=kv if running.get(name, 0) else None,
            usd_per_hour=PRICES[name],
        )
        for name, spec in pools.items()
    )
    gateway = GatewaySignals("simulated", now_s, ())
    return Signals(now_s, "model", states, waiting, arrivals, gateway)


def follow(
    policy: Any, pools: Mapping[str, PoolSpec], *, rps: float, begin_s: float, end_s: float
) -> list[tuple[float, dict[str, int]]]:
    """Return each look's wish while so many requests arrive, every replica being up at once."""
    found: list[tuple[float, dict[str, int]]] = []
    now_s = begin_s
    while now_s < end_s:
        up = dict(found[-1][1]) if found else {}
        signals = build_signals(
            pools, now_s=now_s, arrivals=round(rps * policy.check_s), planned=up
        )
        found.append((now_s, dict(policy.observe(signals).replicas)))
        now_s += policy.check_s
    return found


def test_skyserve_waits_300_s_before_more_and_1200_s_before_fewer(
    pools: Mapping[str, PoolSpec],
) -> None:
    """At 4 requests a second and replica 16 need 4, 24 need 6: two beyond owned.

    15 looks of 20 s are 300 s, 60 are 1,200 s; the mean over 60 s needs two looks more until it
    shows the change at all.
    """
    sky = SkyServe(SIZING)
    calm = follow(sky, pools, rps=16.0, begin_s=0.0, end_s=600.0)
    assert calm[-1][1] == {OWNED: 4, SPOT: 0, ON_DEMAND: 0}
    loud = follow(sky, pools, rps=24.0, begin_s=600.0, end_s=1200.0)
    more_s = next(at for at, wish in loud if wish[SPOT] == 2) - 600.0
    assert 280.0 <= more_s <= 340.0
    quiet = follow(sky, pools, rps=16.0, begin_s=1200.0, end_s=2600.0)
    fewer_s = next(at for at, wish in quiet if wish[SPOT] == 0) - 1200.0
    assert 1180.0 <= fewer_s <= 1240.0


def test_skyserve_has_on_demand_stand_in_for_spot_that_is_not_ready(
    pools: Mapping[str, PoolSpec],
) -> None:
    """24 a second need 6: 4 owned and 2 on spot. One of these runs, so one on demand stands in."""
    sky = SkyServe(SIZING)
    for look in range(4):
        sky.observe(build_signals(pools, now_s=20.0 * look, arrivals=480))
    sky._target = 6
    wish = sky.observe(
        build_signals(pools, now_s=80.0, arrivals=480, planned={SPOT: 2}, running={SPOT: 1})
    )
    assert wish.replicas == {OWNED: 4, SPOT: 2, ON_DEMAND: 1}
    both = build_signals(pools, now_s=100.0, arrivals=480, planned={SPOT: 2})
    assert sky.observe(both).replicas == {OWNED: 4, SPOT: 2, ON_DEMAND: 0}


@pytest.mark.parametrize(
    ("waiting", "kv", "more"),
    [
        (0, 0.0, False),
        (0, 0.69, False),  # spare 0.11 is above 0.1
        (0, 0.71, True),  # spare 0.09
        (0, 0.80, True),  # saturated: nothing to spare at all
        (8, 0.0, False),  # 2 a replica: spare of 3 below 5
        (9, 0.0, True),  # 2.25 a replica: spare of 2.75
        (20, 0.0, True),  # 5 a replica: saturated
    ],
)
def test_wva_adds_one_of_the_cheapest_when_the_spare_is_below_its_thresholds(
    pools: Mapping[str, PoolSpec], waiting: int, kv: float, *, more: bool
) -> None:
    """Four owned replicas, all there can be: the next cheapest is spot."""
    wish = Wva().observe(build_signals(pools, waiting=waiting, kv=kv))
    assert wish.replicas[SPOT] == int(more)
    assert wish.replicas[ON_DEMAND] == 0


def test_wva_takes_one_of_the_dearest_away_when_the_rest_keeps_its_spare(
    pools: Mapping[str, PoolSpec],
) -> None:
    """Six at a KV use of 0.5: five would have 0.6, spare 0.2. At 0.6: 0.72, spare 0.08."""
    there = {SPOT: 1, ON_DEMAND: 1}
    lower = Wva().observe(build_signals(pools, kv=0.5, planned=there)).replicas
    assert (lower[SPOT], lower[ON_DEMAND]) == (1, 0)
    same = Wva().observe(build_signals(pools, kv=0.6, planned=there)).replicas
    assert (same[SPOT], same[ON_DEMAND]) == (1, 1)


def test_wva_does_not_raise_a_pool_with_a_replica_on_its_way(
    pools: Mapping[str, PoolSpec],
) -> None:
    """Spot has one to come, so the next cheapest, on demand, is raised."""
    coming = build_signals(pools, waiting=40, planned={SPOT: 1}, running={})
    wish = Wva().observe(coming).replicas
    assert (wish[SPOT], wish[ON_DEMAND]) == (1, 1)


def test_queue_hpa_multiplies_by_the_ratio_to_its_target_within_a_tolerance(
    pools: Mapping[str, PoolSpec],
) -> None:
    """Four replicas, target 5 each: 21 waiting are 1.05, within 0.1; 30 are 1.5, so six."""
    assert sum(QueueHpa().observe(build_signals(pools, waiting=21)).replicas.values()) == 4
    wish = QueueHpa().observe(build_signals(pools, waiting=30)).replicas
    assert wish == {OWNED: 4, SPOT: 2, ON_DEMAND: 0}


def test_queue_hpa_at_most_doubles_or_adds_four_at_a_time(pools: Mapping[str, PoolSpec]) -> None:
    """200 waiting over four are ten times the target: 40 wanted, 8 given, which is both bounds."""
    wish = QueueHpa().observe(build_signals(pools, waiting=200)).replicas
    assert sum(wish.values()) == 8


def test_queue_hpa_goes_down_only_once_300_s_agree(pools: Mapping[str, PoolSpec]) -> None:
    """Six replicas and an empty queue: the highest of the last 300 s stays until then."""
    hpa, there = QueueHpa(), {SPOT: 2}
    totals = {}
    for look in range(30):
        signals = build_signals(pools, now_s=15.0 * look, planned=there)
        totals[15.0 * look] = sum(hpa.observe(signals).replicas.values())
    assert all(total == 6 for at, total in totals.items() if at < 270.0)
    assert min(total for at, total in totals.items() if at > 300.0) < 6


def test_the_fixed_policies_are_sized_for_the_highest_minute(
    pools: Mapping[str, PoolSpec],
) -> None:
    """50 a second: 4 owned do 32, so 18 are left for 5 of 4 each; 13 of 4 each do it alone.

    There are 12 on demand at most.
    """
    signals = build_signals(pools)
    assert OnPremOnly(SIZING).observe(signals).replicas == {OWNED: 4, SPOT: 0, ON_DEMAND: 0}
    assert StaticPeak(SIZING).observe(signals).replicas == {OWNED: 4, SPOT: 0, ON_DEMAND: 5}
    assert AllCloud(SIZING).observe(signals).replicas == {OWNED: 0, SPOT: 0, ON_DEMAND: 12}


def test_ray_default_asks_for_its_share_of_slots_30_s_late_and_gives_back_600_s_late(
    pools: Mapping[str, PoolSpec],
) -> None:
    """Slots of 8 over 1.25 make a target of 6.4 ongoing requests a replica.

    64 ongoing need 10. Ray's policy decides every second on a mean over 30 s, and only after 30 s
    of wanting more, 600 s of wanting fewer.
    """
    pytest.importorskip("ray")
    from autoscaling.peers.ray_default import RayDefault  # noqa: PLC0415 - Ray, seconds to import

    ray, wanted = RayDefault(), {}
    for second in range(1400):
        waiting = 64 if second < 400 else 0
        there = {OWNED: 4, SPOT: 6 if second >= 100 else 0}
        wish = ray.observe(
            build_signals(pools, now_s=float(second), waiting=waiting, planned=there)
        )
        wanted[second] = wish.anywhere
    first_more = next(s for s, count in wanted.items() if count == 10)
    first_fewer = next(s for s, count in wanted.items() if s > 400 and count < 10)
    assert wanted[0] < 10
    assert 30 <= first_more <= 62
    assert 600 <= first_fewer - 400 <= 662
