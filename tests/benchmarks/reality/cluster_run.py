"""One run on the embedded cluster: started, loaded, watched, taken down; what it showed."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from autoscaling.simulator.traffic import Traffic
from cluster.ledger import Ledger
from cluster.model import BootStage, NodeRecord
from cluster.store_place import find_place
from infra.embedded import Plan, build_plan, run_embedded
from infra.observe import ClusterView, Observer
from infra.stream_client import StreamClient
from tests.benchmarks.reality.files import MODEL
from tests.benchmarks.reality.replay import Answer, chat_sender, replay

_READY_S_MAX = 120.0
_LOOK_S = 1.0
# What a start leaves behind (imports, first health checks) has settled after this.
_SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Look:
    """The cluster at one moment: replicas wanted and running by pool, requests that wait."""

    at_s: float
    wanted: dict[str, int]
    running: dict[str, int]
    waiting: int
    cloud_nodes: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CloudNode:
    """A rented node, charged from `charged_s` to `ended_s` (s since the traffic began, None = now).

    `stages` are seconds since it was asked for, by boot stage.
    """

    node_id: str
    charged_s: float
    ended_s: float | None
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What a run showed. `lag_s` is by how much the latest request was sent late."""

    answers: Sequence[Answer]
    nodes: Sequence[CloudNode]
    looks: Sequence[Look]
    lag_s: float
    start_s: float = 0.0


def run_on_cluster(
    traffic: Traffic,
    files: tuple[Path, Path],
    *,
    port_offset: int,
    say: Callable[[str], None],
) -> ClusterRun:
    """Bring the cluster up, replay the traffic through its entry, take everything down.

    Raises:
        TidegateError: a step failed; nothing is left behind then either.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "AWS_EC2_METADATA_DISABLED": "true"}
    plan = build_plan(*files, engine="emulated", port_offset=port_offset)
    began_s = time.monotonic()
    with run_embedded(plan) as observer:
        start_s = time.monotonic() - began_s
        run = asyncio.run(_load(traffic, plan, observer, say))
        nodes = _list_cloud_nodes(plan, since_wall_s=run.began_wall_s)
    return ClusterRun(run.answers, nodes, run.looks, run.lag_s, start_s)


@dataclass(frozen=True, slots=True)
class _Loaded:
    answers: list[Answer]
    lag_s: float
    looks: list[Look]
    began_wall_s: float


async def _load(
    traffic: Traffic, plan: Plan, observer: Observer, say: Callable[[str], None]
) -> _Loaded:
    await _wait_ready(observer)
    client = StreamClient(plan.url, plan.key, MODEL)
    looks: list[Look] = []
    began_s, began_wall_s = time.monotonic(), time.time()
    watch = asyncio.create_task(_watch(observer, looks, began_s))
    try:
        answers, lag_s = await replay(traffic, chat_sender(client), say=say)
    finally:
        watch.cancel()
        await client.close()
    return _Loaded(answers, lag_s, looks, began_wall_s)


async def _wait_ready(observer: Observer) -> None:
    """Return once every owned pool runs its minimum, and a little later."""
    deadline_s = time.monotonic() + _READY_S_MAX
    while True:
        pools = [pool for pool in (await observer.view()).pools if pool.owned]
        if pools and all(pool.replicas_running >= pool.min_replicas for pool in pools):
            break
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"owned replicas must run within {_READY_S_MAX:.0f} s; got {pools}")
        await asyncio.sleep(_LOOK_S)
    await asyncio.sleep(_SETTLE_S)


async def _watch(observer: Observer, looks: list[Look], began_s: float) -> None:
    while True:
        looks.append(_describe(await observer.view(), time.monotonic() - began_s))
        await asyncio.sleep(_LOOK_S)


def _describe(view: ClusterView, at_s: float) -> Look:
    targets = view.decision.get("targets", {})
    return Look(
        at_s=at_s,
        wanted={pool: n for pools in targets.values() for pool, n in pools.items()},
        running={pool.pool: pool.replicas_running for pool in view.pools},
        waiting=view.waiting,
        cloud_nodes=view.cloud_nodes,
        reasons=tuple(str(reason) for reason in view.decision.get("reasons", ())),
    )


def _list_cloud_nodes(plan: Plan, *, since_wall_s: float) -> list[CloudNode]:
    """Return the rented nodes of the ledger; those that ended before the traffic began too."""
    settings = plan.settings
    place = find_place(
        settings.store,
        state_dir=settings.state_dir,
        cluster=settings.cluster_name,
        environment=os.environ,
    )
    ledger = Ledger(place, reads_only=True)
    try:
        owned = {name for name, site in settings.sites.items() if site.owned}
        rented = [record for record in ledger.list_all() if record.site not in owned]
        return [_read_node(ledger, record, since_wall_s) for record in rented]
    finally:
        ledger.close()


def _read_node(ledger: Ledger, record: NodeRecord, since_wall_s: float) -> CloudNode:
    stages = ledger.boot_stages(record.node_id)
    ended_s, launched_s = record.ended_s, record.launched_s
    charged_s = record.intended_s if launched_s is None else launched_s
    return CloudNode(
        node_id=record.node_id,
        charged_s=charged_s - since_wall_s,
        ended_s=None if ended_s is None else ended_s - since_wall_s,
        stages={stage.value: at_s - record.intended_s for stage, at_s in stages.items()},
    )


def find_boots(nodes: Sequence[CloudNode]) -> list[dict[str, float]]:
    """Return the seconds between neighbouring boot stages of each node, in order of launch.

    A stage that a node didn't reach takes the others' median; one that no node noted is left out,
    so that its time is in the next one's.
    """
    known = [stage.value for stage in BootStage if any(stage.value in n.stages for n in nodes)]
    boots: list[dict[str, float]] = [{} for _ in nodes]
    for before, stage in pairwise(known):
        gaps = [
            max(0.0, node.stages[stage] - node.stages[before])
            if stage in node.stages and before in node.stages
            else None
            for node in nodes
        ]
        seen = [gap for gap in gaps if gap is not None]
        for boot, gap in zip(boots, gaps, strict=True):
            boot[stage] = gap if gap is not None else statistics.median(seen or [0.0])
    return boots
