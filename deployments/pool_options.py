"""Serve options every pool has, whatever its engine: placement, limits, health, scaling door.

Placement is where residency and cost meet Ray: the selector of site and accelerator stands on every
bundle of the placement group and on the actor. With only one of the two, the group may be reserved
on another site and the actor then waits for ever.
"""

from collections.abc import Sequence
from typing import Any

from deployments.spec import PoolSpec

GRACEFUL_SHUTDOWN_S = 600.0
"""Longest drain of a replica. Every stream holds a slot until it ends, so this bounds streams."""

_HEALTH_CHECK_PERIOD_S = 1.0
_HEALTH_CHECK_TIMEOUT_S = 10.0
_DRAIN_POLL_S = 1.0
_ROUTING_STATS_PERIOD_S = 1.0
_ACTOR_CPUS = 1
# Serve rounds up: one replica more for every four, at least one.
_SURGE_PERCENT = 25
_ROUTER_CLASS = "deployments.pool_router:PoolRouter"


def build_pool_options(pool: PoolSpec, *, bundles: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Options for `Deployment.options`; the actor takes its CPU from the first of `bundles`.

    The autoscaling delays are zero because decisions come from our own autoscaler, which damps
    them itself. There are no `initial_replicas`: Serve would go back to them at every deploy, under
    whatever load; without them it keeps the number it has, and begins at the minimum. Serve counts
    three failed health checks before it replaces a replica, so the period of one second bounds the
    life of a dead engine at about four.
    """
    selector = build_selector(pool)
    return {
        "name": pool.name,
        "max_ongoing_requests": pool.slots,
        "autoscaling_config": {
            "min_replicas": pool.min_replicas,
            "max_replicas": pool.max_replicas,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "downscale_to_zero_delay_s": 0.0,
        },
        "ray_actor_options": {"num_cpus": _ACTOR_CPUS, "label_selector": selector},
        "placement_group_bundles": list(bundles),
        "placement_group_strategy": "PACK",
        "placement_group_bundle_label_selector": [dict(selector) for _ in bundles],
        "request_router_config": {
            "request_router_class": _ROUTER_CLASS,
            "request_routing_stats_period_s": _ROUTING_STATS_PERIOD_S,
        },
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
        "graceful_shutdown_wait_loop_s": _DRAIN_POLL_S,
        # One more engine would need one more share of a GPU that is shared out already.
        "max_surge_percent": 0 if pool.replaces_in_place or pool.gpu_shares > 1 else _SURGE_PERCENT,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
    }


def build_bundles(pool: PoolSpec, *, workers: int) -> list[dict[str, float]]:
    """Bundles of one replica: one per engine worker, the first with the actor's CPU added.

    This is the group LLMServer makes for the same pool; a test compares the two.
    """
    gpus_per_worker = pool.gpus_per_replica / workers / pool.gpu_shares
    worker = {"CPU": 1.0, "GPU": gpus_per_worker} if gpus_per_worker else {"CPU": 1.0}
    return [
        {**worker, "CPU": worker["CPU"] + _ACTOR_CPUS},
        *(dict(worker) for _ in range(1, workers)),
    ]


def build_selector(pool: PoolSpec) -> dict[str, str]:
    """Labels a node must have to run replicas of `pool`.

    A spot pool doesn't select its market: when a site has no spot nodes to give, the autoscaler
    takes the next tier of the same accelerator, and the pool's replicas run there. A dearer market
    is selected: it was chosen because its nodes aren't taken away.
    """
    selector = {"site": pool.site, "accelerator": pool.accelerator}
    return selector if pool.market in {"owned", "spot"} else {**selector, "market": pool.market}
