"""Our own policy: the production brain and placement on simulated signals."""

from autoscaling.guard import Limits
from autoscaling.observation import Observed, build_snapshot
from autoscaling.placement import Situation
from autoscaling.replicas import decide_replicas
from autoscaling.simulator.policy import Placed, Signals, Wish, place_local_first
from autoscaling.snapshot import BurstPolicy
from autoscaling.stability import ModelMemory


class TidegatePolicy:
    """Carries the brain's memory from one decision to the next, as its process does."""

    name = "tidegate"
    binds_market = False

    def __init__(self, policy: BurstPolicy) -> None:
        self._policy = policy
        self._memory = dict[str, ModelMemory]()
        self.check_s = policy.check_s

    def observe(self, signals: Signals) -> Wish:
        """Return the brain's targets."""
        observed = Observed(
            signals=(signals.gateway,),
            requested=signals.requested,
            offers=signals.offers,
            blocked_sites=signals.blocked_sites,
            cold_starts_s=signals.cold_starts_s,
            losses_per_hour=signals.losses_per_hour,
            memory=self._memory,
        )
        snapshot = build_snapshot(observed, now_s=signals.now_s, policy=self._policy)
        decision = decide_replicas(snapshot, self._policy)
        self._memory = dict(decision.memory)
        return Wish(
            replicas=decision.targets.get(signals.app, {}),
            closing=frozenset(decision.closing.get(signals.app, ())),
            reasons=tuple(map(str, (*decision.reasons, *decision.unmet))),
        )

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement."""
        return place_local_first(situation, limits)
