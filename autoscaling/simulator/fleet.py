"""Replicas in simulated time: asked for, placed on nodes, loaded, serving, drained, gone."""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from autoscaling.demand import Demand
from autoscaling.simulator.clock import Clock
from autoscaling.simulator.engine_model import EngineModel, Milestone
from autoscaling.simulator.gateway_model import Gateway, Live
from autoscaling.simulator.machines import (
    Machine,
    Replica,
    build_demand,
    find_machine,
    find_pool,
    give_back,
    take,
)
from autoscaling.simulator.policy import Wish
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import PoolTally, Tally
from autoscaling.simulator.timeline import Recorder
from autoscaling.simulator.traffic import build_random
from deployments.pool_options import GRACEFUL_SHUTDOWN_S
from deployments.routing import ReplicaLoad
from deployments.spec import PoolSpec


def jitter(chance: Random, median_s: float, spread: float) -> float:
    """Return a duration around its median."""
    return median_s * chance.lognormvariate(0.0, spread) if spread else median_s


class Fleet:
    """All replicas of one model. `machines` is filled by the node side."""

    def __init__(
        self,
        clock: Clock,
        scenario: Scenario,
        tally: Tally,
        *,
        seed: int,
        binds_market: bool,
        recorder: Recorder | None = None,
    ) -> None:
        self._clock = clock
        self._scenario = scenario
        self._tally = tally
        self._binds_market = binds_market
        self._recorder = recorder
        self._chance = build_random(seed, "replicas")
        self._made = 0
        self._directions: dict[str, int] = {}
        self.gateway = Gateway(clock, scenario.queue, tally, self._submit)
        self.pools = {pool.name: pool for pool in scenario.model.pools}
        self.machines: dict[str, Machine] = {}
        self.replicas: dict[str, Replica] = {}
        self.served = {name: PoolTally() for name in self.pools}
        self._ways_s = {n: scenario.find_round_trip_s(pool) for n, pool in self.pools.items()}

    def begin(self) -> None:
        """Start each pool's minimum and have what owned nodes hold serve from the first second."""
        self.resize(Wish({name: pool.min_replicas for name, pool in self.pools.items()}))
        for replica in list(self.replicas.values()):
            if replica.machine is not None:
                self._become_ready(replica)

    def resize(self, wish: Wish) -> None:
        """Start and drain replicas until there are as many as wished."""
        if wish.anywhere is not None:
            self._resize(None, list(self.replicas.values()), wish.anywhere)
        for name, wanted in wish.replicas.items():
            mine = [one for one in self.replicas.values() if one.pool_name == name]
            self._resize(self.pools[name], mine, wanted)
        self.place_pending()

    def list_pending(self) -> list[Demand]:
        """What replicas without a node ask for, oldest first."""
        return [one.demand for one in self.replicas.values() if one.machine is None]

    def place_pending(self) -> None:
        """Put replicas that wait onto nodes with room, oldest first."""
        pending = [one for one in self.replicas.values() if one.machine is None]
        machines = list(self.machines.values()) if pending else []
        for replica in pending:
            machine = find_machine(machines, replica.demand)
            if machine is not None:
                self._start(replica, machine)

    def drain_machine(self, machine: Machine) -> None:
        """Send nothing more to a node's replicas; each goes when its last stream ends."""
        for replica in list(machine.replicas):
            self._drain(replica)

    def lose_machine(self, machine: Machine) -> None:
        """End a node's replicas now: requests without a first token go back to the queue."""
        for replica in list(machine.replicas):
            self.gateway.close(replica.id)
            for live in list(replica.live.values()):
                if live.first_s is None:
                    self.gateway.come_back(live, replica.id)
                else:
                    self._tally.failed += 1
            replica.live.clear()
            self._remove(replica)
        self.gateway.dispatch()

    def _resize(self, pool: PoolSpec | None, mine: Sequence[Replica], wanted: int) -> None:
        staying = [one for one in mine if not one.is_draining]
        if pool is not None and not pool.owned:
            self._note_direction(pool.name, wanted - len(staying))
        for _ in range(wanted - len(staying)):
            self._ask(pool)
        # As Serve chooses: those not placed yet, then not ready, then the emptiest, newest first.
        order = sorted(
            staying,
            key=lambda one: (one.machine is not None, one.is_ready, len(one.live), -one.asked_s),
        )
        for replica in order[: max(0, len(staying) - wanted)]:
            self._drain(replica)

    def _note_direction(self, pool: str, change: int) -> None:
        if change == 0:
            return
        direction = 1 if change > 0 else -1
        self._tally.reversals += self._directions.get(pool, direction) != direction
        self._directions[pool] = direction

    def _ask(self, pool: PoolSpec | None) -> None:
        self._made += 1
        shape = pool or next(iter(self.pools.values()))
        name = f"replica-{self._made:05d}"
        demand = build_demand(
            name, shape, is_bound_to_market=self._binds_market, is_anywhere=pool is None
        )
        self.replicas[name] = Replica(name, pool, demand, asked_s=self._clock.now_s)

    def _start(self, replica: Replica, machine: Machine) -> None:
        if replica.pool is None:
            replica.pool = find_pool(machine.kind, self.pools)
            if replica.pool is None:
                return
        take(machine, replica.demand)
        machine.replicas.append(replica)
        replica.machine = machine
        boot = machine.boot
        load_s = jitter(self._chance, boot.weights_s + boot.engine_s, boot.spread)
        self._clock.at(self._clock.now_s + load_s, self._become_ready, replica)

    def _become_ready(self, replica: Replica) -> None:
        pool = replica.pool
        if replica.id not in self.replicas or replica.is_draining or replica.is_ready or not pool:
            return
        replica.is_ready = True
        if replica.machine is not None and replica.machine.serving_s is None and self._clock.now_s:
            replica.machine.serving_s = self._clock.now_s
        replica.engine = EngineModel(
            self._scenario.performance[pool.name],
            slots=pool.slots,
            chunk_tokens=self._scenario.chunk_tokens,
            now_s=self._clock.now_s,
        )
        self.gateway.open(
            ReplicaLoad(
                replica_id=replica.id,
                pool=pool.name,
                site=pool.site,
                owned=pool.owned,
                market=pool.market,
                slots=pool.slots,
                reading_tokens_max=pool.reading_tokens_max,
            )
        )

    def _drain(self, replica: Replica) -> None:
        replica.is_draining = True
        self.gateway.close(replica.id)
        if not replica.live:
            self._remove(replica)
            return
        deadline_s = self._clock.now_s + GRACEFUL_SHUTDOWN_S
        self._clock.at(deadline_s, self._cut_off, replica)

    def _cut_off(self, replica: Replica) -> None:
        if replica.id in self.replicas:
            self._tally.failed += len(replica.live)
            replica.live.clear()
            self._remove(replica)

    def _remove(self, replica: Replica) -> None:
        del self.replicas[replica.id]
        replica.turn += 1
        if replica.machine is not None:
            replica.machine.replicas.remove(replica)
            give_back(replica.machine, replica.demand, self._clock.now_s)

    def _submit(self, replica_id: str, live: Live) -> None:
        """Hand a request to its replica's engine, which is brought up to now first."""
        replica = self.replicas[replica_id]
        engine = replica.engine
        assert engine is not None  # noqa: S101 - only replicas that serve are offered
        now_s = self._clock.now_s
        self._settle(replica, engine.advance(now_s))
        if not engine.can_hold(live.work):
            self._tally.refuse(may_burst=live.ticket.may_leave_owned)
            self.gateway.note_read(replica_id, live.ticket.prompt_tokens)
            self.gateway.release(replica_id)
            return
        replica.live[live.work] = live
        live.submitted_s = now_s
        engine.submit(live.work, now_s)
        self._wake(replica, engine)

    def _wake(self, replica: Replica, engine: EngineModel) -> None:
        replica.turn += 1
        next_s = engine.next_event_s()
        if next_s is not None:
            self._clock.at(next_s, self._advance, replica, replica.turn)

    def _advance(self, replica: Replica, turn: int) -> None:
        engine = replica.engine
        if replica.turn != turn or engine is None:
            return
        self._settle(replica, engine.advance(self._clock.now_s))
        self._wake(replica, engine)
        if replica.is_draining and not replica.live:
            self._remove(replica)
        self.gateway.dispatch_if_changed()

    def _settle(self, replica: Replica, milestones: Sequence[Milestone]) -> None:
        """Note first and last tokens, and with them what the replica has room for again."""
        now_s = self._clock.now_s
        for milestone in milestones:
            live = replica.live[milestone.work]
            if milestone.is_first:
                self._note_first(replica, live, now_s)
                self.gateway.note_read(replica.id, live.ticket.prompt_tokens)
            if milestone.is_last:
                del replica.live[milestone.work]
                self._complete(replica, live, now_s)
                self.gateway.release(replica.id)

    def _note_first(self, replica: Replica, live: Live, now_s: float) -> None:
        live.first_s = now_s
        served, way_s = self._find_served(replica)
        ttft_s = now_s - live.request.arrival_s + way_s
        served.first_tokens += 1
        served.ttft_s += ttft_s
        self._tally.begin(ttft_s)

    def _complete(self, replica: Replica, live: Live, now_s: float) -> None:
        request = live.request
        first_s = live.first_s if live.first_s is not None else now_s
        served, way_s = self._find_served(replica)
        steps = request.output_tokens - 1
        served.requests += 1
        served.prompt_tokens += request.prompt_tokens
        served.output_tokens += request.output_tokens
        cached = live.work.cached_tokens or 0
        served.cached_tokens += cached
        served.read_tokens_squared += (request.prompt_tokens - cached) ** 2
        served.output_tokens_squared += request.output_tokens**2
        served.hold_s += now_s - live.submitted_s + way_s
        served.decode_tokens += steps
        served.decode_s += now_s - first_s
        tpot_s = (now_s - first_s) / steps if steps > 0 else 0.0
        ttft_s = first_s - request.arrival_s + way_s
        is_in_time = self._tally.complete(ttft_s, tpot_s)
        if self._recorder is not None:
            self._recorder.answer(request.arrival_s, ttft_s, is_in_time=is_in_time)

    def _find_served(self, replica: Replica) -> tuple[PoolTally, float]:
        """Return where a replica's answers are counted, and its round trip from the gateway."""
        pool = replica.pool
        assert pool is not None  # noqa: S101 - a replica that serves has its node's pool
        return self.served[pool.name], self._ways_s[pool.name]

    def count_live(self) -> int:
        """How many requests are in an engine."""
        return sum(len(replica.live) for replica in self.replicas.values())

    def planned(self) -> Mapping[str, int]:
        """Replicas by pool that run or are to come."""
        return self._count_by_pool(lambda one: not one.is_draining)

    def running(self) -> Mapping[str, int]:
        """Replicas by pool that serve."""
        return self._count_by_pool(lambda one: one.is_ready and not one.is_draining)

    def streams(self) -> Mapping[str, int]:
        """Requests by pool that are in an engine."""
        return self._count_by_pool(lambda one: len(one.live))

    def _count_by_pool(self, count: Callable[[Replica], int]) -> Mapping[str, int]:
        counts = dict.fromkeys(self.pools, 0)
        for replica in self.replicas.values():
            if replica.pool is not None:
                counts[replica.pool.name] += count(replica)
        return counts
