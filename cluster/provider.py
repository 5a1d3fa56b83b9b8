"""HybridNodeProvider: one Ray node provider over many sites.

Ray loads it by name from the cluster file (`provider.type: external`), on the operator's machine
for `ray up` and `ray down`, and in the autoscaler on the head. Questions are answered from the
ledger and orders are queued for their site's thread, so every call returns at once. Limits are
enforced here a last time, because everything that launches a node comes through here.

Each of the two machines has a ledger of its own. What both must know (which nodes there are, their
tags, cordons) is at the sites. On the head, the ledger is the truth and nothing ever waits. On the
operator's machine it is only rebuilt from the sites, so the first question waits for them.
"""

import atexit
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.backends.contract import CommandRunner, KeepsHosts, NodeBackend
from cluster.backends.open import open_backend, write_token
from cluster.boot_watch import WatchedRunner
from cluster.config import parse_cluster_config, parse_provider_section
from cluster.errors import (
    BackendError,
    ConfigError,
    LaunchRefusedError,
    NodeNotFoundError,
    NotLeaderError,
    SiteNotListedError,
)
from cluster.head_copy import build_head_copy, is_for_head, note_operator_key
from cluster.ledger import Books, Intent, Ledger
from cluster.limits import check_budget, check_single_head, check_site_room, price_of_type
from cluster.model import (
    TAG_CORDON,
    BootStage,
    ClusterName,
    Cordon,
    LaunchSpec,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
)
from cluster.owner import close_owner, open_owner
from cluster.site_reconcile import Conduct
from cluster.site_thread import SiteThread
from cluster.site_wait import ANSWER_S_MAX, wait_for_looks
from cluster.site_worker import Launch, SetTags, Terminate
from cluster.sites import end_warm_pool, find_host, list_prices, list_sites_of, open_sites
from cluster.store_place import Place, find_place

logger = logging.getLogger(__name__)

_FLUSH_S_MAX = 15.0
_SILENT_S_MAX = 30.0
_TAG_FENCE = "tidegate-fence"
_LISTED_PHASES = {NodePhase.INTENDED, NodePhase.LAUNCHED, NodePhase.RUNNING}


class Fence(Protocol):
    """The lease as launches and terminations need it (see `cluster.lease`)."""

    @property
    def token(self) -> int | None:
        """Return the lease's token while it is held, None once it is lost."""


