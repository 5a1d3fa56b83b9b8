"""Nodes as EC2 instances of one region. The truth about them is in their tags.

    aws_client      calls: rate, time, retries, errors      aws_launch     the RunInstances call
    aws_launcher    the candidates, one after another       sold_out       refusals, kept a while
    aws_instances   calls about this site's instances       aws_listing    how far EC2 is believed
    aws_tags        a spec as tags                          aws_warm_pool  stopped ones

A launch goes through the candidates in order and ends with the first that EC2 has. An answer that
never came is asked for again with the same token; if it stays away, whether an instance runs is
unknown, no other candidate is tried, and the caller finds out by listing.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cluster.backend_settings import AwsBackendSettings
from cluster.backends.aws_client import CallLimits, Ec2CallError, Ec2Client
from cluster.backends.aws_instances import PartlyRefusedError, SiteInstances
from cluster.backends.aws_launch import list_offerings, read_node_config
from cluster.backends.aws_launcher import Launcher
from cluster.backends.aws_listing import (
    Believed,
    Ec2Instance,
    Sightings,
    to_instance,
)
from cluster.backends.aws_tags import (
    TAG_NODE,
    UnreadableTagsError,
    check_tags,
    read_spec,
)
from cluster.backends.aws_warm_pool import WarmPool
from cluster.backends.contract import CommandRunner
from cluster.backends.node_environment import build_node_environment
from cluster.backends.sold_out import SoldOutCache
from cluster.backends.ssh_access import SshTarget
from cluster.config import PortSettings
from cluster.errors import BackendError, NodeNotFoundError
from cluster.model import (
    ClusterName,
    Instance,
    LaunchSpec,
    Market,
    NodeId,
    NodeTypeName,
    SiteName,
    SoldOut,
    merge_tags,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stray:
    """An instance with our cluster's tag that is no node of ours; the sweep looks after it."""

    instance_id: str
    why: str


