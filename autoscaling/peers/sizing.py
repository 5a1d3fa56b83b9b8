"""What a load test would tell an operator before choosing a peer's settings.

A replica's best rate: the largest batch that keeps the promised time per token, each request
costing its prefill and its share of the batch's steps. The mean lengths are the traffic's own, so
peers are sized as well as they can be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from autoscaling.simulator.policy import PoolState
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.traffic import Traffic
from deployments.continuous_batching import Performance

_PEAK_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Sizing:
    """Requests per second of one replica of each pool, and of the traffic's highest minute."""

    replica_rps: Mapping[str, float]
    peak_rps: float

    @property
    def reference_rps(self) -> float:
        """The rate of the slowest pool's replica: what a target per replica has to respect."""
        return min(self.replica_rps.values())


def find_batch(performance: Performance, *, slots: int, tpot_s_max: float) -> int:
    """Return the largest batch whose time per token keeps the promise, at least 1."""
    fitting = (n for n in range(slots, 0, -1) if performance.tpot_s(n) <= tpot_s_max)
    return next(fitting, 1)


def find_request_s(
    performance: Performance, *, batch: int, prompt_tokens: float, output_tokens: float
) -> float:
    """Return the seconds of a whole replica that one request takes in a batch of this size."""
    prefill_s = performance.prefill_per_token_s * prompt_tokens
    return prefill_s + output_tokens * performance.tpot_s(batch) / batch


def build_sizing(traffic: Traffic, scenario: Scenario) -> Sizing:
    """Return the sizing for this traffic."""
    requests = traffic.requests
    count = max(1, len(requests))
    prompt = sum(request.prompt_tokens for request in requests) / count
    output = sum(request.output_tokens for request in requests) / count
    rates: dict[str, float] = {}
    for pool in scenario.model.pools:
        performance = scenario.performance[pool.name]
        batch = find_batch(performance, slots=pool.slots, tpot_s_max=scenario.slo.tpot_s)
        rates[pool.name] = 1 / find_request_s(
            performance, batch=batch, prompt_tokens=prompt, output_tokens=output
        )
    return Sizing(rates, _find_peak_rps(traffic))


def fill_in_order(pools: Sequence[PoolState], replicas: int) -> dict[str, int]:
    """Return so many replicas over the pools, the cheapest first, each up to its maximum."""
    wished: dict[str, int] = {}
    left = replicas
    for pool in sorted(pools, key=lambda one: (one.usd_per_hour, one.spec.name)):
        wished[pool.spec.name] = max(pool.spec.min_replicas, min(pool.spec.max_replicas, left))
        left = max(0, left - wished[pool.spec.name])
    return wished


def fill_with_rate(
    pools: Sequence[PoolState], rps: float, sizing: Sizing, *, markets: frozenset[str]
) -> dict[str, int]:
    """Return what serves this rate with the cheapest pools of these markets, none of the others."""
    wished = {pool.spec.name: 0 for pool in pools}
    left_rps = Decimal(str(rps))
    for pool in sorted(pools, key=lambda one: (one.usd_per_hour, one.spec.name)):
        if pool.spec.market not in markets or left_rps <= 0:
            continue
        rate = Decimal(str(sizing.replica_rps[pool.spec.name]))
        needed = math.ceil(left_rps / rate)
        wished[pool.spec.name] = min(pool.spec.max_replicas, needed)
        left_rps -= rate * wished[pool.spec.name]
    return wished


def _find_peak_rps(traffic: Traffic) -> float:
    windows: dict[int, int] = {}
    for request in traffic.requests:
        window = int(request.arrival_s // _PEAK_WINDOW_S)
        windows[window] = windows.get(window, 0) + 1
    return max(windows.values(), default=0) / _PEAK_WINDOW_S
