"""Policies that never change their mind: owned only, all cloud, sized for the highest minute.

Source: the two ends and the usual middle of capacity planning; no system in particular.
"""

from collections.abc import Mapping

from autoscaling.guard import Limits
from autoscaling.peers.sizing import Sizing, fill_with_rate
from autoscaling.placement import Situation
from autoscaling.simulator.policy import Placed, PoolState, Signals, Wish, place_local_first

_OWNED = frozenset({"owned"})
_CLOUD = frozenset({"on_demand"})


class _Static:
    """Wishes the same at every look."""

    name = ""
    check_s = 10.0
    binds_market = True

    def __init__(self, sizing: Sizing) -> None:
        self._sizing = sizing

    def observe(self, signals: Signals) -> Wish:
        """Return the fixed numbers."""
        return Wish(self._choose(signals.pools))

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement: limits hold for everybody."""
        return place_local_first(situation, limits)

    def _choose(self, pools: tuple[PoolState, ...]) -> Mapping[str, int]:
        raise NotImplementedError


class OnPremOnly(_Static):
    """Every owned replica there can be, and no cloud."""

    name = "onprem-only"

    def _choose(self, pools: tuple[PoolState, ...]) -> Mapping[str, int]:
        return {pool.spec.name: pool.spec.max_replicas if pool.spec.owned else 0 for pool in pools}


class AllCloud(_Static):
    """On-demand replicas for the highest minute, all the time, and nothing owned.

    Restricted requests find no replica that may answer and are refused.
    """

    name = "all-cloud"

    def _choose(self, pools: tuple[PoolState, ...]) -> Mapping[str, int]:
        return fill_with_rate(pools, self._sizing.peak_rps, self._sizing, markets=_CLOUD)


class StaticPeak(_Static):
    """Owned replicas, and on-demand ones for what the highest minute needs beyond them."""

    name = "static-peak"

    def _choose(self, pools: tuple[PoolState, ...]) -> Mapping[str, int]:
        wished = fill_with_rate(pools, self._sizing.peak_rps, self._sizing, markets=_OWNED | _CLOUD)
        owned = {p.spec.name: p.spec.max_replicas for p in pools if p.spec.owned}
        return {**wished, **owned}
