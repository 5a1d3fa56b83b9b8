"""A model's application in small, for tests: an on-prem pool and a cloud pool that only count.

Deployed by import path, so Ray's processes import it by name.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve


class Replica:
    """Answers by counting slowly, and with the version it was deployed with."""

    async def version(self) -> str:
        return os.environ["VERSION"]

    async def count(self, seconds: int) -> AsyncIterator[int]:
        for number in range(seconds):
            await asyncio.sleep(1)
            yield number


class Front:
    """Keeps the application's pools together; serves nothing."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools


def build(args: dict[str, Any]) -> Any:
    pools = [
        serve.deployment(Replica)
        .options(
            name=site,
            max_ongoing_requests=4,
            autoscaling_config={
                "min_replicas": minimum,
                "initial_replicas": minimum,
                "max_replicas": 2,
                "upscale_delay_s": 0.0,
                "downscale_delay_s": 0.0,
                "downscale_to_zero_delay_s": 0.0,
            },
            ray_actor_options={
                "num_cpus": 0,
                "label_selector": {"site": site},
                "runtime_env": {"env_vars": {"VERSION": str(args["version"])}},
            },
            placement_group_bundles=[{"GPU": 1}],
            placement_group_bundle_label_selector=[{"site": site}],
            graceful_shutdown_timeout_s=60,
        )
        .bind()
        for site, minimum in (("onprem", 1), ("cloud", 0))
    ]
    return (
        serve.deployment(Front)
        .options(name="front", ray_actor_options={"num_cpus": 0})
        .bind(*pools)
    )
