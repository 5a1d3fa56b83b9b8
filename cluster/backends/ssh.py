"""Nodes on machines of our own, reached over SSH.

A machine becomes a node when a claim is written on it and is free again when the claim is gone, so
the truth is on the machines: it survives the head, and `ray down` finds it from anywhere. A host
that can't be asked is reported as it was when it last could. A host that fails is left alone for a
while, longer each time, and comes back by itself.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.at_once import map_at_once
from cluster.backend_settings import SshBackendSettings
from cluster.backends.node_environment import build_node_environment
from cluster.backends.ssh_access import SshTarget
from cluster.backends.ssh_host import Claim, HostState, SshHostDoor
from cluster.backends.ssh_hosts import SshHosts
from cluster.backends.ssh_memory import KnownHost
from cluster.backends.ssh_runner import SshCommandRunner
from cluster.config import PortSettings
from cluster.errors import BackendError, NoCapacityError, NodeNotFoundError
from cluster.model import (
    ClusterName,
    Cordon,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    NodeTypeName,
    SiteName,
    SoldOut,
    merge_tags,
    read_cordon,
)

logger = logging.getLogger(__name__)

_TERMINATIONS_AT_ONCE = 32
_SWAPS_MAX = 5
_GRACE_S = 5
_FULL_RETRY_S = 30.0
_TAG_STATUS = "ray-node-status"
_STATUS_READY = "up-to-date"


class SshBackend:
    """One site whose nodes are machines that are there already. Thread-safe."""

    # The claim exists before `launch` returns, and a silent host is remembered.
    settle_s = 0.0

    def __init__(
        self,
        settings: SshBackendSettings,
        *,
        site: SiteName,
        cluster: ClusterName,
        state_dir: Path,
        ports: PortSettings,
        grace_s: int = _GRACE_S,
    ) -> None:
        self._settings = settings
        self._site = site
        self._cluster = cluster
        self._ports = ports
        self._hosts = SshHosts(
            settings, site=site, cluster=cluster, folder=state_dir / cluster, grace_s=grace_s
        )

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        """Return nothing: a host that is taken is no offering."""
        return ()

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Do nothing."""

    def launch(self, spec: LaunchSpec) -> None:
        """Claim a free, healthy host of the node's type. Idempotent by the node's id.

        Raises:
            NoCapacityError: no host is free; says for each host why.
            BackendError: hosts that seemed free failed while they were claimed.
        """
        self._hosts.look()
        if self._hosts.find_node(spec.node_id):
            return
        failures: list[str] = []
        for host in self._hosts.list_known():
            if self._hosts.read_type(host) != spec.node_type or self._hosts.explain_refusal(host):
                continue
            try:
                claimed = self._hosts.change(host, SshHostDoor.claim, spec).claim
            except BackendError as exc:
                # Whether it is claimed now is unknown. If so, a look after this releases it.
                failures.append(f"{host.name}: {exc}")
                continue
            if claimed and (claimed.spec.node_id, claimed.spec.cluster) == (
                spec.node_id,
                self._cluster,
            ):
                logger.info("host %s is node %s now", host.name, spec.node_id)
                return
        if failures:
            raise BackendError(f"a host must take {spec.node_id}; got: {'; '.join(failures)}")
        raise self._explain_full(spec.node_type)

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        """End everything of the nodes and give up their claims. Idempotent.

        Raises:
            BackendError: the host of one of them can't be reached.
        """
        self._hosts.look()
        pairs = [(host, one) for one in node_ids for host in self._hosts.find_node(one)]
        said = map_at_once(lambda pair: self._end(*pair), pairs, threads_max=_TERMINATIONS_AT_ONCE)
        failures = [why for why in said if why]
        if failures:
            raise BackendError("; ".join(failures))

    def list_instances(self) -> list[Instance]:
        """Return the nodes of this site, one for each claim of this cluster on a host.

        Raises:
            BackendError: no host can be asked, and nothing is remembered of one.
        """
        self._hosts.look()
        return [
            self._describe(host, host.claim, host.state)
            for host in self._hosts.list_nodes()
            if host.claim and host.state
        ]

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Keep tags in the node's claim."""
        for host in self._find_or_look(node_id):
            self._set_tags(host, node_id, tags)

    def cordon_host(self, name: str, mark: Cordon | None) -> None:
        """Write on a host, named by itself or by its node, what an operator wants of it.

        Raises:
            NodeNotFoundError: no such host and no such node.
            BackendError: the host can't be reached.
        """
        named = [host for host in self._hosts.list_known() if host.name == name]
        hosts = named or self._find_or_look(NodeId(name))
        if not hosts:
            names = ", ".join(sorted(self._settings.hosts))
            raise NodeNotFoundError(
                f"{name!r} must be a host or a node of site {self._site}; its hosts are {names}."
            )
        for host in hosts:
            self._hosts.change(host, SshHostDoor.mark_cordon, mark)

    def open_command_runner(self, node_id: NodeId) -> SshCommandRunner:
        """Return a runner of commands on the node's host."""
        return SshCommandRunner(
            locate=lambda: self._locate(node_id),
            environment_at=lambda address: self._build_environment(node_id, address),
        )

    def _find_or_look(self, node_id: NodeId) -> list[KnownHost]:
        hosts = self._hosts.find_node(node_id)
        if not hosts:
            self._hosts.look()
            hosts = self._hosts.find_node(node_id)
        return hosts

    def _locate(self, node_id: NodeId) -> SshTarget | None:
        hosts = self._hosts.find_node(node_id)
        return self._hosts.aim(hosts[0]) if hosts else None

    def _build_environment(self, node_id: NodeId, address: str) -> dict[str, str]:
        claim = next((host.claim for host in self._hosts.find_node(node_id)), None)
        if claim is None:
            raise NodeNotFoundError(f"{node_id!r} must be a node of {self._site}; it is gone.")
        return build_node_environment(
            self._ports, claim.spec, address=address, extra=self._settings.env
        )

    def _end(self, host: KnownHost, node_id: NodeId) -> str | None:
        """Return why a node can't be ended, None once it is."""
        why = self._hosts.explain_failure(host) if self._hosts.left_alone_s(host) > 0 else ""
        if not why:
            try:
                self._hosts.end_node(host, node_id)
            except BackendError as exc:
                why = str(exc)
        if not why:
            logger.info("ended node %s on host %s", node_id, host.name)
            if not _has_run_ray(host):
                self._hosts.mistrust(host, f"node {node_id} never ran Ray there")
            return None
        return (
            f"node {node_id} on host {host.name} must end; got: {why} If the host is gone for "
            f"good, delete {host.name!r} from the cluster file and from {self._hosts.memory_file}."
        )

    def _set_tags(self, host: KnownHost, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Set tags in one claim: read, change, and put back if nobody was faster."""
        for _ in range(_SWAPS_MAX):
            claim = host.claim
            if claim is None or claim.spec.node_id != node_id:
                return
            wanted = merge_tags(claim.spec.tags, tags)
            host = self._hosts.change(host, SshHostDoor.set_tags, claim, wanted)
            if host.claim and host.claim.spec.tags == wanted:
                return
        raise BackendError(f"the claim on host {host.name} must hold still; it changes all along.")

    def _describe(self, host: KnownHost, claim: Claim, state: HostState) -> Instance:
        wishes = {state.cordon, read_cordon(claim.spec.tags)}
        if self._hosts.is_removed(host):
            wishes.add(Cordon.DRAINING)
        return Instance(
            spec=claim.spec,
            state=_read_instance_state(claim, state),
            address=host.address,
            launched_s=claim.claimed_s,
            offering=host.name,
            cordon=next((one for one in (Cordon.DRAINING, Cordon.CORDONED) if one in wishes), None),
            is_silent=self._hosts.left_alone_s(host) > 0,
        )

    def _explain_full(self, node_type: NodeTypeName) -> NoCapacityError:
        of_type = [
            one for one in self._hosts.list_known() if self._hosts.read_type(one) == node_type
        ]
        why = [f"{one.name}: {self._hosts.explain_refusal(one) or 'just taken'}" for one in of_type]
        waits = [left_s for one in of_type if (left_s := self._hosts.left_alone_s(one)) > 0]
        return NoCapacityError(
            f"site {self._site} must have a free host of type {node_type}; got: "
            f"{'; '.join(why) or 'no host of that type'}.",
            retry_s=min([*waits, _FULL_RETRY_S]),
        )


def _read_instance_state(claim: Claim, state: HostState) -> InstanceState:
    """Return STOPPED for a worker on which Ray ran and runs no more; `ray up` repairs a head."""
    was_started = state.lost_raylet or claim.spec.tags.get(_TAG_STATUS) == _STATUS_READY
    if was_started and not state.has_raylet and not claim.spec.is_head:
        return InstanceState.STOPPED
    return InstanceState.RUNNING


def _has_run_ray(host: KnownHost) -> bool:
    if host.claim is None or host.state is None:
        return False
    is_ready = host.claim.spec.tags.get(_TAG_STATUS) == _STATUS_READY
    return host.state.has_raylet or host.state.lost_raylet or is_ready
