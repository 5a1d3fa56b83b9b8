"""What the simulator's tests share: an eager brain, and policies that keep what they are told."""

from collections.abc import Callable
from dataclasses import replace

from autoscaling.simulator.policy import Signals, Wish
from autoscaling.simulator.tidegate_policy import TidegatePolicy
from autoscaling.simulator.traffic import Traffic
from autoscaling.snapshot import BurstPolicy

EAGER = BurstPolicy(up_after_s=1.0, down_after_s=20.0, min_lease_s=60.0)
PATIENT = replace(EAGER, signals_stale_s=60.0)

MakeTraffic = Callable[..., Traffic]


class Listening(TidegatePolicy):
    """Keeps everything that was observed."""

    def __init__(self, policy: BurstPolicy) -> None:
        super().__init__(policy)
        self.heard: list[Signals] = []

    def observe(self, signals: Signals) -> Wish:
        self.heard.append(signals)
        return super().observe(signals)
