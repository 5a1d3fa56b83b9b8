"""One fault schedule: autoscalers over a simulated site, in simulated time, from one seed.

A schedule enables a random subset of faults (swarm testing: all at once would hide what only some
bring out), lets them happen for a while, heals everything, and goes on until all is settled. The
code under test is production's: `SiteWorker`, `Reconciler`, `Ledger`, `Lease` and the limits.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from cluster.config import ProviderSettings
from cluster.errors import LaunchRefusedError, NotLeaderError
from cluster.lease import TTL_S, Lease
from cluster.ledger import Books, Intent, Ledger
from cluster.limits import check_budget, check_site_room
from cluster.model import ClusterName, LaunchSpec, NodeId, NodePhase, NodeTypeName, SiteName
from cluster.owner import close_owner, open_owner
from cluster.site_reconcile import Clock, Conduct, Reconciler
from cluster.site_worker import Launch, SiteWorker, Terminate
from tests.simulation.simulated_site import (
    CRASHES,
    END_FAULTS,
    LAUNCH_FAULTS,
    LIST_FAULTS,
    SETTLE_S,
    Crash,
    SimulatedBackend,
    SimulatedSite,
    Started,
)

SITE, NODE_TYPE = SiteName("cloud"), NodeTypeName("cloud_gpu")
USD_PER_HOUR = Decimal("1.5")
TICK_S = 5.0
FAULTY_TICKS, HEALTHY_TICKS = 24, 22
# Looks at a site that answers, until anything transient or unknown must be settled: it may take
# settle_s to believe that something is missing, and again to see a late listing.
LOOKS_MAX = int(2 * SETTLE_S / TICK_S) + 6
_EPOCH_S = 1_700_000_000.0
_HELD = {NodePhase.INTENDED, NodePhase.LAUNCHED, NodePhase.RUNNING}
WORLD_FAULTS = ("spot_loss", "restart", "pause", "clock_step", "stranger")
ALL_FAULTS = tuple(
    dict.fromkeys((*LAUNCH_FAULTS, *END_FAULTS, *LIST_FAULTS, *CRASHES, *WORLD_FAULTS))
)


class InvariantError(AssertionError):
    """What must always hold didn't."""


@dataclass(frozen=True)
class Variant:
    """How this run differs from production, to show that the checks would notice."""

    honours_tokens: bool = True
    price: Decimal = USD_PER_HOUR
    reconciler: type[Reconciler] = Reconciler


@dataclass(eq=False)
class Autoscaler:
    """One process: a lease or the wish for one, and a worker for the site."""

    schedule: "Schedule"
    owner: str = field(default_factory=open_owner)
    was_listed: bool = False

    def __post_init__(self) -> None:
        schedule = self.schedule
        self.lease = Lease(schedule.ledger, self.owner, monotonic_s=schedule.now_s)
        conduct = Conduct(self.owner, may_act=lambda: self.lease.token is not None)
        reconciler = schedule.variant.reconciler(
            SITE,
            ledger=schedule.ledger,
            conduct=conduct,
            price_of=lambda _type: schedule.variant.price,
            clock=schedule.clock,
        )
        self.worker = SiteWorker(
            SITE,
            backend=SimulatedBackend(schedule.site),
            ledger=schedule.ledger,
            reconciler=reconciler,
            conduct=conduct,
            clock=schedule.clock,
        )

    def tick(self) -> bool:
        """Do what a leader does in one tick; returns whether it looked at the site."""
        token = self.lease.try_acquire()
        if token is None:
            return False
        if self.was_listed:
            self.schedule.maybe_pause(self)
            self._follow_demand(token)
        is_done = self.worker.look()
        self.was_listed |= is_done
        return is_done

    def _follow_demand(self, token: int) -> None:
        held = [one for one in self.schedule.ledger.list_open() if one.phase in _HELD]
        missing = self.schedule.wanted - len(held)
        try:
            for _ in range(max(0, missing)):
                self._launch(token)
            surplus = [one.node_id for one in held[: max(0, -missing)]]
            for node_id in surplus:
                self.schedule.ledger.mark_terminating(node_id, owner=self.owner, fence=token)
            if surplus:
                self.worker.perform(Terminate(tuple(surplus)))
        except (LaunchRefusedError, NotLeaderError):
            return

    def _launch(self, token: int) -> None:
        schedule = self.schedule
        spec = schedule.new_spec()
        intent = Intent(
            node_id=spec.node_id,
            site=SITE,
            node_type=NODE_TYPE,
            is_head=False,
            usd_per_hour=schedule.variant.price,
            tags=spec.tags,
            node_config={},
        )

        def check(books: Books) -> None:
            check_site_room(schedule.settings, books.open_nodes, [intent])
            check_budget(schedule.settings, books, [intent])

        schedule.ledger.open_intents([intent], owner=self.owner, check=check, fence=token)
        self.worker.perform(Launch(spec))


