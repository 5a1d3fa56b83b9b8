"""A brain over a blackboard in memory that ticks when a test tells it to, at a time it tells."""

from dataclasses import replace
from typing import Any

from autoscaling.brain_loop import BrainLoop, Sources
from autoscaling.record import SchedulerReport
from cluster.config import parse_cluster_config
from deployments.signals import Blackboard, GatewaySignals, ModelSignal, PoolSignal

POOLS = tuple(
    PoolSignal(
        pool=site,
        site=site,
        owned=market == "owned",
        accelerator="cpu",
        market=market,
        gpus_per_replica=1,
        slots_per_replica=4,
        min_replicas=int(market == "owned"),
        max_replicas=int(market == "owned") or 2,
        replicas_running=int(market == "owned"),
        streams_running=0,
    )
    for site, market in (("onprem", "owned"), ("cloud", "on_demand"))
)


class Memory:
    """The part of the GCS client that the blackboard uses."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def internal_kv_put(self, key: bytes, value: bytes, *_: Any) -> None:
        self.values[key] = value

    def internal_kv_get(self, key: bytes, *_: Any) -> bytes | None:
        return self.values.get(key)

    def internal_kv_keys(self, prefix: bytes, *_: Any) -> list[bytes]:
        return [key for key in self.values if key.startswith(prefix)]

    def internal_kv_del(self, key: bytes, *_: Any) -> None:
        self.values.pop(key, None)


class Bench:
    """A brain that ticks when told to, at a time that is told."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.memory = Memory()
        self.board = Blackboard(self.memory)
        self.now_s = 1000.0
        self.settings = parse_cluster_config(content)
        self.problems: tuple[str, ...] = ()
        self.sources = Sources(
            lambda: self.settings, SchedulerReport, lambda: self.now_s, lambda: self.problems
        )
        self.brain = BrainLoop(self.board, self.sources)

    def restart(self) -> None:
        self.brain = BrainLoop(self.board, self.sources)

    def publish(self, *, waiting: int) -> None:
        busy = 4 if waiting else 0
        pools = tuple(replace(p, streams_running=busy if p.owned else 0) for p in POOLS)
        model = ModelSignal("m", "m", 0, waiting, 0, waiting, 0.0, pools)
        self.board.put_signals(GatewaySignals("g", self.now_s, (model,)))

    def ticks(self, seconds: int, *, waiting: int | None = 0) -> dict[str, int]:
        for _ in range(seconds):
            self.now_s += 1
            if waiting is not None:
                self.publish(waiting=waiting)
            self.brain.tick()
        targets = self.board.get_targets()
        return targets.replicas.get("m", {}) if targets is not None else {}
