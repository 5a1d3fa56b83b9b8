"""A bound that no policy can beat: the least cloud money at the same attainment, knowing it all.

Method. Each request is work, measured in seconds of a whole replica: its prefill, and its tokens at
the largest batch that keeps the promised time per token, which is the cheapest way to make them.
Prompt blocks that occurred before cost nothing. Work may be cut up and moved freely, needs no cold
start, no whole nodes and no memory, and may be done until its first token is due plus all its
tokens at the promised pace. Owned replicas do as much as any schedule could: the earliest deadline
first, which is optimal for work that may be cut (F. Glover, "Maximum matching in a convex bipartite
graph", 1967). What is left at its deadline is bought at the cheapest price per work there is, by
the second. Finally the dearest 1 % of the requests is not bought at all. Every step is a
relaxation, so what is really possible costs at least this much.

A request that even an idle replica of the fastest pool answers too late is lost for everybody; the
others are the attainment within reach.
"""

import heapq
from dataclasses import dataclass
from decimal import Decimal

from autoscaling.peers.sizing import find_batch, find_request_s
from autoscaling.simulator.engine_model import BLOCK_TOKENS
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.traffic import TraceRequest, Traffic
from deployments.spec import PoolSpec

NAME = "oracle"
_MISS_RATIO = 0.01
_S_PER_HOUR = 3600.0
_EPSILON_S = 1e-9
_GPU = "GPU"


@dataclass(frozen=True, slots=True)
class _Way:
    """One pool as a way to do work: its price per replica and hour, 0 when owned."""

    pool: PoolSpec
    batch: int
    usd_per_hour: Decimal


def bound_cost(traffic: Traffic, scenario: Scenario) -> Outcome:
    """Return the bound as a row of the table; what isn't bounded is 0 or unknown there."""
    ways = [_build_way(pool, scenario) for pool in scenario.model.pools]
    owned = [way for way in ways if way.pool.owned]
    cloud = [way for way in ways if not way.pool.owned]
    fresh_tokens = _count_fresh_tokens(traffic)
    reachable = [
        index
        for index, request in enumerate(traffic.requests)
        if _is_reachable(request, fresh_tokens[index], scenario)
    ]
    capacity = sum(way.pool.max_replicas for way in owned)
    left = _find_left_over(traffic, scenario, owned, fresh_tokens, reachable, capacity)
    prices = sorted(
        min((_price(w, traffic.requests[i], fresh_tokens[i], scenario) for w in cloud), default=0.0)
        * share
        for i, share in left.items()
    )
    skipped = min(len(prices), int(_MISS_RATIO * len(traffic.requests)))
    usd = sum(prices[: len(prices) - skipped])
    count = max(1, len(traffic.requests))
    return Outcome(
        name=NAME,
        slo_attainment=len(reachable) / count,
        ttft_p50_s=None,
        ttft_p99_s=None,
        tpot_p50_s=None,
        cloud_usd=usd,
        owned_usd=0.0,
        cloud_gpu_hours=0.0,
        completed=len(reachable),
        rejected=0,
        residency_violations=0,
        launches=0,
        reversals=0,
        wall_s=0.0,
        note="a bound, not a run: see docs/simulate.md",
    )


def _build_way(pool: PoolSpec, scenario: Scenario) -> _Way:
    batch = find_batch(
        scenario.performance[pool.name], slots=pool.slots, tpot_s_max=scenario.slo.tpot_s
    )
    prices = [
        kind.usd_per_hour * pool.gpus_per_replica / kind.resources[_GPU]
        for kind in scenario.settings.node_types.values()
        if kind.site == pool.site and kind.market == pool.market and kind.resources.get(_GPU)
    ]
    return _Way(pool, batch, min(prices, default=Decimal(0)))


def _count_fresh_tokens(traffic: Traffic) -> list[int]:
    """Return each request's prompt tokens less those of blocks that any earlier one had."""
    seen: set[int] = set()
    found: list[int] = []
    for request in traffic.requests:
        known = sum(block in seen for block in request.blocks)
        seen.update(request.blocks)
        found.append(max(1, request.prompt_tokens - known * BLOCK_TOKENS))
    return found


def _is_reachable(request: TraceRequest, tokens: int, scenario: Scenario) -> bool:
    """Whether an idle replica of some pool that may answer keeps both promises."""
    for pool in scenario.model.pools:
        if request.is_restricted and not pool.owned:
            continue
        performance = scenario.performance[pool.name]
        way_s = 0.0 if pool.owned else scenario.wan_s
        ttft_s = performance.tpot_base_s + performance.prefill_per_token_s * tokens + way_s
        if ttft_s <= scenario.slo.ttft_s and performance.tpot_s(1) <= scenario.slo.tpot_s:
            return True
    return False


def _work_s(way: _Way, request: TraceRequest, tokens: int, scenario: Scenario) -> float:
    return find_request_s(
        scenario.performance[way.pool.name],
        batch=way.batch,
        prompt_tokens=tokens,
        output_tokens=request.output_tokens,
    )


def _price(way: _Way, request: TraceRequest, tokens: int, scenario: Scenario) -> float:
    """Return the money for the whole request on this way."""
    return _work_s(way, request, tokens, scenario) * float(way.usd_per_hour) / _S_PER_HOUR


def _find_left_over(
    traffic: Traffic,
    scenario: Scenario,
    owned: list[_Way],
    tokens: list[int],
    reachable: list[int],
    capacity: int,
) -> dict[int, float]:
    """Return the share of each request that owned replicas can't do in time, where there is one."""
    slo = scenario.slo
    queue: list[tuple[float, int]] = []
    left_s: dict[int, float] = {}
    whole_s: dict[int, float] = {}
    late: dict[int, float] = {}
    now_s = 0.0

    def work_until(until_s: float) -> float:
        at_s = now_s
        while queue and at_s < until_s:
            deadline_s, index = queue[0]
            if deadline_s <= at_s + _EPSILON_S or left_s[index] <= _EPSILON_S:
                heapq.heappop(queue)
                share = left_s.pop(index) / whole_s[index]
                if share > _EPSILON_S:
                    late[index] = share
                continue
            if capacity == 0:
                at_s = min(until_s, deadline_s)
                continue
            spent_s = min(until_s, deadline_s, at_s + left_s[index] / capacity) - at_s
            left_s[index] -= spent_s * capacity
            at_s += spent_s
        return until_s

    for index in reachable:
        request = traffic.requests[index]
        now_s = work_until(request.arrival_s)
        works = [_work_s(way, request, tokens[index], scenario) for way in owned]
        whole_s[index] = left_s[index] = min(works, default=1.0)
        patience_s = slo.ttft_s + slo.tpot_s * request.output_tokens
        heapq.heappush(queue, (request.arrival_s + patience_s, index))
    work_until(float("inf"))
    return late
