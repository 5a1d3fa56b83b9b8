"""One run: traffic through gateway, engines and nodes under one policy, in virtual time.

    arrival ─► gateway (production admission, routing, residency) ─► engine ─► tally
                  │ signals                                ▲ replicas
                  ▼                                        │
               policy ──replicas──► fleet ──pending──► node life (placement, guard, releases)

Open loop: arrivals never wait for answers. Same traffic, scenario, policy and seed: same figures.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

from autoscaling.observation import find_price
from autoscaling.simulator.clock import EPOCH_S, Clock
from autoscaling.simulator.fleet import Fleet
from autoscaling.simulator.node_life import NodeLife
from autoscaling.simulator.policy import Policy, PoolState, Signals
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.spending import sum_egress_usd
from autoscaling.simulator.tally import Outcome, Spent, Tally, build_outcome
from autoscaling.simulator.timeline import Recorder, Sample
from autoscaling.simulator.traffic import Traffic
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Targets
from deployments.spec import PoolSpec

_SAY_EVERY_S = 60.0

Say = Callable[[float], None]
"""Is told the simulated time that was reached, in s."""


class Simulation:
    """See the module. `tally` may be read once `run` has returned; a recorder changes nothing."""

    def __init__(
        self,
        traffic: Traffic,
        scenario: Scenario,
        policy: Policy,
        *,
        seed: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._traffic = traffic
        self._scenario = scenario
        self._policy = policy
        self._recorder = recorder
        self._clock = Clock()
        self.tally = Tally(scenario.slo)
        self.fleet = Fleet(
            self._clock,
            scenario,
            self.tally,
            seed=seed,
            binds_market=policy.binds_market,
            recorder=recorder,
        )
        self.nodes = NodeLife(
            self._clock, scenario, self.tally, self.fleet, seed=seed, recorder=recorder
        )
        self._requested: Targets | None = None
        self._arrivals_seen = 0

    def run(self, say: Say | None = None) -> Outcome:
        """Return the figures once everything that arrived has ended, or the time is up."""
        began_s = time.perf_counter()
        self.nodes.begin(self._traffic.duration_s + self._scenario.settle_s)
        self.fleet.begin()
        self._clock.at(0.0, self._look)
        self._clock.at(0.0, self._node_tick)
        if self._recorder is not None:
            self._clock.at(0.0, self._sample, self._recorder)
        self._flow(say or (lambda _now_s: None))
        waiting = sum(self.fleet.gateway.count_waiting())
        self.tally.unfinished = waiting + self.fleet.count_live()
        return build_outcome(
            self._policy.name,
            self.tally,
            self._sum_spent(self._traffic.duration_s),
            wall_s=time.perf_counter() - began_s,
        )

    def _flow(self, say: Say) -> None:
        """Let arrivals and events happen in order of time; arrivals first where they tie."""
        clock, gateway = self._clock, self.fleet.gateway
        said_s = 0.0
        for request in self._traffic.requests:
            while (next_s := clock.next_s()) is not None and next_s < request.arrival_s:
                clock.step()
            clock.now_s = request.arrival_s
            gateway.arrive(request)
            if clock.now_s - said_s > _SAY_EVERY_S:
                said_s = clock.now_s
                say(said_s)
        end_s = self._traffic.duration_s + self._scenario.settle_s
        while (next_s := clock.next_s()) is not None and next_s <= end_s:
            clock.step()
            if clock.now_s > self._traffic.duration_s and not self._is_busy():
                return

    def _is_busy(self) -> bool:
        return bool(self.fleet.count_live() or sum(self.fleet.gateway.count_waiting()))

    def _node_tick(self) -> None:
        self.nodes.tick(self._policy)
        self._clock.at(self._clock.now_s + self._scenario.nodes_tick_s, self._node_tick)

    def _look(self) -> None:
        """Take down what the policy will be told once it has reached it."""
        heard_s = self._clock.now_s + self._scenario.delays.signal_age_s
        self._clock.at(heard_s, self._decide, self._build_signals())
        self._clock.at(self._clock.now_s + self._policy.check_s, self._look)

    def _decide(self, signals: Signals) -> None:
        """Let the policy decide; gateways and Serve hear of it a moment later."""
        now_s, delays = self._clock.now_s, self._scenario.delays
        wish = self._policy.observe(
            replace(signals, now_s=EPOCH_S + now_s, requested=self._requested)
        )
        if self._recorder is not None:
            self._recorder.decide(self._clock.now_s, wish)
        self._clock.at(now_s + delays.closing_s, self.fleet.gateway.stop_routing, wish.closing)
        self._clock.at(now_s + delays.targets_s, self.fleet.resize, wish)
        if wish.replicas:
            app = self._scenario.model.name
            self._requested = Targets(EPOCH_S + now_s, {app: dict(wish.replicas)})

    def _sample(self, recorder: Recorder) -> None:
        """Tell the recorder how things are, and again after `bin_s`."""
        now_s = self._clock.now_s
        recorder.sample(
            Sample(
                at_s=now_s,
                waiting=sum(self.fleet.gateway.count_waiting()),
                running=self.fleet.running(),
                planned=self.fleet.planned(),
                streams=self.fleet.streams(),
                cloud_usd=self._sum_spent(now_s).cloud_usd,
                cloud_usd_per_hour=self.nodes.sum_usd_per_hour(),
            )
        )
        self._clock.at(now_s + recorder.bin_s, self._sample, recorder)

    def _sum_spent(self, until_s: float) -> Spent:
        """Return what nodes cost up to then, and what has been sent so far."""
        spent = self.nodes.sum_spent(until_s)
        return spent.with_egress(sum_egress_usd(self.fleet.served, self._scenario))

    def _build_signals(self) -> Signals:
        """Return what a policy may know, from what gateway and replicas would report."""
        gateway = self.fleet.gateway
        now_s = EPOCH_S + self._clock.now_s
        may_leave, must_stay = gateway.count_waiting()
        offers = self.nodes.list_offers()
        planned = self.fleet.planned()
        learned = self.nodes.learn()
        pools = [self._describe(pool) for pool in self.fleet.pools.values()]
        report = ModelSignal(
            model=self._scenario.model.name,
            app=self._scenario.model.name,
            waiting_public=0,
            waiting_internal=may_leave,
            waiting_restricted=must_stay,
            waiting_may_burst=may_leave,
            oldest_wait_s=gateway.oldest_wait_s(),
            pools=tuple(pools),
            arrived=gateway.arrivals,
            arrived_may_burst=gateway.arrivals_may_burst,
            ttft_s_max=self._scenario.slo.ttft_s,
            tpot_s_max=self._scenario.slo.tpot_s,
            attainment_min=self._scenario.model.objective.attainment,
            usd_per_late_request=self._scenario.model.objective.usd_per_late_request,
            late=self.tally.late,
            refused_may_burst=self.tally.refused_may_burst,
        )
        arrivals = gateway.arrivals - self._arrivals_seen
        self._arrivals_seen = gateway.arrivals
        return Signals(
            now_s=now_s,
            app=self._scenario.model.name,
            pools=tuple(
                PoolState(
                    spec=self.fleet.pools[pool.pool],
                    planned=planned[pool.pool],
                    running=pool.replicas_running,
                    streams=pool.streams_running,
                    kv_use_ratio=pool.kv_use_ratio,
                    usd_per_hour=_bounded(find_price(pool, offers)),
                )
                for pool in pools
            ),
            waiting=may_leave + must_stay,
            arrivals=arrivals,
            gateway=GatewaySignals("simulated", now_s, (report,)),
            offers=offers,
            blocked_sites=self.nodes.placed.blocked_sites,
            cold_starts_s=learned.cold_starts_s,
            losses_per_hour=learned.losses_per_hour,
        )

    def _describe(self, pool: PoolSpec) -> PoolSignal:
        ready = [
            one
            for one in self.fleet.replicas.values()
            if one.pool is pool and one.is_ready and not one.is_draining
        ]
        ratios = [one.engine.kv_use_ratio for one in ready if one.engine is not None]
        return PoolSignal(
            pool=pool.name,
            site=pool.site,
            owned=pool.owned,
            accelerator=pool.accelerator,
            market=pool.market,
            gpus_per_replica=pool.gpus_per_replica,
            slots_per_replica=pool.slots,
            min_replicas=pool.min_replicas,
            max_replicas=pool.max_replicas,
            replicas_running=len(ready),
            streams_running=sum(len(one.live) for one in ready),
            kv_use_ratio=sum(ratios) / len(ratios) if ratios else None,
            gpu_row=self._scenario.gpu_rows[pool.name],
            served=self.fleet.served[pool.name].as_served(),
        )


def _bounded(price: Decimal) -> Decimal:
    """Return a price that can be compared; a pool that no node type can hold is dearest."""
    return min(price, Decimal(1_000_000))