class Schedule:
    """The world of one seed."""

    def __init__(
        self,
        seed: int,
        *,
        ledger: Ledger,
        settings: ProviderSettings,
        variant: Variant | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger
        self.settings = settings
        self.variant = variant or Variant()
        self.clock = Clock(wall_s=self.wall_s, ticks_s=self.now_s)
        self.wanted = 0
        self._now_s, self._off_s, self._nodes = 0.0, _EPOCH_S, 0
        self._is_paused = False
        self._looks: dict[tuple[str, NodeId], int] = {}
        self.faults = frozenset(kind for kind in ALL_FAULTS if self.rng.random() < 0.5)
        self.site = SimulatedSite(
            self.rng,
            now_s=self.now_s,
            wall_s=self.wall_s,
            advance=self.advance,
            faults=self.faults,
            fault_ratio=self.rng.choice((0.1, 0.3, 0.6)),
            honours_tokens=self.variant.honours_tokens,
        )
        self.autoscalers = [Autoscaler(self), Autoscaler(self)]

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s + self._off_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def new_spec(self) -> LaunchSpec:
        self._nodes += 1
        return LaunchSpec(
            node_id=NodeId(f"n-{self._nodes}"),
            cluster=ClusterName("test"),
            site=SITE,
            node_type=NODE_TYPE,
            is_head=False,
        )

    def run(self) -> None:
        """Let faults happen, heal, settle, go home."""
        for _ in range(FAULTY_TICKS):
            if self.rng.random() < 0.3:
                self.wanted = self.rng.randint(0, 5)
            self._meet_fault()
            self._tick()
        self.site.faults = self.faults = frozenset()
        for self.wanted in (2, 0):
            for _ in range(HEALTHY_TICKS):
                self._tick()
                if self._is_settled():
                    break
            else:
                raise InvariantError(f"I10: {self.wanted} nodes wanted; got {self._describe()}")

    def close(self) -> None:
        for autoscaler in self.autoscalers:
            close_owner(autoscaler.owner)

    def maybe_pause(self, stopped: Autoscaler) -> None:
        """Stop a leader between its decision and its deed, for longer than its lease lasts."""
        if self._is_paused or "pause" not in self.faults or self.rng.random() > 0.1:
            return
        self._is_paused = True
        place = 1 - self.autoscalers.index(stopped)
        for _ in range(int(TTL_S / TICK_S) + 2):
            self.advance(TICK_S)
            self._tick_one(place)
        self._is_paused = False

    def _tick(self) -> None:
        self.advance(TICK_S)
        looks = [self._tick_one(place) for place in range(len(self.autoscalers))]
        self._check(was_looked_at=any(looks))

    def _tick_one(self, place: int) -> bool:
        try:
            return self.autoscalers[place].tick()
        except Crash:
            self._restart(place)
            return False

    def _restart(self, place: int) -> None:
        close_owner(self.autoscalers[place].owner)
        self.autoscalers[place] = Autoscaler(self)

    def _meet_fault(self) -> None:
        if self.rng.random() > 0.2:
            return
        kinds = [kind for kind in WORLD_FAULTS if kind in self.faults]
        kind = self.rng.choice(kinds) if kinds else None
        if kind == "spot_loss":
            self.site.lose_one()
        elif kind == "restart":
            self._restart(self.rng.randrange(len(self.autoscalers)))
        elif kind == "clock_step":
            self._off_s += self.rng.choice((-3600.0, -60.0, 60.0, 3600.0))
        elif kind == "stranger":
            self.site.start(self.new_spec(), is_stranger=True)

    # --- invariants

    def _check(self, *, was_looked_at: bool) -> None:
        records = {one.node_id: one for one in self.ledger.list_open()}
        live = self.site.live()
        self._check_launches()
        self._check_money(live)
        transient = {
            ("I6", node_id): one.phase
            for node_id, one in records.items()
            if one.phase is not NodePhase.RUNNING
        }
        unknown = {
            ("I2", one.spec.node_id): "unknown" for one in live if one.spec.node_id not in records
        }
        self._age({**transient, **unknown}, was_looked_at=was_looked_at)

    def _check_launches(self) -> None:
        """I4: one instance for one intent, ever."""
        ids = [one.spec.node_id for one in self.site.started]
        if len(ids) != len(set(ids)):
            raise InvariantError(f"I4: more than one instance of one node; got {ids}")

    def _check_money(self, live: list[Started]) -> None:
        """I3: what runs never costs more than the limit; strangers weren't launched by us."""
        burn = USD_PER_HOUR * sum(not one.is_stranger for one in live)
        limit = self.settings.limits.usd_per_hour
        if burn > limit:
            raise InvariantError(f"I3: {burn} $/h run; the limit is {limit} $/h")

    def _age(self, odd: Mapping[tuple[str, NodeId], str], *, was_looked_at: bool) -> None:
        """I2, I6: what is unknown or on its way is settled after so many looks that succeeded."""
        self._looks = {key: self._looks.get(key, 0) + was_looked_at for key in odd}
        for (law, node_id), looks in self._looks.items():
            if looks > LOOKS_MAX:
                raise InvariantError(
                    f"{law}: {node_id} is still {odd[law, node_id]} after {looks} looks"
                )

    def _is_settled(self) -> bool:
        records = {one.node_id: one.phase for one in self.ledger.list_open()}
        live = {one.spec.node_id for one in self.site.live()}
        is_running = all(phase is NodePhase.RUNNING for phase in records.values())
        return is_running and records.keys() == live and len(live) == self.wanted

    def _describe(self) -> str:
        records = [(one.node_id, one.phase.value) for one in self.ledger.list_open()]
        return f"{records} in the ledger, {[one.spec.node_id for one in self.site.live()]} there"
