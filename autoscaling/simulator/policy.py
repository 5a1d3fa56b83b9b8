"""What a scaling policy is told and what it answers: one protocol for ours and for all peers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from autoscaling.guard import Limits, Offer
from autoscaling.placement import Situation, find_blocked_sites, plan_placement
from deployments.signals import GatewaySignals, Targets
from deployments.spec import PoolSpec


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as it is. `planned` counts running and starting replicas, `running` those that serve.

    `usd_per_hour` is one replica's, the cheapest way.
    """

    spec: PoolSpec
    planned: int
    running: int
    streams: int
    kv_use_ratio: float | None
    usd_per_hour: Decimal


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything a policy may know. `arrivals` counts requests since the last observation.

    `gateway` is what a real gateway would have published, for policies that read production's
    values; the rest is the same in other words. `cold_starts_s` and `losses_per_hour` are by node
    type and learned in the run, as `autoscaling.observation.Observed` has them.
    """

    now_s: float
    app: str
    pools: tuple[PoolState, ...]
    waiting: int
    arrivals: int
    gateway: GatewaySignals
    requested: Targets | None = None
    offers: tuple[Offer, ...] = ()
    blocked_sites: Mapping[str, str] = field(default_factory=dict)
    cold_starts_s: Mapping[str, float] = field(default_factory=dict)
    losses_per_hour: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """How many replicas each pool shall have. `closing` pools get nothing more to do.

    `anywhere`: instead of `replicas`, so many in all, on whatever nodes there are or come.
    `reasons` say why, for a person; a policy that has none says nothing.
    """

    replicas: Mapping[str, int] = field(default_factory=dict)
    closing: frozenset[str] = frozenset()
    anywhere: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Which nodes to launch now, in order; which nodes are needed; which sites have no room."""

    launches: tuple[str, ...] = ()
    used_nodes: frozenset[str] = frozenset()
    blocked_sites: Mapping[str, str] = field(default_factory=dict)


class Policy(Protocol):
    """Decides replicas every `check_s` and nodes whenever replicas wait for one.

    `binds_market`: a replica waits for a node of its own pool's market, not of its site only.
    """

    name: str
    check_s: float
    binds_market: bool

    def observe(self, signals: Signals) -> Wish:
        """Return what each pool should have; called in order of time."""
        ...

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return what to launch for the replicas that wait."""
        ...


def place_local_first(situation: Situation, limits: Limits) -> Placed:
    """Return production's placement: owned first, under the guard's limits."""
    placement = plan_placement(situation, limits)
    return Placed(
        launches=tuple(launch.node_type for launch in placement.launches),
        used_nodes=placement.used_nodes,
        blocked_sites=find_blocked_sites(placement),
    )
