"""SkyServe's autoscaler: requests per second, slow up, slower down, spot with on-demand fallback.

Source: skypilot, `sky/serve/autoscalers.py` (RequestRateAutoscaler: ceil(qps / target) over 60 s,
upscale_delay 300 s, downscale_delay 1200 s, looked at every 20 s; FallbackRequestRateAutoscaler:
on-demand stands in for spot replicas that aren't ready). Owned nodes count as free capacity and are
used first, as its Kubernetes clusters are. The target is the slowest pool's rate.
"""

import math
from collections import deque

from autoscaling.guard import Limits
from autoscaling.peers.sizing import Sizing
from autoscaling.placement import Situation
from autoscaling.simulator.policy import Placed, PoolState, Signals, Wish, place_local_first

_WINDOW_S = 60.0
_UP_S = 300.0
_DOWN_S = 1200.0


class SkyServe:
    """Counts how long the wish for more or fewer has held, as SkyServe's counters do."""

    name = "skyserve"
    check_s = 20.0
    binds_market = True

    def __init__(self, sizing: Sizing) -> None:
        self._target_rps = sizing.reference_rps
        self._arrivals: deque[tuple[float, int]] = deque()
        self._target = 0
        self._up_looks = 0
        self._down_looks = 0

    def observe(self, signals: Signals) -> Wish:
        """Return owned replicas first, then spot, then on-demand for spot that isn't ready."""
        self._arrivals.append((signals.now_s, signals.arrivals))
        while self._arrivals[0][0] <= signals.now_s - _WINDOW_S:
            self._arrivals.popleft()
        rps = sum(count for _, count in self._arrivals) / _WINDOW_S
        self._follow(max(1, math.ceil(rps / self._target_rps)))
        return Wish(self._spread(signals.pools))

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement: limits hold for everybody."""
        return place_local_first(situation, limits)

    def _follow(self, desired: int) -> None:
        if self._target == 0:
            self._target = desired
        self._up_looks = self._up_looks + 1 if desired > self._target else 0
        self._down_looks = self._down_looks + 1 if desired < self._target else 0
        is_due = (
            self._up_looks >= _UP_S / self.check_s or self._down_looks >= _DOWN_S / self.check_s
        )
        if is_due:
            self._target = desired
            self._up_looks = self._down_looks = 0

    def _spread(self, pools: tuple[PoolState, ...]) -> dict[str, int]:
        wished = {pool.spec.name: 0 for pool in pools}
        left = self._target
        spot_missing = 0
        for pool in sorted(pools, key=lambda one: (one.usd_per_hour, one.spec.name)):
            name = pool.spec.name
            if pool.spec.market == "on_demand" and any(p.spec.market == "spot" for p in pools):
                continue
            wished[name] = max(pool.spec.min_replicas, min(pool.spec.max_replicas, left))
            left = max(0, left - wished[name])
            if pool.spec.market == "spot":
                spot_missing += max(0, wished[name] - pool.running)
        for pool in pools:
            if pool.spec.market == "on_demand" and wished[pool.spec.name] == 0:
                wished[pool.spec.name] = min(pool.spec.max_replicas, left + spot_missing)
        return wished
