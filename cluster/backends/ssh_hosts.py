"""The hosts of one site: asks them, remembers what they said, leaves failing ones alone."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, ParamSpec

from cluster.at_once import map_at_once
from cluster.backend_settings import SshBackendSettings
from cluster.backends.node_environment import RAY_FOLDER
from cluster.backends.ssh_access import SshTarget, resolve_access
from cluster.backends.ssh_host import Claim, HostState, SshHostDoor
from cluster.backends.ssh_memory import HostMemory, KnownHost, Pauses
from cluster.errors import BackendError
from cluster.model import ClusterName, NodeId, NodeTypeName, SiteName

logger = logging.getLogger(__name__)

_HOSTS_AT_ONCE = 64

P = ParamSpec("P")


class SshHosts:
    """What is known of a site's hosts, and the doors to them. Thread-safe."""

    def __init__(
        self,
        settings: SshBackendSettings,
        *,
        site: SiteName,
        cluster: ClusterName,
        folder: Path,
        grace_s: int,
    ) -> None:
        self._settings = settings
        self._site = site
        self._cluster = cluster
        self._folder = folder
        self._grace_s = grace_s
        self.memory_file = folder / f"hosts-{site}.json"
        self._memory = HostMemory(self.memory_file)
        first_s, max_s = settings.set_aside_s, settings.set_aside_s_max
        # Hosts that can't be asked, and hosts that can but whose nodes came to nothing.
        self._pauses = Pauses(first_s=first_s, max_s=max_s)
        self._mistrusted = Pauses(first_s=first_s, max_s=max_s)
        self._lock = threading.RLock()
        self._set_apart_moved_hosts()

    def look(self) -> None:
        """Ask all hosts at once and remember what they say; those left alone aren't asked.

        Raises:
            BackendError: none answered, and of some nothing is known.
        """
        known = self.list_known()
        asked = [host for host in known if self.left_alone_s(host) == 0]
        said = map_at_once(self._ask, asked, threads_max=_HOSTS_AT_ONCE)
        heard = [host for host in said if host is not None]
        with self._lock:
            self._memory.update(heard, forget=self._list_forgotten(heard))
            unknown = [host.name for host in known if self._memory.get(host.name) is None]
            why = "; ".join(f"{name}: {self._pauses.explain(name)}" for name in unknown)
        if unknown and not heard:
            raise BackendError(f"a host of {self._site} must answer; none does. {why}")
        if unknown:
            logger.warning("site %s: a node there would be missed. %s", self._site, why)
        self._release_duplicates()

    def change(
        self,
        host: KnownHost,
        do: Callable[Concatenate[SshHostDoor, P], HostState],
        *args: P.args,
        **options: P.kwargs,
    ) -> KnownHost:
        """Return the host after something was done on it; a failure sets it aside.

        Raises:
            BackendError: it may have been done or not.
        """
        try:
            state = do(self._open_door(host), *args, **options)
        except BackendError as exc:
            with self._lock:
                self._pauses.note_failure(host.name, str(exc))
            raise
        changed = replace(host, state=state, as_of_s=time.monotonic())
        with self._lock:
            self._memory.update([changed])
        return changed

    def end_node(self, host: KnownHost, node_id: NodeId) -> KnownHost:
        """Return the host after a node was ended on it.

        Raises:
            BackendError: something of the node may be left, and then its claim is.
        """
        return self.change(
            host, SshHostDoor.end_node, node_id, self._cluster, grace_s=self._grace_s
        )

    def mistrust(self, host: KnownHost, why: str) -> None:
        """Give a host no node for a while: the next one would come to nothing too."""
        with self._lock:
            self._mistrusted.note_failure(host.name, why)

    def aim(self, host: KnownHost) -> SshTarget:
        """Return the way to a host."""
        return SshTarget(host.access, host.address, self._folder)

    def list_known(self) -> list[KnownHost]:
        """Return the hosts of the cluster file, then those taken out of it that are still nodes."""
        with self._lock:
            known = []
            for name, host in self._settings.hosts.items():
                access = resolve_access(self._settings.ssh, host)
                before = self._memory.get(name) or KnownHost(name, host.address, access)
                known.append(replace(before, address=host.address, access=access))
            return known + [one for one in self._memory.list_hosts() if self.is_removed(one)]

    def list_nodes(self) -> list[KnownHost]:
        """Return the hosts that are nodes of this cluster and site, one for each node."""
        with self._lock:
            hosts = [one for one in self._memory.list_hosts() if self._is_ours(one.claim)]
        hosts.sort(key=lambda host: (not self.is_removed(host), _rank_claim(host)))
        return list({host.claim.spec.node_id: host for host in hosts if host.claim}.values())

    def find_node(self, node_id: NodeId) -> list[KnownHost]:
        """Return the hosts that are claimed for a node of ours, the one it runs on first."""
        with self._lock:
            hosts = [one for one in self._memory.find_node(node_id) if self._is_ours(one.claim)]
        return sorted(hosts, key=_rank_claim, reverse=True)

    def is_removed(self, host: KnownHost) -> bool:
        """Return whether a host is out of the cluster file."""
        return host.name not in self._settings.hosts

    def read_type(self, host: KnownHost) -> NodeTypeName | None:
        """Return the type of node that a host may become, None for one out of the file."""
        settings = self._settings.hosts.get(host.name)
        return NodeTypeName(settings.node_type) if settings else None

    def left_alone_s(self, host: KnownHost) -> float:
        """Return for how many more seconds a host that failed is left alone; 0 = it isn't."""
        with self._lock:
            return self._pauses.left_s(host.name)

    def explain_failure(self, host: KnownHost) -> str:
        """Return how a host failed last, nothing if it works."""
        with self._lock:
            return self._pauses.explain(host.name)

    def explain_refusal(self, host: KnownHost) -> str | None:
        """Return why a host can't become a node now, None if it can."""
        with self._lock:
            for pauses, what in ((self._pauses, "left alone"), (self._mistrusted, "given no node")):
                if (left_s := pauses.left_s(host.name)) > 0:
                    return f"{what} for {left_s:.0f} s: {pauses.explain(host.name)}"
        if self.is_removed(host):
            return "out of the cluster file"
        if host.state is None:
            return "it never answered"
        if host.state.cordon is not None:
            return f"{host.state.cordon}; to undo: tidegate uncordon {host.name}"
        return self._explain_claim(host.name, host.claim) if host.claim else None

    def _explain_claim(self, name: str, claim: Claim) -> str:
        is_shared = claim.host != name and claim.host in self._settings.hosts
        shared = f", through a home folder shared with {claim.host}" if is_shared else ""
        return f"node {claim.spec.node_id} of cluster {claim.spec.cluster}{shared}"

    def _open_door(self, host: KnownHost) -> SshHostDoor:
        ray_folder = self._settings.env.get("TIDEGATE_RAY_TMP", RAY_FOLDER)
        return SshHostDoor(host.name, self.aim(host), ray_folder=ray_folder)

    def _ask(self, host: KnownHost) -> KnownHost | None:
        begun_s = time.monotonic()
        try:
            state = self._open_door(host).read_state()
        except BackendError as exc:
            logger.warning("site %s: %s", self._site, exc)
            with self._lock:
                self._pauses.note_failure(host.name, str(exc))
            return None
        with self._lock:
            self._pauses.note_success(host.name)
            if state.has_raylet:
                self._mistrusted.note_success(host.name)
        return replace(host, state=state, as_of_s=begun_s)

    def _set_apart_moved_hosts(self) -> None:
        """Keep a node whose host's name now stands for another address, under another name.

        Asked at the new address, it would seem gone while it still runs at the old one.
        """
        for host in self._memory.list_hosts():
            settings = self._settings.hosts.get(host.name)
            if settings and settings.address != host.address and self._is_ours(host.claim):
                apart = replace(host, name=f"{host.name} at {host.address}")
                self._memory.update([apart], forget=[host.name])

    def _list_forgotten(self, heard: Sequence[KnownHost]) -> list[str]:
        """Return the hosts to forget: out of the file, and nobody's node or seen by another name.

        A host that was only given another name shows its old claim under the new one.
        """
        seen = {_claim_id(host) for host in heard if host.claim and not self.is_removed(host)}
        return [
            host.name
            for host in [*self._memory.list_hosts(), *heard]
            if self.is_removed(host) and (not self._is_ours(host.claim) or _claim_id(host) in seen)
        ]

    def _release_duplicates(self) -> None:
        """Release hosts that were claimed for a node that runs on another one.

        A launch that doesn't hear from one host goes on to the next, while the first may have been
        claimed all the same.
        """
        with self._lock:
            hosts = [one for one in self._memory.list_hosts() if self._is_ours(one.claim)]
        for host in hosts:
            claim = host.claim
            if claim is None or self.left_alone_s(host) > 0:
                continue
            node_id = claim.spec.node_id
            if _claim_id(self.find_node(node_id)[0]) == claim.claim_id:
                continue
            logger.warning("site %s: host %s isn't needed for %s", self._site, host.name, node_id)
            try:
                self.end_node(host, node_id)
            except BackendError as exc:
                logger.warning("site %s: %s; it is tried again later", self._site, exc)

    def _is_ours(self, claim: Claim | None) -> bool:
        ours = (self._cluster, self._site)
        return claim is not None and (claim.spec.cluster, claim.spec.site) == ours


def _claim_id(host: KnownHost) -> str:
    return host.claim.claim_id if host.claim else ""


def _rank_claim(host: KnownHost) -> tuple[bool, float, str]:
    """Return which of several claims of one node holds: where Ray runs, then the latest."""
    has_raylet = host.state is not None and host.state.has_raylet
    claim = host.claim
    return (has_raylet, claim.claimed_s if claim else 0.0, _claim_id(host))