class HybridNodeProvider(NodeProvider):  # type: ignore[misc] # Ray is untyped
    """Starts, lists and ends the nodes of all sites of one cluster. Thread-safe."""

    def __init__(
        self,
        provider_config: dict[str, Any],
        cluster_name: str,
        *,
        backends: Mapping[SiteName, NodeBackend] | None = None,
        poll_s: float | None = None,
        answer_s_max: float = ANSWER_S_MAX,
    ) -> None:
        super().__init__(provider_config, cluster_name)
        self._settings = parse_provider_section(provider_config)
        self._is_on_head = is_for_head(provider_config)
        self._cluster = ClusterName(cluster_name)
        self._answer_s_max = answer_s_max
        self._fence: Fence | None = None
        state_dir = Path(self._settings.state_dir).expanduser()
        # Opening the ledger is the replay: open intents of earlier processes are listed from the
        # first call on, as pending nodes, and their site's thread finds out what became of them.
        self._ledger = Ledger(self._find_ledger(state_dir))
        self._ledger.set_missing_prices(list_prices(self._settings))
        self._owner = open_owner()
        self._sites = open_sites(
            self._settings,
            backends or self._open_backends(state_dir),
            ledger=self._ledger,
            conduct=Conduct(
                owner=self._owner,
                is_operator=not self._is_on_head,
                is_alone=not self._is_on_head or self._settings.store.kind == "sqlite",
                may_act=self._may_act,
            ),
            poll_s=poll_s,
        )
        atexit.register(self._flush)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """End the sites' threads after what is queued. Nodes live on."""
        atexit.unregister(self._flush)
        for thread in self._sites.values():
            thread.stop(timeout_s=timeout_s)
        close_owner(self._owner)
        self._ledger.close()

    def use_lease(self, fence: Fence) -> None:
        """Act only while this lease is held: without it, nothing is launched or ended."""
        self._fence = fence

    # --- questions: answered from the ledger

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the ids of pending and running nodes whose tags match.

        Raises:
            StateError: the ledger can't be read; never an empty list instead, which would mean
                that all nodes are gone.
            ClickException: on an operator's machine, a site didn't answer.
        """
        self._wait_for_sites(self._sites_asked(tag_filters))
        return [
            record.node_id
            for record in self._ledger.list_open()
            if record.phase in _LISTED_PHASES and _has_tags(record, tag_filters)
        ]

    def nodes_for_teardown(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the ids of all nodes that aren't gone yet, those being ended included.

        "None" ends `ray down`, so an operator is told it only after another look at every site:
        the head's autoscaler may have launched while nodes were ended.
        """
        self._wait_for_sites(self._sites)
        remaining = self._list_remaining(tag_filters)
        if not remaining and not self._is_on_head:
            self._wait_for_sites(self._sites, begun_after_s=time.monotonic())
            remaining = self._list_remaining(tag_filters)
        return remaining

    def is_running(self, node_id: str) -> bool:
        """Return whether the site says that the node runs."""
        return self._phase_of(node_id) is NodePhase.RUNNING

    def is_terminated(self, node_id: str) -> bool:
        """Return whether the node is gone or going."""
        return self._phase_of(node_id) not in _LISTED_PHASES

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return Ray's tags of a node."""
        return dict(self._ledger.get(NodeId(node_id)).tags)

    def external_ip(self, node_id: str) -> str | None:
        """Return the node's address, None until its site knows it."""
        return self._ledger.get(NodeId(node_id)).address

    def internal_ip(self, node_id: str) -> str | None:
        """Return the node's address, None until its site knows it."""
        return self.external_ip(node_id)

    # --- orders: noted in the ledger, then queued for the site

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Set some of a node's tags and keep the others. Its site is told a little later."""
        self._ledger.merge_tags(NodeId(node_id), tags)
        self._send_tags(NodeId(node_id), tags)

    def cordon(self, name: str, cordon: Cordon | None) -> None:
        """Say what is wanted of a node, or of a host by its name; None = it takes work again.

        Returns once its site keeps it.

        Raises:
            NodeNotFoundError: neither a node nor a host has that name.
            BackendError: the site didn't take it in time.
        """
        host_site = find_host(self._settings, name)
        if host_site is not None:
            backend = self._sites[host_site].worker.backend
            if isinstance(backend, KeepsHosts):
                backend.cordon_host(name, cordon)
            return
        may_hold = list_sites_of(self._settings, name) or self._sites
        self._wait_for_sites({site: self._sites[site] for site in may_hold})
        thread = self._sites[self._ledger.get(NodeId(name)).site]
        self._ledger.set_cordon(NodeId(name), cordon)
        self._send_tags(NodeId(name), {TAG_CORDON: cordon or ""})
        if not thread.flush(timeout_s=self._answer_s_max):
            raise BackendError(
                f"node {name} must be marked within {self._answer_s_max:g} s; got: "
                f"{thread.worker.error or 'no answer from its site'}. Run the command again."
            )

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Launch nodes; see `create_node_with_resources_and_labels`."""
        self.create_node_with_resources_and_labels(node_config, tags, count, {}, {})

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Launch all of `count` nodes or none, if the limits allow. Returns before they exist.

        Raises:
            NodeLaunchException: a limit forbids it, in the words that `ray status -v` shows.
        """
        del resources, labels  # Ray hands them to the node itself when it starts there.
        node_type = NodeTypeName(tags[TAG_RAY_USER_NODE_TYPE])
        try:
            token = self._read_token()
            tags = {**tags, TAG_RAY_CLUSTER_NAME: self.cluster_name}
            if token is not None:
                tags[_TAG_FENCE] = str(token)
            intents = [self._build_intent(node_type, tags, node_config) for _ in range(count)]
            self._check_was_listed(intents)
            self._ledger.open_intents(
                intents, owner=self._owner, check=self._check(intents), fence=token
            )
        except (LaunchRefusedError, NotLeaderError) as exc:
            logger.warning("refused to launch %d x %s: %s", count, node_type, exc)
            category = exc.category if isinstance(exc, LaunchRefusedError) else "NotLeader"
            raise NodeLaunchException(category, str(exc), sys.exc_info()) from exc
        for intent in intents:
            logger.info("launching %s at %s", intent.node_id, intent.site)
            self._sites[intent.site].submit(Launch(self._build_spec(intent)))

    def terminate_node(self, node_id: str) -> None:
        """End a node. Returns before it is gone; one that is gone already is fine."""
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """End nodes. Returns before they are gone; those gone already are fine.

        Raises:
            NotLeaderError: another autoscaler holds the lease; nothing is ended.
        """
        token = self._read_token()
        by_site: dict[SiteName, list[NodeId]] = {}
        for node_id in map(NodeId, node_ids):
            try:
                self._ledger.mark_terminating(node_id, owner=self._owner, fence=token)
                by_site.setdefault(self._ledger.get(node_id).site, []).append(node_id)
            except NodeNotFoundError:
                logger.info("node %s has no record: nothing to end", node_id)
        for site, of_site in by_site.items():
            logger.info("ending %s at %s", ", ".join(of_site), site)
            self._sites[site].submit(Terminate(tuple(of_site)))

    def cleanup_cluster_resources(self) -> None:
        """End what sites keep beside nodes. Ray calls this at the end of `ray down`.

        Raises:
            ClickException: something is left at a site; it is named, because Ray only warns.
        """
        left = [error for thread in self._sites.values() if (error := end_warm_pool(thread))]
        if left:
            text = "; ".join(left)
            click.echo(f"{text}. Stopped machines still cost: run `ray down` again.", err=True)
            raise click.ClickException(text)

    # --- Ray's launcher

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the cluster file's content as it is, after checking all of it.

        Nothing is resolved here: Ray keeps the result in a shared temporary folder under a hash of
        the file, where another user or another home folder would find it. Only the path of the
        operator's key is noted, for the head's copy.

        Raises:
            ClickException: the file holds mistakes; all of them are listed.
        """
        try:
            parse_cluster_config(cluster_config, file="the cluster file")
        except ConfigError as exc:
            raise click.ClickException(str(exc)) from exc
        return note_operator_key(cluster_config)

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the content for the head, where paths and this provider's part are others."""
        return build_head_copy(cluster_config)

    def get_command_runner(
        self,
        log_prefix: str,
        node_id: str,
        auth_config: dict[str, Any],
        cluster_name: str,
        process_runner: Any,
        use_internal_ip: bool,  # noqa: FBT001 - Ray's signature
        docker_config: dict[str, Any] | None = None,
    ) -> CommandRunner:
        """Return the runner of commands on a node. It notes the node's boot stages."""
        del log_prefix, auth_config, cluster_name, process_runner, use_internal_ip, docker_config
        site = self._ledger.get(NodeId(node_id)).site

        def note(stage: BootStage, at_s: float) -> None:
            self._ledger.note_boot_stage(NodeId(node_id), stage, at_s)

        runner = self._sites[site].worker.backend.open_command_runner(NodeId(node_id))
        return WatchedRunner(runner, note)

    # --- inside

    def _find_ledger(self, state_dir: Path) -> Place:
        """Return where this process's ledger is: an operator's is only a cache, and always local.

        So `ray down` works with the head dead, and its database with it.
        """
        if not self._is_on_head:
            return state_dir / self._cluster / "ledger.db"
        return find_place(
            self._settings.store,
            state_dir=state_dir,
            cluster=self._cluster,
            environment=os.environ,
        )

    def _sites_asked(self, tag_filters: Mapping[str, str]) -> Mapping[SiteName, SiteThread]:
        """Return the sites whose nodes may match: a head lives at an owned site only.

        So commands for the head work while a cloud doesn't answer.
        """
        if tag_filters.get(TAG_RAY_NODE_KIND) != NODE_KIND_HEAD:
            return self._sites
        return {site: one for site, one in self._sites.items() if self._settings.sites[site].owned}

    def _wait_for_sites(
        self, sites: Mapping[SiteName, SiteThread], *, begun_after_s: float | None = None
    ) -> None:
        if self._is_on_head:
            return
        wait_for_looks(sites, begun_after_s=begun_after_s, answer_s_max=self._answer_s_max)
        # What this machine remembers may have been ended from another one meanwhile.
        doubtful = {site: one for site, one in sites.items() if one.worker.doubtful}
        if doubtful:
            now_s = time.monotonic()
            wait_for_looks(doubtful, begun_after_s=now_s, answer_s_max=self._answer_s_max)

    def _list_remaining(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Return the nodes that aren't gone, less those whose machine answers no more.

        What is left on such a machine is ended when somebody asks it again: `ray down` can't wait
        for it for ever.
        """
        given_up_s = time.time() - _SILENT_S_MAX
        remaining: list[str] = []
        for record in self._ledger.list_open():
            is_ending = record.phase is NodePhase.TERMINATING
            is_silent = record.node_id in self._sites[record.site].worker.silent
            if is_ending and is_silent and record.changed_s < given_up_s:
                logger.warning(
                    "node %s at %s answers no more, so it was not ended. When its machine is back, "
                    "run `ray down` again.",
                    record.node_id,
                    record.site,
                )
            elif _has_tags(record, tag_filters):
                remaining.append(record.node_id)
        return remaining

    def _check_was_listed(self, intents: Sequence[Intent]) -> None:
        """Refuse to launch at a site nobody has looked at: what is wanted may run there already."""
        for site in {intent.site for intent in intents}:
            thread = self._sites[site]
            if self._is_on_head and not thread.was_listed:
                raise SiteNotListedError(
                    f"site {site} must have been listed before a launch; got: "
                    f"{thread.worker.error or 'no answer yet'}. It is asked again all the time."
                )
        self._wait_for_sites({intent.site: self._sites[intent.site] for intent in intents})

    def _read_token(self) -> int | None:
        """Return the lease's token; None where no lease is in use.

        Raises:
            NotLeaderError: the lease is lost.
        """
        if self._fence is None:
            return None
        token = self._fence.token
        if token is None:
            raise NotLeaderError("the lease must be held to start or end nodes; it is lost.")
        return token

    def _may_act(self) -> bool:
        return self._fence is None or self._fence.token is not None

    def _send_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        site = self._ledger.get(node_id).site
        self._sites[site].submit(SetTags(node_id, tags))

    def _flush(self) -> None:
        """Let the sites take what is queued, before the process ends."""
        deadline_s = time.monotonic() + _FLUSH_S_MAX
        for site, thread in self._sites.items():
            if not thread.flush(timeout_s=max(0.0, deadline_s - time.monotonic())):
                logger.warning("site %s didn't take all orders in time; run it again", site)

    def _phase_of(self, node_id: str) -> NodePhase:
        try:
            return self._ledger.get(NodeId(node_id)).phase
        except NodeNotFoundError:
            return NodePhase.CLOSED

    def _build_intent(
        self, node_type: NodeTypeName, tags: dict[str, str], node_config: dict[str, Any]
    ) -> Intent:
        offer = self._settings.node_types.get(node_type)
        if offer is None:
            raise LaunchRefusedError(f"{node_type!r} must be in provider.node_types; it is not.")
        return Intent(
            node_id=NodeId(f"{node_type}-{secrets.token_hex(4)}"),
            site=SiteName(offer.site),
            node_type=node_type,
            is_head=tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD,
            usd_per_hour=price_of_type(self._settings, node_type),
            tags=tags,
            node_config=node_config,
        )

    def _build_spec(self, intent: Intent) -> LaunchSpec:
        return LaunchSpec(
            node_id=intent.node_id,
            cluster=self._cluster,
            site=intent.site,
            node_type=intent.node_type,
            is_head=intent.is_head,
            tags=intent.tags,
            node_config=intent.node_config,
        )

    def _check(self, intents: Sequence[Intent]) -> Callable[[Books], None]:
        """Return the check of the limits that runs while the ledger is locked."""

        def check(books: Books) -> None:
            check_single_head(books.open_nodes, intents)
            check_site_room(self._settings, books.open_nodes, intents)
            check_budget(self._settings, books, intents)

        return check

    def _open_backends(self, state_dir: Path) -> dict[SiteName, NodeBackend]:
        write_token(self._settings, state_dir / self._cluster)
        return {
            SiteName(name): open_backend(
                self._settings, SiteName(name), cluster=self._cluster, state_dir=state_dir
            )
            for name in self._settings.sites
        }


def _has_tags(record: NodeRecord, wanted: Mapping[str, str]) -> bool:
    return all(record.tags.get(name) == value for name, value in wanted.items())
