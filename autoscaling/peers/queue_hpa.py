"""Kubernetes' HorizontalPodAutoscaler on the number of waiting requests.

Source: Kubernetes documentation, "Horizontal Pod Autoscaling" (algorithm; defaults: 15 s period,
tolerance 0.1, scale-down stabilisation 300 s, at most double or 4 more in each period). The metric
is the queue over running replicas with a target of 5, as WVA's threshold; cheapest pools first.
"""

import math
from collections import deque

from autoscaling.guard import Limits
from autoscaling.peers.sizing import fill_in_order
from autoscaling.placement import Situation
from autoscaling.simulator.policy import Placed, Signals, Wish, place_local_first

_TARGET_WAITING = 5.0
_TOLERANCE = 0.1
_STABLE_S = 300.0
_STEP_MAX = 4


class QueueHpa:
    """Desired = ceil(replicas x waiting per replica / target); never below 1."""

    name = "queue-hpa"
    check_s = 15.0
    binds_market = False

    def __init__(self) -> None:
        self._recommended: deque[tuple[float, int]] = deque()

    def observe(self, signals: Signals) -> Wish:
        """Return the highest recommendation of the last 300 s, bounded upwards."""
        now = sum(pool.planned for pool in signals.pools)
        running = max(1, sum(pool.running for pool in signals.pools))
        ratio = signals.waiting / running / _TARGET_WAITING
        desired = now if abs(ratio - 1) <= _TOLERANCE else math.ceil(running * ratio)
        self._recommended.append((signals.now_s, max(1, desired)))
        while self._recommended[0][0] < signals.now_s - _STABLE_S:
            self._recommended.popleft()
        stable = max(count for _, count in self._recommended)
        bounded = min(stable, max(2 * now, now + _STEP_MAX))
        # A lower number counts only once all of the window agrees; the window begins full.
        is_young = signals.now_s - self._recommended[0][0] < _STABLE_S - self.check_s
        return Wish(fill_in_order(signals.pools, max(bounded, now) if is_young else bounded))

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement: limits hold for everybody."""
        return place_local_first(situation, limits)
