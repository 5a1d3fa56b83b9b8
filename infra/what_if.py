"""A buyer's question: would one more owned node have paid for itself on this traffic?

Pure. Two runs of the same traffic and seeds, with and without the node, differ in what the cloud
cost and in how many requests missed the promise. Both are taken to a week as if every week were
like the traffic, which is said beside the answer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from cluster.config import NodeTypeSettings
from cluster.errors import ConfigError
from cluster.model import LABEL_ACCELERATOR
from deployments.spec import PoolSpec

S_PER_WEEK = 7 * 86_400.0
_S_PER_DAY = 86_400.0
_WEEKS_PER_MONTH = 365.25 / 12 / 7
_WEEKS_PER_YEAR = 365.25 / 7
_YEARS_KEPT = 5
_GPU = "GPU"


@dataclass(frozen=True, slots=True)
class Purchase:
    """One more node: its type, its price, and what it costs to run (power, hosting) a month."""

    node_type: str
    usd: float
    usd_per_month: float = 0.0


@dataclass(frozen=True, slots=True)
class Payback:
    """What a purchase would have changed, per week. Lows and highs are over the seeds.

    `weeks` until the saved cloud money has paid for it, None = never. `weeks_with_late` counts
    each request kept in time at `usd_per_late_request` as well.
    """

    node_type: str
    usd: float
    running_usd_per_week: float
    cloud_usd_per_week: float
    cloud_usd_per_week_with: float
    saved_usd_per_week: float
    saved_usd_per_week_low: float
    saved_usd_per_week_high: float
    late_per_week: float
    late_per_week_with: float
    usd_per_late_request: float
    weeks: float | None
    weeks_with_late: float | None
    traffic_s: float
    seeds: int

    @property
    def late_usd_per_week(self) -> float:
        """What the requests kept in time are worth a week."""
        return (self.late_per_week - self.late_per_week_with) * self.usd_per_late_request

    def as_json(self) -> dict[str, Any]:
        """The figures under the names that other programs read, with the words for people."""
        return {
            **asdict(self),
            "late_usd_per_week": self.late_usd_per_week,
            "answer": self.answer,
            "arithmetic": list(self.arithmetic),
            "caution": self.caution,
        }

    @property
    def answer(self) -> str:
        """The answer in one sentence or two."""
        node = f"One more {self.node_type} node at {_usd(self.usd)}"
        spared = self.late_per_week - self.late_per_week_with
        also = ""
        if self.late_usd_per_week > 0:
            also = (
                f" Counting {spared:,.0f} more requests in time a week at "
                f"{_usd(self.usd_per_late_request)} each, "
                + (
                    f"{_say_weeks(self.weeks_with_late)}."
                    if self.weeks_with_late is not None
                    else "it would not either."
                )
            )
        if self.weeks is not None:
            return f"{node} would have paid back in {_say_weeks(self.weeks)}.{also}"
        why = f"it saves {_usd(self.saved_usd_per_week)} of cloud a week"
        if self.saved_usd_per_week <= 0:
            why = "it saves no cloud money on this traffic"
        if self.running_usd_per_week > 0:
            why += f" and costs {_usd(self.running_usd_per_week)} a week to run"
        return f"{node} would never have paid back: {why}.{also}"

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """How the answer was worked out, line by line."""
        net = self.saved_usd_per_week - self.running_usd_per_week
        lines = [
            f"cloud without it {_usd(self.cloud_usd_per_week)} a week, with it "
            f"{_usd(self.cloud_usd_per_week_with)}: saves {_usd(self.saved_usd_per_week)} a week"
            + self._say_spread(),
            f"running it: {_usd(self.running_usd_per_week)} a week; left: {_usd(net)} a week",
        ]
        if self.weeks is not None:
            lines.append(f"{_usd(self.usd)} / {_usd(net)} a week = {self.weeks:,.1f} weeks")
        lines.append(
            f"requests that missed the promise: {self.late_per_week:,.0f} a week without it, "
            f"{self.late_per_week_with:,.0f} with it, at {_usd(self.usd_per_late_request)} each "
            f"{_usd(self.late_usd_per_week)} a week; not in the first figure"
        )
        return tuple(lines)

    @property
    def caution(self) -> str:
        """How far the figures reach."""
        times = S_PER_WEEK / self.traffic_s
        if times <= 1:
            return f"Measured over {self.traffic_s / _S_PER_DAY:.1f} days of traffic."
        lacks = "weekends" if self.traffic_s >= _S_PER_DAY else "nights and weekends"
        return (
            f"Extrapolated: {say_duration(self.traffic_s)} of traffic stand for a week, taken "
            f"{times:,.0f} times. Where {lacks} are quieter than this, it saves less and takes "
            "longer; a trace of a week answers better."
        )

    def _say_spread(self) -> str:
        if self.seeds == 1:
            return " (one seed: --seeds 5 shows how far chance moves it)"
        low, high = _usd(self.saved_usd_per_week_low), _usd(self.saved_usd_per_week_high)
        return f" ({low} to {high} over {self.seeds} seeds)"


def say_duration(seconds: float) -> str:
    """Return a time in the largest unit that it holds twice."""
    for name, length_s in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.3g} {name}"
    return f"{seconds:.0f} seconds"


def add_node(scenario: Scenario, purchase: Purchase) -> Scenario:
    """Return the scenario with one more node of an owned type, and its pools that much larger.

    Raises:
        ConfigError: the type isn't there, isn't owned, or no pool of the model would use it.
    """
    kind = _find_kind(scenario, purchase.node_type)
    pools = tuple(_grow(pool, kind) for pool in scenario.model.pools)
    if pools == scenario.model.pools:
        raise ConfigError(
            f"--buy {purchase.node_type} must be a node that a pool of {scenario.model.name} runs "
            "on: its site, market and accelerator fit none, or it has too few GPUs for a replica."
        )
    settings = scenario.settings
    bigger = replace(kind, min_nodes=kind.min_nodes + 1, max_nodes=kind.max_nodes + 1)
    site = settings.sites[kind.site]
    sites = {
        **settings.sites,
        kind.site: site.model_copy(update={"max_nodes": site.max_nodes + 1}),
    }
    node_types = {
        key: bigger if known.name == kind.name else known
        for key, known in settings.node_types.items()
    }
    return replace(
        scenario,
        model=scenario.model.model_copy(update={"pools": pools}),
        settings=replace(settings, sites=sites, node_types=node_types),
    )


def find_payback(
    purchase: Purchase,
    *,
    without: Sequence[Outcome],
    having: Sequence[Outcome],
    requests: Sequence[int],
    traffic_s: float,
    usd_per_late_request: float,
) -> Payback:
    """Return what the purchase would have changed. Outcomes and request counts are by seed."""
    times = S_PER_WEEK / traffic_s
    saved = [(a.cloud_usd - b.cloud_usd) * times for a, b in zip(without, having, strict=True)]
    late, late_with = (
        fmean(
            (1 - outcome.slo_attainment) * count * times
            for outcome, count in zip(found, requests, strict=True)
        )
        for found in (without, having)
    )
    running = purchase.usd_per_month / _WEEKS_PER_MONTH
    net = fmean(saved) - running
    return Payback(
        node_type=purchase.node_type,
        usd=purchase.usd,
        running_usd_per_week=running,
        cloud_usd_per_week=fmean(one.cloud_usd for one in without) * times,
        cloud_usd_per_week_with=fmean(one.cloud_usd for one in having) * times,
        saved_usd_per_week=fmean(saved),
        saved_usd_per_week_low=min(saved),
        saved_usd_per_week_high=max(saved),
        late_per_week=late,
        late_per_week_with=late_with,
        usd_per_late_request=usd_per_late_request,
        weeks=_find_weeks(purchase.usd, net),
        weeks_with_late=_find_weeks(purchase.usd, net + (late - late_with) * usd_per_late_request),
        traffic_s=traffic_s,
        seeds=len(saved),
    )


def _find_weeks(usd: float, net_usd_per_week: float) -> float | None:
    return usd / net_usd_per_week if net_usd_per_week > 0 else None


def _find_kind(scenario: Scenario, name: str) -> NodeTypeSettings:
    known = {str(kind.name): kind for kind in scenario.settings.node_types.values()}
    owned = [kind.name for kind in known.values() if kind.market == "owned" and _count_gpus(kind)]
    if name not in owned:
        choice = f"be one of {', '.join(owned)}" if owned else "be left out: no owned node has GPUs"
        raise ConfigError(f"--buy must {choice}; got {name!r}.")
    return known[name]


def _grow(pool: PoolSpec, kind: NodeTypeSettings) -> PoolSpec:
    """Return the pool with the replicas that the node holds, kept running where all of them are."""
    here = (kind.site, kind.market, kind.labels.get(LABEL_ACCELERATOR))
    more = _count_gpus(kind) // max(1, pool.gpus_per_replica)
    if (pool.site, pool.market, pool.accelerator) != here or more == 0:
        return pool
    are_kept = pool.min_replicas == pool.max_replicas
    return pool.model_copy(
        update={
            "max_replicas": pool.max_replicas + more,
            "min_replicas": pool.min_replicas + (more if are_kept else 0),
        }
    )


def _count_gpus(kind: NodeTypeSettings) -> int:
    return kind.resources.get(_GPU, 0)


def _usd(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 2  # noqa: PLR2004 - cents of large sums say nothing
    sign = "-" if round(value, digits) < 0 else ""
    return f"{sign}${abs(value):,.{digits}f}"


def _say_weeks(weeks: float | None) -> str:
    if weeks is None:
        return "never"
    years = weeks / _WEEKS_PER_YEAR
    text = f"{weeks:,.1f} weeks" if weeks < 10 else f"{weeks:,.0f} weeks"  # noqa: PLR2004
    if years > _YEARS_KEPT:
        return f"{text} ({years:,.0f} years: longer than hardware is usually kept)"
    return text
