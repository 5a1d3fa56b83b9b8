"""A policy that has read the whole trace before the run: what knowing the arrivals is worth.

Not a bound: the same simulator, engines, queue and routing, with a plan instead of a forecast. For
each bin of 10 s the plan takes what arrives in it, and the capacity that this rate needs with the
brain's room for chance (`autoscaling.break_even.find_capacity`). A replica's capacity is the
brain's too (`autoscaling.capacity.find_rps`), at the traffic's own mean lengths, as is how much a
request's work varies. Owned replicas are all there all the time; what must stay takes their room
first. What is left is for rented ones, in whole replicas, the cheapest pool first; a pool that is
sold out when one must be asked for (which the seed tells) gives way to the next. `foresight_cover`
finds the cheapest stays for them: asked for one mean cold start before they are needed, kept where
that is no dearer than coming back.

Half of the requests that the objective lets be late are left out where they cost most, as the brain
plans with half: the other half is for chance. Not known to the plan: which nodes are lost, how long
each boot takes, and what each request needs of its replica.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from autoscaling.break_even import find_capacity
from autoscaling.burst import PLANNED_SHARE
from autoscaling.capacity import Lengths, find_rps, find_variation
from autoscaling.guard import Limits
from autoscaling.history import BIN_S
from autoscaling.peers.foresight_cover import Level, Rental, Spell, Stay, cover_levels
from autoscaling.peers.renting import find_usd_per_hour, list_holders, list_spells
from autoscaling.placement import Situation
from autoscaling.simulator.clock import EPOCH_S
from autoscaling.simulator.policy import Placed, Signals, Wish, place_local_first
from autoscaling.simulator.scenario import BootTimes, Scenario
from autoscaling.simulator.traffic import Traffic
from autoscaling.squares import SquareSums
from deployments.gpu_performance import load_rows
from deployments.spec import PoolSpec

_S_PER_HOUR = 3600.0


class Foresight:
    """Wishes what the plan says for the time: all owned replicas, and the stays that are on."""

    name = "foresight"
    check_s = 1.0
    binds_market = True

    def __init__(self, stays: Sequence[Stay]) -> None:
        self.stays = tuple(stays)

    def observe(self, signals: Signals) -> Wish:
        """Return the plan's numbers; what falls between two looks is asked for at the first."""
        at_s = signals.now_s - EPOCH_S
        wished: dict[str, int] = {}
        for pool in signals.pools:
            name, most = pool.spec.name, pool.spec.max_replicas
            wished[name] = most if pool.spec.owned else min(most, self._count(name, at_s))
        return Wish(wished)

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement: limits hold for everybody."""
        return place_local_first(situation, limits)

    def _count(self, pool: str, at_s: float) -> int:
        return sum(
            stay.rental.pool == pool and stay.asked_s < at_s + self.check_s and at_s < stay.kept_s
            for stay in self.stays
        )


@dataclass(frozen=True, slots=True)
class _Need:
    """Rented capacity that is needed in each bin, in requests a second; `edges_s` are theirs."""

    rps: tuple[float, ...]
    edges_s: tuple[float, ...]

    def list_spells(self, below_rps: float, rps: float) -> tuple[Spell, ...]:
        """Return when a replica of this rate is needed beside rented ones that do `below_rps`."""
        spells: list[Spell] = []
        for (begin_s, end_s), needed_rps in zip(pairwise(self.edges_s), self.rps, strict=True):
            requests = min(rps, needed_rps - below_rps) * (end_s - begin_s)
            if requests <= 0:
                continue
            if spells and spells[-1].end_s == begin_s:
                before = spells.pop()
                spells.append(Spell(before.begin_s, end_s, before.requests + requests))
            else:
                spells.append(Spell(begin_s, end_s, requests))
        return tuple(spells)


def build_foresight(traffic: Traffic, scenario: Scenario, *, seed: int) -> Foresight:
    """Return the policy with its plan for this traffic, in the market that this seed makes."""
    rps = _find_replica_rps(traffic, scenario)
    rentals = {
        pool.name: _rent(pool, scenario, traffic, seed=seed)
        for pool in scenario.model.pools
        if not pool.owned
        and list_holders(pool, scenario)
        and scenario.find_round_trip_s(pool) < scenario.slo.ttft_s
    }
    owned_rps = sum(rps[p.name] * p.max_replicas for p in scenario.model.pools if p.owned)
    lead_s = min((one.lead_s for one in rentals.values()), default=math.inf)
    need = _find_need(traffic, scenario, owned_rps=owned_rps, lead_s=lead_s)
    may_be_late = len(traffic.requests) * (1 - scenario.model.objective.attainment)
    stays = cover_levels(
        _list_levels(need, scenario, rentals, rps),
        ends_s=traffic.duration_s,
        left_out_max=PLANNED_SHARE * may_be_late,
    )
    return Foresight(stays)


def find_lead_s(scenario: Scenario) -> float:
    """Return the mean time from a decision to a rented replica's first request.

    A mean cold start, what passes until Serve acts, and half a tick until a node is asked for.
    Stages are lognormal about their medians: their mean is higher by exp(spread^2 / 2).
    """
    boots = scenario.recorded_boots or (scenario.boot,)
    cold_start_s = sum(map(_find_mean_boot_s, boots)) / len(boots)
    return scenario.delays.targets_s + scenario.nodes_tick_s / 2 + cold_start_s


def _find_mean_boot_s(boot: BootTimes) -> float:
    joined_s = boot.accepted_s + boot.running_s + boot.reachable_s + boot.joined_s
    return (joined_s + boot.weights_s + boot.engine_s) * math.exp(boot.spread**2 / 2)


def _find_replica_rps(traffic: Traffic, scenario: Scenario) -> dict[str, float]:
    """Return each pool's requests a second and replica, as the brain finds them."""
    lengths = _find_lengths(traffic)
    rows = load_rows()
    return {
        pool.name: find_rps(
            rows[scenario.gpu_rows[pool.name]].to_decode_performance(),
            lengths,
            slots=pool.slots,
            tpot_s_max=scenario.slo.tpot_s,
        )
        for pool in scenario.model.pools
    }


