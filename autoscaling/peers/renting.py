"""What renting a pool's replica means: which nodes hold it, its price, and when none is to be had.

For peers that know the future; what production knows of prices is in `autoscaling.observation`.
"""

from collections.abc import Sequence

from autoscaling.simulator.market import list_sold_out
from autoscaling.simulator.scenario import Scenario
from cluster.config import NodeTypeSettings
from deployments.spec import PoolSpec

_GPU = "GPU"

Spells = tuple[tuple[float, float], ...]
"""Begin and end of each time in which a node type is sold out, in s."""


def list_holders(pool: PoolSpec, scenario: Scenario) -> list[NodeTypeSettings]:
    """Return the node types whose GPUs a pool's replicas may take."""
    return [
        kind
        for kind in scenario.settings.node_types.values()
        if (kind.site, kind.market) == (pool.site, pool.market) and kind.resources.get(_GPU)
    ]


def find_usd_per_hour(pool: PoolSpec, holders: Sequence[NodeTypeSettings]) -> float:
    """Return the price of one replica, the cheapest way."""
    share = pool.gpus_per_replica
    return min(float(kind.usd_per_hour) * share / float(kind.resources[_GPU]) for kind in holders)


def list_spells(
    pool: PoolSpec,
    holders: Sequence[NodeTypeSettings],
    scenario: Scenario,
    *,
    seed: int,
    until_s: float,
) -> list[Spells]:
    """Return when each holder is sold out, as the run with this seed will have it."""
    return [
        list_sold_out(kind.name, scenario.spot, seed=seed, until_s=until_s + scenario.settle_s)
        if pool.market == "spot"
        else ()
        for kind in holders
    ]
