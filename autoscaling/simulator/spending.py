"""What simulated nodes cost, and what the limits on money leave: production's sums."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from autoscaling.guard import Limits
from autoscaling.simulator.clock import EPOCH_S
from autoscaling.simulator.machines import Machine
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import PoolTally, Spent
from autoscaling.wan import price_answer_usd
from cluster.budget import Commitment, MoneyLimits, SpendNow, budget_status
from cluster.model import SiteName
from cluster.spend import Charge, Window, cost_of, day_window, month_window

_GPU = "GPU"
_S_PER_HOUR = 3600.0


def sum_spent(machines: Sequence[Machine], scenario: Scenario, until_s: float) -> Spent:
    """Return what all nodes cost from the start to `until_s`; what they sent isn't in it."""
    window = Window(EPOCH_S, EPOCH_S + until_s)
    cloud = [machine for machine in machines if not machine.is_owned]
    usd = cost_of([_charge(machine) for machine in cloud], window, now_s=EPOCH_S + until_s)
    gpu_s = sum(_gpu_s(machine, until_s) for machine in cloud)
    owned_gpu_s = sum(_gpu_s(machine, until_s) for machine in machines if machine.is_owned)
    rate = float(scenario.owned_usd_per_gpu_hour)
    return Spent(float(usd or 0), owned_gpu_s / _S_PER_HOUR * rate, gpu_s / _S_PER_HOUR)


def sum_egress_usd(served: Mapping[str, PoolTally], scenario: Scenario) -> float:
    """Return what it costs that the pools send their answers home, so far."""
    sites = scenario.settings.sites
    return sum(
        price_answer_usd(
            served[pool.name].output_tokens,
            usd_per_gb=sites[SiteName(pool.site)].egress_usd_per_gb,
        )
        for pool in scenario.model.pools
        if SiteName(pool.site) in sites
    )


def sum_usd_per_hour(present: Iterable[Machine]) -> float:
    """Return what the rented nodes there are cost in an hour."""
    rented = (machine.kind.usd_per_hour for machine in present if not machine.is_owned)
    return float(sum(rented, Decimal(0)))


def build_limits(machines: Sequence[Machine], scenario: Scenario, now_s: float) -> Limits:
    """Return the guard's limits at wall time `now_s`, with what has been spent so far."""
    given = scenario.settings.limits
    rented = [machine for machine in machines if not machine.is_owned]
    charges = [_charge(machine) for machine in rented]
    spend = SpendNow(
        now_s=now_s,
        commitments=[
            Commitment(machine.kind.usd_per_hour, since_s=EPOCH_S + machine.requested_s)
            for machine in rented
            if machine.ended_s is None
        ],
        day_usd=cost_of(charges, day_window(now_s), now_s=now_s),
        month_usd=cost_of(charges, month_window(now_s), now_s=now_s),
    )
    money = MoneyLimits(
        usd_per_hour=given.usd_per_hour,
        usd_per_day=given.usd_per_day,
        usd_per_month=given.usd_per_month,
        soft_ratio=Decimal(str(given.soft_ratio)),
        lease_s_min=given.lease_s_min,
    )
    sites = scenario.settings.sites
    return Limits(
        launches_per_tick=given.launches_per_tick,
        site_nodes_max={name: site.max_nodes for name, site in sites.items()},
        cluster_nodes_max=scenario.cluster_nodes_max,
        usd_per_hour_max=given.usd_per_hour,
        budget=budget_status(spend, money),
    )


def _charge(machine: Machine) -> Charge:
    ended_s = None if machine.ended_s is None else EPOCH_S + machine.ended_s
    return Charge(
        machine.kind.site, machine.kind.usd_per_hour, EPOCH_S + machine.requested_s, ended_s
    )


def _gpu_s(machine: Machine, until_s: float) -> float:
    ended_s = until_s if machine.ended_s is None else min(until_s, machine.ended_s)
    return max(0.0, ended_s - machine.requested_s) * machine.kind.resources.get(_GPU, 0)
