"""What is counted while a simulation runs, and the figures made of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from autoscaling.simulator.scenario import Slo
from deployments.signals import Served

_PERCENT = 100


@dataclass(slots=True)
class Tally:
    """Counts of one run. Every request ends in exactly one of the four ways.

    `violations` are restricted requests on sites that aren't owned: always to be 0.
    `late` and `refused_may_burst` are counted as gateways count them. `burn_usd_per_hour_max` is
    the most that was committed at once.
    """

    slo: Slo
    arrived: int = 0
    completed: int = 0
    rejected: int = 0
    failed: int = 0
    unfinished: int = 0
    within_slo: int = 0
    late: int = 0
    refused_may_burst: int = 0
    violations: int = 0
    launches: int = 0
    reversals: int = 0
    lost_nodes: int = 0
    burn_usd_per_hour_max: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def begin(self, ttft_s: float) -> None:
        """Note a first token: whether it kept its promise."""
        self.late += ttft_s > self.slo.ttft_s

    def refuse(self, *, may_burst: bool) -> None:
        """Count a request that nobody answers."""
        self.rejected += 1
        self.late += 1
        self.refused_may_burst += may_burst

    def complete(self, ttft_s: float, tpot_s: float) -> bool:
        """Count an answer that came to its end; return whether it kept both promises."""
        self.completed += 1
        self.ttft_s.append(ttft_s)
        self.tpot_s.append(tpot_s)
        is_in_time = ttft_s <= self.slo.ttft_s and tpot_s <= self.slo.tpot_s
        self.within_slo += is_in_time
        return is_in_time


@dataclass(slots=True)
class PoolTally:
    """What one pool has answered, counted as gateways count it: `deployments.signals.Served`."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    hold_s: float = 0.0
    first_tokens: int = 0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    cached_tokens: int = 0
    read_tokens_squared: int = 0
    output_tokens_squared: int = 0

    def as_served(self) -> Served:
        """The counts as a gateway would report them now."""
        return Served(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            hold_s=self.hold_s,
            first_tokens=self.first_tokens,
            ttft_s=self.ttft_s,
            decode_tokens=self.decode_tokens,
            decode_s=self.decode_s,
            cached_tokens=self.cached_tokens,
            read_tokens_squared=self.read_tokens_squared,
            output_tokens_squared=self.output_tokens_squared,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one policy on one traffic with one seed. Money in $, times in s.

    `cloud_usd` is what a clairvoyant bound or the simulated nodes cost over the traffic's time,
    with the `egress_usd` of what they sent.
    """

    name: str
    slo_attainment: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    cloud_usd: float
    owned_usd: float
    cloud_gpu_hours: float
    completed: int
    rejected: int
    residency_violations: int
    launches: int
    reversals: int
    wall_s: float
    failed: int = 0
    unfinished: int = 0
    lost_nodes: int = 0
    egress_usd: float = 0.0
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The figures under the names that other programs read."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run cost. `cloud_usd` includes `egress_usd`."""

    cloud_usd: float
    owned_usd: float
    cloud_gpu_hours: float
    egress_usd: float = 0.0

    def with_egress(self, usd: float) -> "Spent":
        """The same and what was sent."""
        return replace(self, cloud_usd=self.cloud_usd + usd, egress_usd=self.egress_usd + usd)


def build_outcome(
    name: str, tally: Tally, spent: Spent, *, wall_s: float, note: str = ""
) -> Outcome:
    """Return the figures of a run that has ended."""
    return Outcome(
        name=name,
        slo_attainment=tally.within_slo / tally.arrived if tally.arrived else 1.0,
        ttft_p50_s=find_percentile(tally.ttft_s, 50),
        ttft_p99_s=find_percentile(tally.ttft_s, 99),
        tpot_p50_s=find_percentile(tally.tpot_s, 50),
        cloud_usd=spent.cloud_usd,
        owned_usd=spent.owned_usd,
        cloud_gpu_hours=spent.cloud_gpu_hours,
        completed=tally.completed,
        rejected=tally.rejected,
        residency_violations=tally.violations,
        launches=tally.launches,
        reversals=tally.reversals,
        wall_s=wall_s,
        failed=tally.failed,
        unfinished=tally.unfinished,
        lost_nodes=tally.lost_nodes,
        egress_usd=spent.egress_usd,
        note=note,
    )


def find_percentile(values: list[float], percent: int) -> float | None:
    """Return the nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // _PERCENT)
    return ordered[max(0, rank - 1)]
