"""HybridNodeProvider: one Ray node provider over many sites.

Ray loads it by name from the cluster file (`provider.type: external`), on the operator's machine
for `ray up` and `ray down`, and in the autoscaler on the head. Questions are answered from the
ledger and orders are queued for their site's thread, so every call returns at once. Limits are
enforced here a last time, because everything that launches a node comes through here.
"""

import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.backend_settings import FakeBackendSettings, ProcessBackendSettings
from cluster.backends.contract import CommandRunner, NodeBackend
from cluster.backends.fake import FakeBackend
from cluster.backends.process import ProcessBackend
from cluster.config import (
    ProviderSettings,
    parse_cluster_config,
    parse_provider_section,
)
from cluster.errors import (
    ConfigError,
    LaunchRefusedError,
    NodeNotFoundError,
)
from cluster.ledger import Books, Intent, Ledger
from cluster.limits import check_budget, check_single_head, check_site_room, price_of_type
from cluster.model import (
    ClusterName,
    LaunchSpec,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
)
from cluster.owner import close_owner, open_owner
from cluster.site_worker import Launch, SiteWorker, Terminate

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_LISTED_PHASES = {NodePhase.INTENDED, NodePhase.LAUNCHED, NodePhase.RUNNING}


class HybridNodeProvider(NodeProvider):  # type: ignore[misc] # Ray is untyped
    """Starts, lists and ends the nodes of all sites of one cluster. Thread-safe."""

    def __init__(
        self,
        provider_config: dict[str, Any],
        cluster_name: str,
        *,
        backends: Mapping[SiteName, NodeBackend] | None = None,
        poll_s: float = _POLL_S,
    ) -> None:
        super().__init__(provider_config, cluster_name)
        self._settings = parse_provider_section(provider_config)
        self._cluster = ClusterName(cluster_name)
        state_dir = Path(self._settings.state_dir).expanduser()
        # Opening the ledger is the replay: open intents of earlier processes are listed from the
        # first call on, as pending nodes, and their site's thread finds out what became of them.
        self._ledger = Ledger(state_dir / cluster_name / "ledger.db")
        self._owner = open_owner()
        self._workers = {
            site: SiteWorker(
                site,
                backend=backend,
                ledger=self._ledger,
                owner=self._owner,
                price_of=lambda node_type: price_of_type(self._settings, node_type),
                poll_s=poll_s,
            )
            for site, backend in (backends or self._open_backends(state_dir)).items()
        }
        for worker in self._workers.values():
            worker.start()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """End the sites' threads after what is queued. Nodes live on."""
        for worker in self._workers.values():
            worker.stop(timeout_s=timeout_s)
        close_owner(self._owner)
        self._ledger.close()

    # --- questions: answered from the ledger

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the ids of pending and running nodes whose tags match.

        Raises:
            StateError: the ledger can't be read; never an empty list instead, which would mean
                that all nodes are gone.
        """
        return [
            record.node_id
            for record in self._ledger.list_open()
            if record.phase in _LISTED_PHASES and _has_tags(record, tag_filters)
        ]

    def nodes_for_teardown(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the ids of all nodes that aren't gone yet, those being ended included."""
        return [
            record.node_id for record in self._ledger.list_open() if _has_tags(record, tag_filters)
        ]

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
        """Set some of a node's tags and keep the others."""
        self._ledger.merge_tags(NodeId(node_id), tags)

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
        tags = {**tags, TAG_RAY_CLUSTER_NAME: self.cluster_name}
        try:
            intents = [self._build_intent(node_type, tags, node_config) for _ in range(count)]
            self._ledger.open_intents(intents, owner=self._owner, check=self._check(intents))
        except LaunchRefusedError as exc:
            logger.warning("refused to launch %d x %s: %s", count, node_type, exc)
            raise NodeLaunchException(exc.category, str(exc), sys.exc_info()) from exc
        for intent in intents:
            logger.info("launching %s at %s", intent.node_id, intent.site)
            self._workers[intent.site].submit(Launch(self._build_spec(intent)))

    def terminate_node(self, node_id: str) -> None:
        """End a node. Returns before it is gone; one that is gone already is fine."""
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """End nodes. Returns before they are gone; those gone already are fine."""
        by_site: dict[SiteName, list[NodeId]] = {}
        for node_id in map(NodeId, node_ids):
            try:
                self._ledger.mark_terminating(node_id, owner=self._owner)
                by_site.setdefault(self._ledger.get(node_id).site, []).append(node_id)
            except NodeNotFoundError:
                logger.info("node %s has no record: nothing to end", node_id)
        for site, of_site in by_site.items():
            logger.info("ending %s at %s", ", ".join(of_site), site)
            self._workers[site].submit(Terminate(tuple(of_site)))

    # --- Ray's launcher

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the cluster file's content as it is, after checking all of it.

        Nothing is resolved here: Ray keeps the result in a shared temporary folder under a hash of
        the file, where another user or another home folder would find it.

        Raises:
            ClickException: the file holds mistakes; all of them are listed.
        """
        try:
            parse_cluster_config(cluster_config, file="the cluster file")
        except ConfigError as exc:
            raise click.ClickException(str(exc)) from exc
        return cluster_config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the content for the head, where `~` is another folder: `state_dir` absolute."""
        state_dir = Path(self._settings.state_dir).expanduser()
        provider = {**cluster_config["provider"], "state_dir": str(state_dir)}
        return {**cluster_config, "provider": provider}

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
        """Return the runner of commands on a node."""
        del log_prefix, auth_config, cluster_name, process_runner, use_internal_ip, docker_config
        site = self._ledger.get(NodeId(node_id)).site
        return self._workers[site].backend.open_command_runner(NodeId(node_id))

    # --- inside

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
        return {
            SiteName(name): _open_backend(self._settings, SiteName(name), self._cluster, state_dir)
            for name in self._settings.sites
        }


def _has_tags(record: NodeRecord, wanted: Mapping[str, str]) -> bool:
    return all(record.tags.get(name) == value for name, value in wanted.items())


def _open_backend(
    settings: ProviderSettings, site: SiteName, cluster: ClusterName, state_dir: Path
) -> NodeBackend:
    backend = settings.sites[site].backend
    if isinstance(backend, FakeBackendSettings):
        return FakeBackend(backend)
    if settings.ports is None:
        raise ConfigError(f"provider.ports must be given: nodes of {site} need pinned ports.")
    if not isinstance(backend, ProcessBackendSettings):
        raise ConfigError(f"provider.sites.{site}.backend must be one of process, fake.")
    return ProcessBackend(
        backend, site=site, cluster=cluster, state_dir=state_dir, ports=settings.ports
    )
