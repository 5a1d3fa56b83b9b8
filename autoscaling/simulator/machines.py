"""Nodes and replicas as they are in simulated time: values with their state, no behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoscaling.demand import Bundle, Demand, Node, Term, covers, merge_bundles, subtract
from autoscaling.simulator.engine_model import EngineModel, Work
from autoscaling.simulator.gateway_model import Live
from autoscaling.simulator.scenario import BootTimes
from cluster.config import NodeTypeSettings
from cluster.model import LABEL_ACCELERATOR, LABEL_MARKET
from deployments.pool_options import build_bundles, build_selector
from deployments.spec import PoolSpec


@dataclass(slots=True, eq=False)
class Machine:
    """One node from its request to its end. Times in s; None = not yet.

    `serving_s` is when its first replica began to answer, None too for what was there from the
    start. `is_leaving`: it has a notice, takes no more work and is gone soon.
    """

    id: str
    kind: NodeTypeSettings
    requested_s: float
    free: dict[str, float]
    boot: BootTimes
    joined_s: float | None = None
    serving_s: float | None = None
    ended_s: float | None = None
    idle_since_s: float | None = None
    is_leaving: bool = False
    is_lost: bool = False
    replicas: list["Replica"] = field(default_factory=list)

    @property
    def is_owned(self) -> bool:
        """Whether its hardware is paid for."""
        return self.kind.market == "owned"

    def as_node(self) -> Node:
        """The node as placement sees it."""
        return Node(
            id=self.id,
            node_type=self.kind.name,
            is_owned=self.is_owned,
            total={name: float(amount) for name, amount in self.kind.resources.items()},
            free=dict(self.free),
            labels=self.kind.labels,
        )


@dataclass(slots=True, eq=False)
class Replica:
    """One replica. `pool` None = it may go anywhere and takes the pool of its node."""

    id: str
    pool: PoolSpec | None
    demand: Demand
    asked_s: float
    machine: Machine | None = None
    engine: EngineModel | None = None
    live: dict[Work, Live] = field(default_factory=dict)
    is_ready: bool = False
    is_draining: bool = False
    turn: int = 0

    @property
    def pool_name(self) -> str | None:
        """Its pool's name, None while that is open."""
        return self.pool.name if self.pool is not None else None


def build_demand(
    replica_id: str, pool: PoolSpec, *, is_bound_to_market: bool, is_anywhere: bool
) -> Demand:
    """Return what a replica asks of the cluster: production's bundles and site selector."""
    terms: tuple[Term, ...] = ()
    if not is_anywhere:
        labels = dict(build_selector(pool))
        if is_bound_to_market:
            labels[LABEL_MARKET] = pool.market
        terms = tuple(Term(key, frozenset({value})) for key, value in sorted(labels.items()))
    selectors = (terms,) if terms else ()
    bundles = build_bundles(pool, workers=max(1, pool.gpus_per_replica))
    return Demand(replica_id, tuple(Bundle(bundle, selectors) for bundle in bundles))


def find_machine(machines: Sequence[Machine], demand: Demand) -> Machine | None:
    """Return the fullest joined node with room for the whole demand, as Ray packs; owned first."""
    whole = merge_bundles(demand.bundles)
    fitting = [
        machine
        for machine in machines
        if machine.joined_s is not None
        and not machine.is_leaving
        and whole.accepts(machine.kind.labels)
        and covers(machine.free, whole.resources)
    ]
    return min(fitting, key=lambda m: (not m.is_owned, sum(m.free.values()), m.id), default=None)


def take(machine: Machine, demand: Demand) -> None:
    """Take a demand's resources out of a node."""
    subtract(machine.free, merge_bundles(demand.bundles).resources)
    machine.idle_since_s = None


def give_back(machine: Machine, demand: Demand, now_s: float) -> None:
    """Return a demand's resources to its node."""
    for name, amount in merge_bundles(demand.bundles).resources.items():
        machine.free[name] = round(machine.free[name] + amount, 4)
    if not machine.replicas:
        machine.idle_since_s = now_s


def find_pool(kind: NodeTypeSettings, pools: Mapping[str, PoolSpec]) -> PoolSpec | None:
    """Return the pool whose replicas nodes of this type run, None if there is none."""
    for pool in pools.values():
        here = (kind.site, kind.market, kind.labels.get(LABEL_ACCELERATOR))
        if (pool.site, pool.market, pool.accelerator) == here:
            return pool
    return None
