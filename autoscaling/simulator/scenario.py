"""What is simulated: pools and nodes, how long things take, what may go wrong, what is promised.

Every default that is an assumption says so; docs/simulate.md lists them with their sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from autoscaling.simulator.engine_model import CHUNK_TOKENS
from cluster.config import ClusterSettings
from cluster.errors import ConfigError
from cluster.model import SiteName
from deployments.admission import QueueLimits
from deployments.continuous_batching import Performance
from deployments.gpu_performance import find_row, load_rows
from deployments.spec import ModelSpec, PoolSpec


@dataclass(frozen=True, slots=True)
class Slo:
    """What each request is promised: seconds to its first token, seconds per token after it."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1


@dataclass(frozen=True, slots=True)
class BootTimes:
    """Median seconds of a cloud node's stages, and the spread (lognormal sigma) of each draw.

    Assumed: an image with everything in it; a whole start is 2 to 4 minutes then.
    """

    accepted_s: float = 1.0
    running_s: float = 20.0
    reachable_s: float = 15.0
    joined_s: float = 35.0
    weights_s: float = 10.0
    engine_s: float = 45.0
    spread: float = 0.15


@dataclass(frozen=True, slots=True)
class SpotMarket:
    """How spot nodes are lost and how often there are none. Assumed; no trace behind it."""

    losses_per_hour: float = 0.05
    notice_s: float = 120.0
    sold_out_ratio: float = 0.0
    sold_out_spell_s: float = 1200.0


SPOT_HEAVY = SpotMarket(losses_per_hour=1.0, sold_out_ratio=0.25)
"""A bad week for spot: each node is lost once an hour, and there are none a quarter of the time."""


@dataclass(frozen=True, slots=True)
class Delays:
    """Means of the seconds between the processes that production has and a simulation hasn't.

    `signal_age_s`: gateways publish every 0.5 s, so what a decision rests on is half of that old.
    `targets_s`: Serve's controller hears of targets every 0.5 s and acts within 0.1 s.
    `closing_s`: gateways hear of pools that shall get nothing more when they publish.
    """

    signal_age_s: float = 0.25
    targets_s: float = 0.35
    closing_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that one run may know besides its traffic, its policy and its seed.

    `performance` is each pool's replica, `gpu_rows` the row of the GPU table it is made of.
    `idle_s` is how long a node of a type may idle. `recorded_boots` are the first rented nodes', in
    order; `boot` is that of all after them, and of owned ones.
    `cluster_nodes_max` includes the head.
    `owned_usd_per_gpu_hour` is what an owned GPU is said to cost, used or not.
    """

    model: ModelSpec
    performance: Mapping[str, Performance]
    gpu_rows: Mapping[str, str]
    settings: ClusterSettings
    idle_s: Mapping[str, float]
    queue: QueueLimits = field(default_factory=QueueLimits)
    slo: Slo = field(default_factory=Slo)
    boot: BootTimes = field(default_factory=BootTimes)
    recorded_boots: tuple[BootTimes, ...] = ()
    spot: SpotMarket = field(default_factory=SpotMarket)
    delays: Delays = field(default_factory=Delays)
    cluster_nodes_max: int | None = None
    owned_usd_per_gpu_hour: Decimal = Decimal(0)
    chunk_tokens: int | None = CHUNK_TOKENS
    nodes_tick_s: float = 2.0
    settle_s: float = 900.0

    def find_boot(self, launches: int) -> BootTimes:
        """Return the boot of the node that is rented after so many others."""
        return self.recorded_boots[launches] if launches < len(self.recorded_boots) else self.boot

    def find_round_trip_s(self, pool: PoolSpec) -> float:
        """Return the way from the gateway to a pool and back, added to each first token."""
        site = self.settings.sites.get(SiteName(pool.site))
        return 0.0 if site is None else site.round_trip_s


def find_gpu_rows(model: ModelSpec, rows: Mapping[str, str]) -> dict[str, str]:
    """Return each pool's row of the GPU table. `rows` names them by accelerator and goes first.

    Raises:
        ConfigError: a pool's row isn't known; what to type is said.
    """
    return {pool.name: _find_row_name(pool, rows) for pool in model.pools}


def find_performance(
    gpu_rows: Mapping[str, str], *, is_interfering: bool
) -> dict[str, Performance]:
    """Return each pool's speed, from its row; what interference adds itself is taken out."""
    found = {pool: find_row(name) for pool, name in gpu_rows.items()}
    return {
        pool: row.to_decode_performance() if is_interfering else row.to_performance()
        for pool, row in found.items()
    }


def _find_row_name(pool: PoolSpec, rows: Mapping[str, str]) -> str:
    """Return the row given for its accelerator, the pool's own, or the one of its name."""
    known = load_rows()
    emulated = pool.engine_args.get("gpu") if pool.engine == "emulated" else None
    name = rows.get(pool.accelerator) or pool.gpu_row or emulated or f"{pool.accelerator}-8b"
    if name not in known:
        raise ConfigError(
            f"pool {pool.name} must have a row in the GPU table; there is no {name!r}. "
            f"Say which: --gpu {pool.accelerator}=ROW, with one of {', '.join(sorted(known))}."
        )
    return str(name)
