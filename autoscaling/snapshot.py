"""What the brain is told and what it answers: values only.

`autoscaling.observation` builds a `Snapshot`, `autoscaling.replicas` decides, `autoscaling.record`
and `autoscaling.monitor` carry the `Decision` to the blackboard, the log and people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from autoscaling.guard import market_rank
from autoscaling.learning import Learned
from autoscaling.owned_places import OwnedNode
from autoscaling.stability import ModelMemory
from cluster.model import Market

BRAIN_PARTS = ("forecast", "break-even", "capacity", "mix", "cold-start", "correction")
"""What can be ablated.

forecast: only the last bins count, no rise, no recurrence; break-even: any late request is worth a
node; capacity: waiting requests and slots instead of work; mix: node types in tier order only;
cold-start: the default instead of what was learned; correction: the table instead of measurements.
"""


@dataclass(frozen=True, slots=True)
class BurstPolicy:
    """Thresholds and delays. All but the last three are the cluster file's `provider.burst`.

    `starting_s_max`: how long a replica that was asked for counts as capacity on its way.
    `slack_ratio_max`: cheaper pools filled no more than this leave room to lower a dearer one.
    `route_stop_s`: from telling gateways to stop routing to lowering the number to zero.
    `ablated`: parts that are switched off to see what they are worth, of `BRAIN_PARTS`.
    """

    mode: Literal["act", "shadow"] = "act"
    history_s: float = 1800.0
    cold_start_s: float = 180.0
    waiting_per_replica_up: int = 1
    up_after_s: float = 2.0
    down_after_s: float = 20.0
    kv_use_ratio_up: float = 0.85
    min_lease_s: float = 60.0
    signals_stale_s: float = 10.0
    starting_s_max: float = 300.0
    slack_ratio_max: float = 0.8
    route_stop_s: float = 1.5
    check_s: float = 1.0
    ablated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as observed. `requested` is what Serve was last told, None = nothing yet.

    `blocked` says why the scheduler can give it no further node now, None = nothing is known.
    `rps` is what one replica sustains within the objective, in requests a second of this model's
    lengths; `cold_start_s` the time from asking for a node to its first answer; None = not known
    yet. `losses_per_hour` is how often a node of it is taken away. `round_trip_s` is the way to its
    site and back, `usd_per_request` what the mean answer costs to be sent from there.
    """

    name: str
    site: str
    market: Market
    slots: int
    replicas_min: int
    replicas_max: int
    usd_per_hour: Decimal = Decimal(0)
    requested: int | None = None
    observed: int = 0
    streams: int = 0
    kv_use_ratio: float | None = None
    blocked: str | None = None
    rps: float | None = None
    cold_start_s: float | None = None
    losses_per_hour: float = 0.0
    accelerator: str = ""
    gpus_per_replica: int = 0
    round_trip_s: float = 0.0
    usd_per_request: float = 0.0

    @property
    def is_owned(self) -> bool:
        """Whether its hardware is paid for already."""
        return self.market == "owned"

    @property
    def order(self) -> tuple[int, Decimal, str]:
        """Sort key: lowest is filled first and lowered last."""
        return (market_rank(self.market), self.usd_per_hour, self.name)


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as observed. `doubt` says why its signals can't be trusted, None = they can.

    `waiting` counts all waiting requests, `waiting_may_burst` those that may leave owned sites.
    `ttft_s_max` is promised to `attainment_min` (0-1) of the requests; another one that is late
    costs `usd_per_late_request`. `variation` is that of a request's work
    (`autoscaling.capacity.find_variation`).
    """

    app: str
    pools: tuple[PoolView, ...]
    waiting: int = 0
    waiting_may_burst: int = 0
    doubt: str | None = None
    learned: Learned = field(default_factory=Learned)
    ttft_s_max: float = 2.0
    attainment_min: float = 0.99
    usd_per_late_request: float = 0.02
    variation: float = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the decision may know. `now_s` is wall time, as the signals' times are.

    What is planned is in `memory`; what was requested and what is observed, in `models`.
    `owned_nodes` are those whose GPUs the models share; none = each pool has its own.
    """

    now_s: float
    models: tuple[ModelView, ...] = ()
    memory: Mapping[str, ModelMemory] = field(default_factory=dict)
    owned_nodes: tuple[OwnedNode, ...] = ()


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Serve shall run this many replicas of a deployment."""

    app: str
    deployment: str
    replicas_from: int
    replicas_to: int


@dataclass(frozen=True, slots=True)
class StopRouting:
    """Gateways shall send nothing more to a deployment: it goes to zero soon."""

    app: str
    deployment: str


Command = SetReplicas | StopRouting


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was decided or held. `code` stays the same while only numbers change."""

    code: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, what can't be had, when to look again, and what to remember."""

    commands: tuple[Command, ...]
    reasons: tuple[Reason, ...]
    unmet: tuple[Reason, ...]
    next_check_s: float
    memory: Mapping[str, ModelMemory]

    @property
    def targets(self) -> dict[str, dict[str, int]]:
        """The number of replicas planned, by application and deployment."""
        return {
            app: {name: pool.planned for name, pool in model.pools.items()}
            for app, model in self.memory.items()
        }

    @property
    def closing(self) -> dict[str, list[str]]:
        """The deployments that routing shall leave alone, by application.

        Those about to go to zero, and those planned at zero until their last replica is gone.
        """
        found = {
            app: [name for name, pool in model.pools.items() if pool.is_closing]
            for app, model in self.memory.items()
        }
        return {app: names for app, names in found.items() if names}