def _find_variation(traffic: Traffic, scenario: Scenario) -> float:
    """Return how much a request's work varies, on the pool on which the brain looks at it."""
    pool = min(scenario.model.pools, key=lambda pool: (not pool.owned, pool.name))
    return find_variation(
        load_rows()[scenario.gpu_rows[pool.name]].to_decode_performance(),
        _find_lengths(traffic),
        slots=pool.slots,
        tpot_s_max=scenario.slo.tpot_s,
    )


def _find_lengths(traffic: Traffic) -> Lengths:
    """Return the mean request; whole prompts, as what a cache will spare isn't in a trace."""
    prompts = [request.prompt_tokens for request in traffic.requests]
    outputs = [request.output_tokens for request in traffic.requests]
    count = max(1, len(traffic.requests))
    sums = SquareSums(
        count,
        sum(prompts),
        sum(tokens**2 for tokens in prompts),
        sum(outputs),
        sum(tokens**2 for tokens in outputs),
    )
    return Lengths(
        sum(prompts) / count,
        sum(outputs) / count,
        read_variation=sums.read_variation,
        output_variation=sums.output_variation,
    )


def _rent(pool: PoolSpec, scenario: Scenario, traffic: Traffic, *, seed: int) -> Rental:
    """Return what renting means; what is nearly sold out, until a node is asked for, counts too."""
    holders = list_holders(pool, scenario)
    asking_s = scenario.delays.targets_s + scenario.nodes_tick_s
    spells = list_spells(pool, holders, scenario, seed=seed, until_s=traffic.duration_s)
    return Rental(
        pool=pool.name,
        usd_per_s=find_usd_per_hour(pool, holders) / _S_PER_HOUR,
        lead_s=find_lead_s(scenario),
        lease_s=scenario.settings.limits.lease_s_min,
        idle_s=max(scenario.idle_s[kind.name] for kind in holders),
        sold_out=tuple(tuple((b - asking_s, e + asking_s) for b, e in one) for one in spells),
    )


def _find_need(traffic: Traffic, scenario: Scenario, *, owned_rps: float, lead_s: float) -> _Need:
    """Return what each bin needs beyond owned capacity; none before a replica could serve."""
    bins = max(1, int(traffic.duration_s / BIN_S))
    edges_s = (*(number * BIN_S for number in range(bins)), traffic.duration_s)
    every, leaving = [0] * bins, [0] * bins
    for request in traffic.requests:
        number = min(bins - 1, int(request.arrival_s / BIN_S))
        every[number] += 1
        leaving[number] += not request.is_restricted
    add_room = partial(
        find_capacity,
        ttft_s_max=scenario.slo.ttft_s,
        variation=_find_variation(traffic, scenario),
    )
    found: list[float] = []
    for number, (begin_s, end_s) in enumerate(pairwise(edges_s)):
        all_rps = add_room(every[number] / (end_s - begin_s))
        # What must stay makes no need: what may leave is all that rented replicas can be given.
        most_rps = add_room(leaving[number] / (end_s - begin_s))
        needed_rps = max(0.0, min(most_rps, all_rps - owned_rps))
        found.append(needed_rps if end_s > lead_s else 0.0)
    return _Need(tuple(found), edges_s)


def _list_levels(
    need: _Need, scenario: Scenario, rentals: dict[str, Rental], rps: dict[str, float]
) -> list[Level]:
    """Return a level for each rented replica that is ever needed, of the cheapest pools first."""
    pools = {pool.name: pool for pool in scenario.model.pools}
    order = sorted(rentals.values(), key=lambda one: (one.usd_per_s, one.pool))
    levels: list[Level] = []
    below_rps, most_rps = 0.0, max(need.rps, default=0.0)
    for number, rental in enumerate(order):
        for _ in range(pools[rental.pool].max_replicas):
            if below_rps >= most_rps:
                return levels
            spells = need.list_spells(below_rps, rps[rental.pool])
            levels.append(Level(spells, tuple(order[number:])))
            below_rps += rps[rental.pool]
    return levels