class AwsBackend:
    """One site whose nodes are EC2 instances. Thread-safe."""

    def __init__(
        self,
        settings: AwsBackendSettings,
        *,
        site: SiteName,
        cluster: ClusterName,
        state_dir: Path,
        ports: PortSettings,
        markets: Mapping[NodeTypeName, Market],
        limits: CallLimits | None = None,
    ) -> None:
        self._settings = settings
        self._site = site
        self._folder = state_dir / cluster
        self._ports = ports
        self._markets = dict(markets)
        self._limits = limits or CallLimits()
        self._client = Ec2Client(
            settings.region,
            endpoint_url=settings.endpoint_url,
            calls_per_s=settings.calls_per_s,
            limits=self._limits,
        )
        self._instances = SiteInstances(self._client, cluster=cluster, site=site)
        self._warm = WarmPool(self._instances, settings=settings, markets=markets)
        self._sold_out = SoldOutCache(site, keep_s=settings.sold_out_s)
        self._sightings = Sightings(settle_s=self._limits.settle_s)
        self._launcher = Launcher(
            self._client,
            settings=settings,
            site=site,
            sold_out=self._sold_out,
            has_ended=self._sightings.has_ended,
        )
        self._strays: dict[str, Stray] = {}
        self._listed_s: float | None = None
        self._lock = threading.RLock()

    @property
    def settle_s(self) -> float:
        """Return how long after a launch another process's listing may still miss it."""
        return self._limits.settle_s

    @property
    def listed_s(self) -> float | None:
        """Return when the last complete listing was made, wall time; None before the first."""
        return self._listed_s

    @property
    def strays(self) -> Sequence[Stray]:
        """Return what the last listing found with our tag and can't be a node."""
        return tuple(self._strays.values())

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        """Return the offerings that aren't asked for now."""
        return self._sold_out.list_rows(now_s=time.time())

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Take over what an earlier process had learned."""
        self._sold_out.recall(known, now_s=time.time())

    def launch(self, spec: LaunchSpec) -> None:
        """Start one instance: a stopped one that was kept, or the first candidate EC2 has."""
        with self._lock:
            if any(not one.is_warm for one in self._sightings.find(spec.node_id)):
                return
            until_s = self._client.deadline_s()
            config = read_node_config(spec)
            offerings = list_offerings(config, self._settings, self._market_of(spec))
            found = None
            if config.warm_stopped_max and self._market_of(spec) == "on_demand":
                found = self._warm.start_one(spec, config, offerings, until_s)
            if found is None:
                found = self._launcher.start_first(spec, config, offerings, until_s)
            self._sightings.note(found)

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        """End instances, or stop those that are kept; gone and unknown ones are fine."""
        if not node_ids:
            return
        with self._lock:
            until_s = self._client.deadline_s()
            found = [one for one in self._find(node_ids, until_s) if not one.is_gone]
            warm = {one.instance_id for one in found if one.is_warm}
            nodes = [one for one in found if one.instance_id not in warm]
            keepers = self._warm.pick_keepers(nodes, until_s)
            self._end([one for one in nodes if one.instance_id not in keepers], until_s)
            self._warm.keep(keepers, until_s)
            for one in nodes:
                if one.instance_id in keepers:
                    self._sightings.forget(one.instance_id)

    def end_warm_pool(self) -> None:
        """End the instances that are kept stopped, and keep none from now on: for `ray down`.

        Idempotent.

        Raises:
            BackendError: some may not have been ended; the caller retries.
        """
        with self._lock:
            self._warm.end_all(self._client.deadline_s())

    def list_instances(self) -> list[Instance]:
        """Return the site's nodes; what EC2 may have left out is listed as it was."""
        with self._lock:
            until_s = self._client.deadline_s()
            answered = {one.instance_id: one for one in self._instances.describe(until_s=until_s)}
            if self._sightings.is_first:
                again = self._instances.describe(until_s=until_s)
                answered |= {one.instance_id: one for one in again}
            missing = self._sightings.list_missing(list(answered.values()))
            by_id = self._instances.describe(until_s=until_s, by="instance-id", values=missing)
            answered |= {one.instance_id: one for one in by_id}
            believed = self._sightings.take_listing(list(answered.values()), now_s=time.monotonic())
            self._listed_s = time.time()
            self._warm.finish_stops([one.found for one in believed if one.found.is_warm], until_s)
            return self._translate(believed)

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Set tags on the node's instance; an unknown node is ignored."""
        with self._lock:
            until_s = self._client.deadline_s()
            check_tags(tags)
            for one in self._find([node_id], until_s):
                if one.is_gone or one.is_warm:
                    continue
                try:
                    self._instances.tag([one.instance_id], tags, until_s=until_s)
                except Ec2CallError as exc:
                    raise BackendError(f"tags of {node_id} must be set; got: {exc}") from exc
                self._sightings.note(replace(one, tags=merge_tags(one.tags, tags)))

    def open_command_runner(self, node_id: NodeId) -> CommandRunner:
        """Return a runner of commands over SSH; its calls wait until the instance runs."""
        # Ray is loaded with it, and only launchers need it.
        from cluster.backends.ssh_runner import SshCommandRunner  # noqa: PLC0415

        return SshCommandRunner(
            locate=partial(self._locate, node_id),
            environment_at=partial(self._build_environment, node_id),
        )

    def _locate(self, node_id: NodeId) -> SshTarget | None:
        """Return the way to a node that runs, None for one that doesn't yet."""
        found = next((one for one in self._look_up(node_id) if one.state == "running"), None)
        if found is None or found.address is None:
            return None
        access = self._settings.ssh
        # Addresses go to other machines later, and their keys with them.
        alias = None if access.known_hosts else node_id
        return SshTarget(access, found.address, self._folder, host_key_alias=alias)

    def _build_environment(self, node_id: NodeId, address: str) -> dict[str, str]:
        found = self._look_up(node_id)
        if not found:
            raise NodeNotFoundError(f"{node_id!r} must be an instance of {self._site}; it is gone.")
        return build_node_environment(
            self._ports,
            read_spec(found[0].tags),
            address=address,
            extra={
                "TIDEGATE_LOST_HEAD_S_MAX": f"{self._settings.lost_head_s_max:g}",
                **self._settings.env,
            },
        )

    def _look_up(self, node_id: NodeId) -> list[Ec2Instance]:
        """Return the node's instances, from memory if they run already. Doesn't take the lock."""
        known = [one for one in self._sightings.find(node_id) if not one.is_warm]
        if any(one.state == "running" for one in known):
            return known
        until_s = self._client.deadline_s()
        found = self._instances.describe(until_s=until_s, by=f"tag:{TAG_NODE}", values=[node_id])
        return [one for one in found if not one.is_gone and not one.is_warm] or known

    def _market_of(self, spec: LaunchSpec) -> Market:
        market = self._markets.get(spec.node_type)
        if market is None:
            raise BackendError(
                f"node type {spec.node_type} must be one of site {self._site}; known are "
                f"{', '.join(sorted(self._markets)) or 'none'}."
            )
        return market

    def _find(self, node_ids: Sequence[NodeId], until_s: float) -> list[Ec2Instance]:
        """Return the instances of nodes, those that listings don't hold yet included."""
        answered = self._instances.describe(
            until_s=until_s, by=f"tag:{TAG_NODE}", values=list(node_ids)
        )
        there = {one.instance_id for one in answered}
        remembered = [one for node_id in node_ids for one in self._sightings.find(node_id)]
        return answered + [one for one in remembered if one.instance_id not in there]

    def _end(self, doomed: Sequence[Ec2Instance], until_s: float) -> None:
        try:
            done = self._instances.end([one.instance_id for one in doomed], until_s=until_s)
        except PartlyRefusedError as exc:
            self._sightings.note_ended(exc.done, now_s=time.monotonic())
            raise
        self._sightings.note_ended(done, now_s=time.monotonic())

    def _translate(self, believed: Sequence[Believed]) -> list[Instance]:
        """Return the nodes in our words; what can't be a node becomes a stray."""
        nodes: dict[NodeId, Instance] = {}
        strays: dict[str, Stray] = {}
        for one in sorted(believed, key=lambda each: each.found.launched_s or 0.0):
            found = one.found
            if found.is_warm:
                continue
            try:
                instance = to_instance(found, is_silent=one.is_silent)
            except UnreadableTagsError as exc:
                strays[found.instance_id] = Stray(found.instance_id, str(exc))
                continue
            if instance.spec.node_id in nodes:
                why = f"node {instance.spec.node_id} has another instance, which is older"
                strays[found.instance_id] = Stray(found.instance_id, why)
                continue
            nodes[instance.spec.node_id] = instance
        for instance_id in strays.keys() - self._strays.keys():
            logger.warning(
                "site %s: %s is no node: %s. Type `tidegate infra sweep` to see to it.",
                self._site,
                instance_id,
                strays[instance_id].why,
            )
        self._strays = strays
        return list(nodes.values())
