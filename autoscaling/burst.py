"""The burst of one model: which rented replicas are worth their money now.

Puts together what one replica does (`capacity`), what is to come (`outlook`) and what it costs
(`break_even`) for the pools of one model. Known only where speeds are: until some requests were
answered, or with nothing to tell a pool's speed, `autoscaling.replicas` counts waiting requests.
Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from autoscaling.break_even import (
    Offering,
    Terms,
    Worth,
    choose_more,
    judge_kept,
    judge_more,
    leave_room,
)
from autoscaling.outlook import Outlook
from autoscaling.snapshot import BurstPolicy, ModelView, PoolView

# Half of what may be late is planned with: the other half is for what no forecast sees.
PLANNED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Capacity:
    """Replicas of one pool that count: those there or expected, and how many more could come."""

    pool: PoolView
    replicas: int
    more_max: int


@dataclass(frozen=True, slots=True)
class Burst:
    """What is known about the worth of rented replicas. Rates in requests a second."""

    outlook: Outlook
    terms: Terms
    rps: Mapping[str, float]
    rented: tuple[Capacity, ...]
    policy: BurstPolicy
    ttft_s_max: float

    @property
    def rented_rps(self) -> float:
        """What rented replicas, there or on their way, begin in time."""
        return sum(self.rps[one.pool.name] * one.replicas for one in self.rented)

    def choose_more(self) -> list[Worth]:
        """Return the replicas worth renting now, the most worthwhile first."""
        return choose_more(
            self.outlook, self._list_offerings, have_rps=self.rented_rps, terms=self.terms
        )

    def find_best(self) -> Worth | None:
        """Return what the most worthwhile further replica would be worth, None if none can be."""
        judged = [
            judge_more(self.outlook, one, have_rps=self.rented_rps, terms=self.terms)
            for one in self._list_offerings(())
        ]
        return max(judged, key=lambda worth: worth.usd_net, default=None)

    def count_needed(self, name: str) -> int:
        """Return how many of a pool's replicas are worth keeping beside those of cheaper pools.

        Judged from the last one on: each is worth what it begins beside all that come before it.
        Dearer ones don't count: they go first, once their lease allows.
        """
        pool = next(one for one in self.rented if one.pool.name == name)
        cheaper = [one for one in self.rented if _price(one) < _price(pool)]
        others_rps = sum(self.rps[one.pool.name] * one.replicas for one in cheaper)
        offering = self._describe(pool.pool)
        needed = pool.replicas
        while needed > 0:
            have_rps = others_rps + self.rps[name] * (needed - 1)
            if judge_kept(self.outlook, offering, have_rps=have_rps, terms=self.terms).usd_net > 0:
                break
            needed -= 1
        return needed

    def _list_offerings(self, chosen: Sequence[Worth]) -> list[Offering]:
        """Return one more of each pool that may still grow, in the order of tiers.

        A pool without a finite price has no node type that could hold it, and one too far away
        breaks the promise on the way.
        """
        taken = [worth.offering.pool for worth in chosen]
        offerings = [
            self._describe(one.pool)
            for one in self.rented
            if taken.count(one.pool.name) < one.more_max
            and one.pool.usd_per_hour.is_finite()
            and one.pool.round_trip_s < self.ttft_s_max
        ]
        return offerings[:1] if "mix" in self.policy.ablated else offerings

    def _describe(self, pool: PoolView) -> Offering:
        return Offering(
            pool=pool.name,
            market=pool.market,
            extra_rps=self.rps[pool.name],
            usd_per_hour=pool.usd_per_hour,
            cold_start_s=find_cold_start_s(pool, self.policy),
            losses_per_hour=pool.losses_per_hour,
            usd_per_request=pool.usd_per_request,
        )


def _price(one: Capacity) -> tuple[Decimal, str]:
    """What pools are ordered by when replicas are kept."""
    return (one.pool.usd_per_hour, one.pool.name)


def find_cold_start_s(pool: PoolView, policy: BurstPolicy) -> float:
    """Return how long a node of a pool takes to its first answer: learned, else the setting."""
    if pool.cold_start_s is None or "cold-start" in policy.ablated:
        return policy.cold_start_s
    return pool.cold_start_s


def look_ahead(
    model: ModelView, capacities: Sequence[Capacity], policy: BurstPolicy
) -> Burst | None:
    """Return the burst of one model, None while speeds or arrivals aren't known.

    `capacities` are all pools in order; owned ones count with all they can still grow to.
    """
    rps = _find_rps(model.pools)
    history = model.learned.history
    if rps is None or not history.all or "capacity" in policy.ablated:
        return None
    owned = [one for one in capacities if one.pool.is_owned]
    rented = tuple(one for one in capacities if not one.pool.is_owned)
    owned_rps = sum(rps[one.pool.name] * (one.replicas + one.more_max) for one in owned)
    return_s = min(
        (find_cold_start_s(one.pool, policy) for one in rented), default=policy.cold_start_s
    )
    outlook = Outlook(
        owned_rps=leave_room(owned_rps, ttft_s_max=model.ttft_s_max, variation=model.variation),
        all=history.all,
        may_burst=history.may_burst,
        return_s=return_s,
        late_ratio_max=PLANNED_SHARE * (1 - model.attainment_min),
        is_blind="forecast" in policy.ablated,
        queued=_count_queued(model, owned, policy),
    )
    terms = Terms(
        usd_per_late_request=model.usd_per_late_request,
        lease_s=policy.min_lease_s,
        is_any_worth="break-even" in policy.ablated,
    )
    return Burst(outlook, terms, rps, rented, policy, model.ttft_s_max)


def _count_queued(model: ModelView, owned: Sequence[Capacity], policy: BurstPolicy) -> int:
    """Return how many of those that may leave wait for no owned slot, free now or to come."""
    free = 0
    for one in owned:
        use = one.pool.kv_use_ratio
        is_full = use is not None and use >= policy.kv_use_ratio_up
        running = 0 if is_full else one.replicas * one.pool.slots - one.pool.streams
        free += max(0, running) + one.more_max * one.pool.slots
    must_stay = model.waiting - model.waiting_may_burst
    return max(0, model.waiting_may_burst - max(0, free - must_stay))


def _find_rps(pools: Sequence[PoolView]) -> dict[str, float] | None:
    """Return each pool's rate; one that isn't known is as fast a slot as the slowest known."""
    per_slot = [pool.rps / pool.slots for pool in pools if pool.rps is not None]
    if not per_slot:
        return None
    return {
        pool.name: pool.rps if pool.rps is not None else min(per_slot) * pool.slots
        for pool in pools
    }


def say_raise(burst: Burst, chosen: Sequence[Worth], *, waiting: int, now_s: float) -> str:
    """Return why these replicas of one pool are rented, in words."""
    outlook = burst.outlook
    total_rps = outlook.owned_rps + burst.rented_rps
    work = f"{waiting} queued = {waiting / total_rps:.0f} s of work" if total_rps else ""
    rise = outlook.over(burst.rented_rps)
    until = datetime.fromtimestamp(now_s + rise.expected_rest_s(), UTC)
    over_rps = sum(rise.now) / len(rise.now) if rise.now else 0.0
    parts = [
        work or f"{waiting} queued",
        f"{over_rps:.1f} req/s over capacity until ~{until:%H:%M} UTC"
        if over_rps
        else "rises keep returning",
        f"cold start {chosen[0].offering.cold_start_s:.0f} s",
        f"{_say_usd(chosen)} against {sum(one.spared for one in chosen):.0f} late requests",
    ]
    return ", ".join(parts)


def say_not_worth(worth: Worth) -> str:
    """Return why one more replica isn't rented, in words."""
    return (
        f"one more of {worth.offering.pool} would cost {_say_usd([worth])} "
        f"against {worth.spared:.1f} late requests (${worth.usd_spared:.2f})"
    )


def _say_usd(chosen: Sequence[Worth]) -> str:
    return f"${sum(one.usd_cost for one in chosen):.2f}"
