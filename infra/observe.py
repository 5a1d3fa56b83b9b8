"""What the cluster looks like from outside: the autoscaler's record, the gateways' signals, Ray.

Everything shown by `tidegate status` and the demonstration comes from here.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.config import ClusterSettings
from cluster.errors import TidegateError
from deployments.signals import Blackboard, GatewaySignals, PoolSignal
from infra.ray_cli import RayCli, RayCommandFailed

_SIGNALS_AGE_S_MAX = 5.0
_RAY_STATUS_POLL_S = 2.0
_SILENT_S_MAX = 60.0
# As Ray's instance manager calls a node that has joined.
_RUNNING = "RAY_RUNNING"


class ClusterSilent(TidegateError):
    """The cluster's control store doesn't answer."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One look at the cluster. Empty parts mean that nothing was said yet."""

    cloud_sites: frozenset[str]
    decision: Mapping[str, Any] = field(default_factory=dict)
    signals: Sequence[GatewaySignals] = ()

    @property
    def pools(self) -> list[PoolSignal]:
        """Every pool as the gateways see it; of several gateways' reports, the first."""
        found: dict[tuple[str, str], PoolSignal] = {}
        for report in self.signals:
            for model in report.models:
                for pool in model.pools:
                    found.setdefault((model.app, pool.pool), pool)
        return list(found.values())

    @property
    def nodes(self) -> list[Mapping[str, Any]]:
        """The nodes of the autoscaler's record: id, type, site, state."""
        return list(self.decision.get("nodes", ()))

    @property
    def cloud_replicas_wanted(self) -> int:
        """Replicas the autoscaler wants in pools that aren't owned."""
        cloud_pools = {pool.pool for pool in self.pools if not pool.owned}
        return sum(
            count
            for deployments in self.decision.get("targets", {}).values()
            for pool, count in deployments.items()
            if pool in cloud_pools
        )

    @property
    def cloud_nodes(self) -> int:
        """Nodes of sites that aren't owned, in any state."""
        return sum(1 for node in self.nodes if node["site"] in self.cloud_sites)

    @property
    def cloud_nodes_running(self) -> int:
        """Nodes of sites that aren't owned and have joined."""
        return sum(
            1
            for node in self.nodes
            if node["site"] in self.cloud_sites and node["state"] == _RUNNING
        )

    @property
    def cloud_slots_ready(self) -> int:
        """Slots of replicas that run in pools that aren't owned."""
        return sum(p.replicas_running * p.slots_per_replica for p in self.pools if not p.owned)

    @property
    def owned_slots_max(self) -> int:
        """Slots the owned pools have when every replica they may have runs."""
        return sum(p.max_replicas * p.slots_per_replica for p in self.pools if p.owned)

    @property
    def waiting(self) -> int:
        """Requests that wait in the gateways."""
        return sum(
            model.waiting_public + model.waiting_internal + model.waiting_restricted
            for report in self.signals
            for model in report.models
        )

    @property
    def usd_per_hour(self) -> float:
        """What the nodes of the autoscaler's record cost."""
        return float(self.decision.get("usd_per_hour", 0.0))

    def streams_running(self, pool: PoolSignal) -> int:
        """Streams that all gateways together have open on a pool."""
        return sum(
            other.streams_running
            for report in self.signals
            for model in report.models
            for other in model.pools
            if other.pool == pool.pool
        )

    def reason_for_cloud(self) -> str:
        """The autoscaler's newest reason that speaks of a cloud site, else its newest of all."""
        reasons = [str(reason) for reason in self.decision.get("reasons", ())]
        about_cloud = [r for r in reasons if any(site in r for site in self.cloud_sites)]
        return (about_cloud or reasons or ["no reason recorded"])[0]


def list_cloud_sites(settings: ClusterSettings) -> frozenset[str]:
    """Return the sites that aren't owned."""
    return frozenset(name for name, site in settings.sites.items() if not site.owned)


def drop_old(signals: Sequence[GatewaySignals]) -> list[GatewaySignals]:
    """Return what gateways say that still speak; one that is gone leaves its last words."""
    newest_s = max((report.published_s for report in signals), default=0.0)
    return [r for r in signals if newest_s - r.published_s < _SIGNALS_AGE_S_MAX]


class Observer:
    """Looks at one running cluster."""

    def __init__(self, settings: ClusterSettings, board: Blackboard, ray_cli: RayCli) -> None:
        self._board = board
        self._ray_cli = ray_cli
        self.cloud_sites = list_cloud_sites(settings)
        self._seen_s = time.monotonic()
        self._last = ClusterView(cloud_sites=self.cloud_sites)
        self._cloud_types = tuple(
            name for name, kind in settings.node_types.items() if kind.site in self.cloud_sites
        )

    def look(self) -> ClusterView:
        """Return one view; the last one while the GCS is too busy to answer.

        Raises:
            ClusterSilent: the GCS hasn't answered for a minute.
        """
        from ray.exceptions import RpcError  # noqa: PLC0415 - `tidegate --help` needs no Ray

        try:
            signals = self._board.list_signals()
            decision = self._board.get_decision() or {}
        except RpcError as error:
            silent_s = time.monotonic() - self._seen_s
            if silent_s < _SILENT_S_MAX:
                return self._last
            raise ClusterSilent(
                f"the cluster's control store must answer; silent for {silent_s:.0f} s ({error}). "
                "Does the cluster run? Type: tidegate serve"
            ) from error
        self._seen_s = time.monotonic()
        self._last = ClusterView(self.cloud_sites, decision, drop_old(signals))
        return self._last

    async def view(self) -> ClusterView:
        """Return one view without blocking the event loop."""
        return await asyncio.to_thread(self.look)

    def cloud_nodes_in_ray_status(self) -> tuple[int, str]:
        """Return how many active cloud nodes `ray status` lists, and the lines that say so."""
        active = self._ray_cli.status().partition("Active:")[2].partition("Pending:")[0]
        lines = [line.strip() for line in active.splitlines() if line.strip()[:1].isdigit()]
        cloud = [line for line in lines if line.endswith(self._cloud_types)]
        return sum(int(line.split()[0]) for line in cloud), "; ".join(lines)

    async def wait_for_ray_status(self, *, has_cloud: bool, timeout_s: float) -> str | None:
        """Return what `ray status` says once it does (not) list a cloud node; None on timeout."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            # A busy head may fail one query; only the deadline decides.
            with contextlib.suppress(RayCommandFailed):
                count, text = await asyncio.to_thread(self.cloud_nodes_in_ray_status)
                if (count > 0) == has_cloud:
                    return f"`ray status`: {text}"
            await asyncio.sleep(_RAY_STATUS_POLL_S)
        return None
