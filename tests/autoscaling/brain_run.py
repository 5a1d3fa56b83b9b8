"""A small world for the brain: one model, its pools and one gateway, a second at a time.

Requests are a fluid: a replica finishes `RPS` a second while it has work, and holds each for
`SLOTS / RPS` seconds. Replicas follow the plan after a cold start. Nothing here decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from autoscaling.guard import Offer
from autoscaling.history import DemandHistory
from autoscaling.learning import Learned
from autoscaling.observation import Observed, build_snapshot
from autoscaling.replicas import decide_replicas
from autoscaling.snapshot import BurstPolicy, Decision, SetReplicas, Snapshot
from autoscaling.stability import ModelMemory
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served

APP = "m"
RPS = 1.0
SLOTS = 8
COLD_START_S = 30.0
PROMPT_TOKENS, OUTPUT_TOKENS = 100, 50

ONPREM = PoolSignal(
    pool="onprem",
    site="onprem",
    owned=True,
    accelerator="a100",
    market="owned",
    gpus_per_replica=1,
    slots_per_replica=SLOTS,
    min_replicas=1,
    max_replicas=2,
    replicas_running=0,
    streams_running=0,
)
CLOUD = replace(ONPREM, pool="cloud", site="aws", owned=False, market="on_demand", min_replicas=0)
SPOT = replace(CLOUD, pool="spot", market="spot")
MODEL = ModelSignal(
    model=APP,
    app=APP,
    waiting_public=0,
    waiting_internal=0,
    waiting_restricted=0,
    waiting_may_burst=0,
    oldest_wait_s=0.0,
    ttft_s_max=10.0,
    usd_per_late_request=0.05,
)
POLICY = BurstPolicy(cold_start_s=COLD_START_S)


def offer(pool: PoolSignal, usd_per_hour: str) -> Offer:
    """The node type that holds one replica of a pool."""
    return Offer(
        name=f"{pool.pool}_node",
        site=pool.site,
        market=pool.market,  # type: ignore[arg-type]  # one of the four by construction
        resources={"GPU": 1.0},
        usd_per_hour=Decimal(usd_per_hour),
        nodes_max=pool.max_replicas,
    )


OFFERS = (offer(ONPREM, "0"), offer(CLOUD, "2"), offer(SPOT, "1"))


def learned(all_: Sequence[int], may_burst: Sequence[int] | None = None) -> Learned:
    """What is known after these bins, all of which may leave unless told otherwise."""
    leaving = all_ if may_burst is None else may_burst
    return Learned(history=DemandHistory(all=tuple(all_), may_burst=tuple(leaving)))


@dataclass
class BrainRun:
    """The world at one moment, and the brain's memory of it."""

    pools: tuple[PoolSignal, ...] = (ONPREM, CLOUD)
    model: ModelSignal = MODEL
    policy: BurstPolicy = POLICY
    now_s: float = 1000.0
    queue_stay: float = 0.0
    queue_leave: float = 0.0
    arrived_stay: int = 0
    arrived_leave: int = 0
    ready_s: dict[str, list[float]] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)
    memory: dict[str, ModelMemory] = field(default_factory=dict)
    moves: dict[str, list[int]] = field(default_factory=dict)

    @property
    def planned(self) -> dict[str, int]:
        """The number last planned of each pool, zero before the first decision."""
        known = self.memory[APP].pools if APP in self.memory else {}
        return {p.pool: known[p.pool].planned if p.pool in known else 0 for p in self.pools}

    def running(self, pool: PoolSignal) -> int:
        """The replicas of a pool that answer."""
        return sum(ready_s <= self.now_s for ready_s in self.ready_s.get(pool.pool, []))

    def second(self, *, stay: int = 0, leave: int = 0) -> Decision:
        """Let a second pass in which so many arrive that must stay and that may leave."""
        self.advance(stay=stay, leave=leave)
        return self.decide(self.report())

    def seconds(self, count: int, *, stay: int = 0, leave: int = 0) -> list[Decision]:
        """Let seconds pass with so many arrivals each."""
        return [self.second(stay=stay, leave=leave) for _ in range(count)]

    def advance(self, *, stay: int = 0, leave: int = 0) -> None:
        """Let a second pass without a decision: what must stay takes owned capacity first."""
        self.now_s += 1.0
        self.arrived_stay += stay
        self.arrived_leave += leave
        self.queue_stay += stay
        self.queue_leave += leave
        for pool in self.pools:
            most = self.running(pool) * RPS
            stays = min(self.queue_stay, most) if pool.owned else 0.0
            leaves = min(self.queue_leave, most - stays)
            self.queue_stay -= stays
            self.queue_leave -= leaves
            done = self.finished.get(pool.pool, 0.0)
            self.finished[pool.pool] = done + stays + leaves
            self.streams[pool.pool] = round((stays + leaves) / RPS * SLOTS)

    def report(self) -> GatewaySignals:
        """What the gateway says now."""
        stay, leave = int(self.queue_stay), int(self.queue_leave)
        model = replace(
            self.model,
            waiting_public=leave,
            waiting_restricted=stay,
            waiting_may_burst=leave,
            arrived=self.arrived_stay + self.arrived_leave,
            arrived_may_burst=self.arrived_leave,
            pools=tuple(self._signal(pool) for pool in self.pools),
        )
        return GatewaySignals("gateway", self.now_s, (model,))

    def look(self, *reports: GatewaySignals) -> Snapshot:
        """What the brain may know of these reports."""
        observed = Observed(signals=reports, offers=OFFERS, memory=self.memory)
        return build_snapshot(observed, now_s=self.now_s, policy=self.policy)

    def decide(self, *reports: GatewaySignals) -> Decision:
        """Decide on these reports, and have replicas follow the plan."""
        decision = decide_replicas(self.look(*reports), self.policy)
        self.memory = dict(decision.memory)
        for command in decision.commands:
            if isinstance(command, SetReplicas):
                step = command.replicas_to - command.replicas_from
                self.moves.setdefault(command.deployment, []).append(step)
        self._follow()
        return decision

    def _follow(self) -> None:
        for name, number in self.planned.items():
            ready_s = self.ready_s.setdefault(name, [])
            # The first replicas of a deploy are there at once: it waits for them.
            first_s = self.now_s if not ready_s and name == "onprem" else self.now_s + COLD_START_S
            ready_s += [first_s] * (number - len(ready_s))
            del ready_s[number:]

    def _signal(self, pool: PoolSignal) -> PoolSignal:
        done = int(self.finished.get(pool.pool, 0.0))
        served = Served(
            requests=done,
            prompt_tokens=done * PROMPT_TOKENS,
            output_tokens=done * OUTPUT_TOKENS,
            hold_s=done * SLOTS / RPS,
            first_tokens=done,
        )
        return replace(
            pool,
            replicas_running=self.running(pool),
            streams_running=self.streams.get(pool.pool, 0),
            served=served,
        )
