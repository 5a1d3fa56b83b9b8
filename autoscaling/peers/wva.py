"""llm-d's Workload Variant Autoscaler, its saturation analysis.

Source: llm-d workload-variant-autoscaler, saturation analyzer: a replica is saturated at KV use of
0.80 or a queue of 5; one more of the cheapest variant when the others' spare KV is below 0.1 or
their spare queue below 3 on average; one fewer of the dearest when the rest would still have that
spare. A variant with replicas on their way isn't raised. Looked at every 30 s (assumed). Requests
wait at the gateway here, so its queue is shared out over the running replicas.
"""

from autoscaling.guard import Limits
from autoscaling.placement import Situation
from autoscaling.simulator.policy import Placed, PoolState, Signals, Wish, place_local_first

_KV_SATURATED = 0.80
_QUEUE_SATURATED = 5.0
_KV_SPARE_MIN = 0.1
_QUEUE_SPARE_MIN = 3.0


class Wva:
    """Adds the cheapest variant, removes the dearest, one at a time."""

    name = "wva"
    check_s = 30.0
    binds_market = False

    def observe(self, signals: Signals) -> Wish:
        """Return the present numbers, with one more or one fewer where that is due."""
        wished = {pool.spec.name: pool.planned for pool in signals.pools}
        order = sorted(signals.pools, key=lambda one: (one.usd_per_hour, one.spec.name))
        running = sum(pool.running for pool in signals.pools)
        if running == 0:
            return Wish(wished)
        queue = signals.waiting / running
        if not _has_spare(order, queue):
            for pool in order:
                if pool.planned < pool.spec.max_replicas and pool.planned == pool.running:
                    wished[pool.spec.name] += 1
                    break
            return Wish(wished)
        fewer = running / max(1, running - 1)
        if running > 1 and _has_spare(order, queue * fewer, load_ratio=fewer):
            for pool in reversed(order):
                if pool.planned > pool.spec.min_replicas:
                    wished[pool.spec.name] -= 1
                    break
        return Wish(wished)

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return production's placement: limits hold for everybody."""
        return place_local_first(situation, limits)


def _has_spare(pools: list[PoolState], queue: float, *, load_ratio: float = 1.0) -> bool:
    """Whether replicas that aren't saturated have enough room, with so much more load."""
    uses = [(pool.kv_use_ratio or 0.0) * load_ratio for pool in pools for _ in range(pool.running)]
    spare = [_KV_SATURATED - use for use in uses if use < _KV_SATURATED]
    if queue >= _QUEUE_SATURATED or not spare:
        return False
    mean = sum(spare) / len(spare)
    return mean >= _KV_SPARE_MIN and _QUEUE_SATURATED - queue >= _QUEUE_SPARE_MIN
