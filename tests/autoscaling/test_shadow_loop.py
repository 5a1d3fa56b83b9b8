"""Shadow mode at work: nothing is asked for over minutes of shortage, and what would be is told.

An owned replica of 4 slots answers 2 requests a second of a `demo` replica's speed; 5 s are
promised, a late request costs 0.05 $. The cloud's replica is as fast, costs 1.5 $ an hour and
would be there 10 s after it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from autoscaling.node_history import NodeFigures
from cluster.config import BurstSettings
from deployments.signals import GatewaySignals, ModelSignal, Served
from tests.autoscaling.brain_bench import POOLS, Bench

OWNED_RPS = 2
QUEUE_MAX = 40
PROMISE_S = 5.0


@dataclass
class World:
    """The real world, where only the owned replica answers: 100 tokens in, 16 out, 2 s each."""

    bench: Bench
    waiting: int = 0
    arrived: int = 0
    refused: int = 0
    late: int = 0
    begun: int = 0
    waited_s: float = 0.0
    cloud_running: int = 0

    def run(self, seconds: int, *, rps: int) -> list[dict[str, Any]]:
        """Return the decision records of so many seconds."""
        records = []
        for _ in range(seconds):
            self._pass_second(rps)
            records.append(self._tick())
        return records

    def _pass_second(self, rps: int) -> None:
        self.arrived += rps
        begun = min(self.waiting + rps, OWNED_RPS)
        self.begun += begun
        wait_s = self.waiting / OWNED_RPS
        self.waited_s += begun * wait_s
        self.waiting += rps - begun
        refused = max(0, self.waiting - QUEUE_MAX)
        self.refused += refused
        self.late += refused + begun * (wait_s > PROMISE_S)
        self.waiting -= refused

    def _tick(self) -> dict[str, Any]:
        bench = self.bench
        bench.now_s += 1
        served = Served(
            requests=self.begun,
            prompt_tokens=100 * self.begun,
            output_tokens=16 * self.begun,
            hold_s=2.0 * self.begun,
            first_tokens=self.begun,
            ttft_s=self.waited_s + 0.3 * self.begun,
            waited_s=self.waited_s,
        )
        owned, cloud = (replace(pool, gpu_row="demo") for pool in POOLS)
        owned = replace(owned, streams_running=4 if self.waiting else 1, served=served)
        model = ModelSignal(
            model="m",
            app="m",
            waiting_public=0,
            waiting_internal=self.waiting,
            waiting_restricted=0,
            waiting_may_burst=self.waiting,
            oldest_wait_s=0.0,
            pools=(owned, replace(cloud, replicas_running=self.cloud_running)),
            arrived=self.arrived,
            arrived_may_burst=self.arrived,
            ttft_s_max=PROMISE_S,
            tpot_s_max=0.5,
            usd_per_late_request=0.05,
            late=self.late,
            refused_may_burst=self.refused,
        )
        bench.board.put_signals(GatewaySignals("g", bench.now_s, (model,)))
        bench.brain.tick()
        record = bench.board.get_decision()
        assert record is not None
        return record

    def asked(self) -> dict[str, int]:
        """What Serve was told."""
        targets = self.bench.board.get_targets()
        return {} if targets is None else dict(targets.replicas["m"])


def set_mode(bench: Bench, **burst: Any) -> None:
    settings = BurstSettings(cold_start_s=10.0, min_lease_s=30.0, down_after_s=10.0, **burst)
    bench.settings = replace(bench.settings, burst=settings)


@pytest.fixture
def bench(cluster_content: dict[str, Any]) -> Bench:
    opened = Bench(cluster_content)
    set_mode(opened, mode="shadow")
    return opened


@pytest.fixture
def world(bench: Bench) -> World:
    return World(bench)


def replicas(record: dict[str, Any]) -> int:
    pool = record["shadow"]["models"]["m"]["pools"].get("cloud", {"replicas": 0})
    return int(pool["replicas"])


def test_minutes_of_shortage_launch_nothing_and_tell_what_would_have_been(world: World) -> None:
    """4 requests a second for three minutes: one replica more carries them, and costs money.

    Gateways refuse two a second once 40 wait; a replica that takes two a second spares most.
    """
    world.run(60, rps=1)
    records = world.run(180, rps=4)
    assert {record["targets"]["m"]["cloud"] for record in records} == {0}
    assert world.asked() == {"onprem": 1, "cloud": 0}
    assert {record["burst"] for record in records} == {"closed"}
    counts = [replicas(record) for record in records]
    assert 1 <= max(counts) <= 2
    figures = records[-1]["shadow"]["models"]["m"]
    assert figures["usd"] == pytest.approx(sum(counts[:-1]) * 1.5 / 3600, rel=1e-3)
    assert figures["late"] == world.late > 500
    assert figures["late_then"] < figures["late"] / 4
    assert figures["ttft_mean_s"] > PROMISE_S > figures["ttft_mean_then_s"]


def test_virtual_replicas_go_home_when_the_demand_is_over(world: World) -> None:
    """And cost nothing from then on."""
    world.run(60, rps=1)
    world.run(120, rps=4)
    records = world.run(200, rps=1)
    assert replicas(records[-1]) == 0
    last, before = (record["shadow"]["models"]["m"]["usd"] for record in (records[-1], records[-9]))
    assert last == before > 0


def test_the_same_demand_launches_once_the_brain_may_act(world: World) -> None:
    """The figures above are no accident of a demand that pays for nothing."""
    set_mode(world.bench, mode="act")
    world.run(60, rps=1)
    records = world.run(120, rps=4)
    assert world.asked()["cloud"] >= 1
    assert records[-1]["shadow"] is None


def test_promoting_asks_for_what_the_shadow_would_run(world: World) -> None:
    world.run(60, rps=1)
    would = replicas(world.run(120, rps=4)[-1])
    set_mode(world.bench, mode="act")
    world.run(1, rps=4)
    assert world.asked()["cloud"] >= would >= 1


def test_a_new_process_goes_on_with_the_same_shadow(world: World) -> None:
    """Money, late requests and virtual replicas are in the record."""
    world.run(60, rps=1)
    before = world.run(120, rps=4)[-1]
    world.bench.restart()
    after = world.run(1, rps=4)[-1]
    assert replicas(after) == replicas(before) > 0
    ours, theirs = (record["shadow"]["models"]["m"] for record in (after, before))
    assert ours["since_s"] == theirs["since_s"]
    assert ours["usd"] > theirs["usd"]
    assert ours["requests"] == theirs["requests"] + 4


def test_a_shadow_nobody_can_read_costs_only_the_shadow(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    record = world.run(5, rps=1)[-1]
    record["shadow"]["memory"] = {"m": "nonsense"}
    world.bench.board.put_decision(record)
    world.bench.restart()
    assert world.run(1, rps=1)[-1]["shadow"]["models"]["m"]["usd"] == 0
    assert "what the last decision record tells can't be read" in caplog.text


def test_replicas_rented_before_shadow_mode_are_sent_home_by_it(world: World) -> None:
    """Two run when the mode is changed: they go when they aren't needed, and none comes back."""
    set_mode(world.bench, mode="act")
    world.run(60, rps=1)
    world.run(120, rps=4)
    assert world.asked()["cloud"] >= 1
    world.cloud_running = world.asked()["cloud"]
    set_mode(world.bench, mode="shadow")
    seen = _watch(world, lambda: world.run(1, rps=1), seconds=300)
    assert seen[-1] == 0
    assert seen == sorted(seen, reverse=True)


def _watch(world: World, step: Callable[[], Any], *, seconds: int) -> list[int]:
    seen = []
    for _ in range(seconds):
        step()
        seen.append(world.asked()["cloud"])
        world.cloud_running = seen[-1]
    return seen


def test_a_learned_cold_start_counts_before_the_setting(world: World) -> None:
    """12 s for the node type that can hold the pool's replica, not the 10 s of the file."""
    figures = NodeFigures({"cloud_gpu": 12.0})
    world.bench.sources = replace(world.bench.sources, read_node_figures=lambda: figures)
    world.bench.restart()
    world.run(60, rps=1)
    record = world.run(60, rps=4)[-1]
    assert "cold start 12 s" in record["changes"][0]["why"]


def test_the_log_says_that_a_change_is_not_carried_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.run(60, rps=1)
    world.run(60, rps=4)
    raises = [message for message in caplog.messages if "m/cloud" in message]
    assert raises
    assert all(message.startswith("brain, in shadow: ") for message in raises)
