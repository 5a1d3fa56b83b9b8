"""Nodes on this machine: each a folder and the processes that carry its mark.

The folder is the truth: nothing is kept in memory, so any process of this user can list and end
the nodes, whoever started them. A worker whose Ray has died counts as stopped, as a machine that
was switched off does; a head is kept, because `ray up` repairs it.
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.at_once import map_at_once
from cluster.backend_settings import ProcessBackendSettings
from cluster.backends.process_node import ClusterFolder, NodeFolder, ProcessInstance
from cluster.backends.process_runner import ProcessCommandRunner
from cluster.config import PortSettings
from cluster.errors import BackendError
from cluster.model import (
    ClusterName,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    SiteName,
    SoldOut,
    merge_tags,
    read_cordon,
)
from cluster.processes import MARK_NODE, end_marked

logger = logging.getLogger(__name__)

_GRACE_S = 5.0
_TERMINATIONS_AT_ONCE = 8
_LOGS_KEPT = 10


class ProcessBackend:
    """One site whose nodes are processes of this machine. Thread-safe."""

    # The folder exists before `launch` returns, so a listing never lags behind.
    settle_s = 0.0

    def __init__(
        self,
        settings: ProcessBackendSettings,
        *,
        site: SiteName,
        cluster: ClusterName,
        state_dir: Path,
        ports: PortSettings,
        grace_s: float = _GRACE_S,
    ) -> None:
        self._settings = settings
        self._site = site
        self._grace_s = grace_s
        self._folder = ClusterFolder(path=state_dir / cluster, cluster=cluster, ports=ports)
        self._folder.ensure_exists()

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        """Return nothing: this machine never sells out."""
        return ()

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Do nothing."""

    def launch(self, spec: LaunchSpec) -> None:
        """Create the node's folder. Idempotent; the node is ready `boot_s` later."""
        node = NodeFolder(self._folder, spec.node_id)
        if node.read_instance() is not None:
            return
        try:
            node.path.mkdir(exist_ok=True, mode=0o700)
            slot = self._folder.claim_slot(spec.node_id)
            launched_s = time.time()
            ready_s = launched_s + self._settings.boot_s
            instance = ProcessInstance(spec, slot, launched_s, ready_s)
            node.write(instance, extra_env=self._settings.env)
        except OSError as exc:
            raise BackendError(f"{node.path} must be writable; got: {exc}.") from exc

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        """End every process with the nodes' marks and remove their folders. Idempotent."""
        map_at_once(self._terminate_one, node_ids, threads_max=_TERMINATIONS_AT_ONCE)

    def list_instances(self) -> list[Instance]:
        """Return the nodes of this site that have a folder."""
        with_raylet = _list_nodes_with_raylet()
        instances = []
        try:
            for folder in self._folder.nodes.iterdir():
                node = NodeFolder(self._folder, NodeId(folder.name))
                written = node.read_instance()
                if written is not None and written.spec.site == self._site:
                    state = _read_state(node, written, has_raylet=node.node_id in with_raylet)
                    instances.append(
                        Instance(
                            written.spec,
                            state,
                            address=written.address,
                            launched_s=written.launched_s,
                            cordon=read_cordon(written.spec.tags),
                        )
                    )
        except OSError as exc:
            raise BackendError(f"{self._folder.nodes} must be readable; got: {exc}.") from exc
        return instances

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Keep tags in the node's folder."""
        node = NodeFolder(self._folder, node_id)
        with self._folder.locked():
            written = node.read_instance()
            if written is not None:
                spec = replace(written.spec, tags=merge_tags(written.spec.tags, tags))
                node.write_instance(replace(written, spec=spec))

    def open_command_runner(self, node_id: NodeId) -> ProcessCommandRunner:
        """Return a runner of commands in the node's environment."""
        return ProcessCommandRunner(NodeFolder(self._folder, node_id))

    def _terminate_one(self, node_id: NodeId) -> None:
        node = NodeFolder(self._folder, node_id)
        try:
            ended = end_marked(MARK_NODE, node_id, grace_s=self._grace_s)
            logger.info("ended node %s and its %d processes", node_id, len(ended))
            if node.path.exists():
                self._remove_folder(node)
        except (OSError, RuntimeError) as exc:
            raise BackendError(f"node {node_id} must end; got: {exc}.") from exc

    def _remove_folder(self, node: NodeFolder) -> None:
        """Keep Ray's logs and delete the rest; the node is gone with the first, atomic step."""
        gone = self._folder.gone / node.node_id
        shutil.rmtree(gone, ignore_errors=True)
        node.path.rename(gone)
        self._folder.release_slot(node.node_id)
        for logs in (gone / "ray").glob("session_2*/logs"):
            shutil.rmtree(self._folder.logs / node.node_id, ignore_errors=True)
            logs.rename(self._folder.logs / node.node_id)
        shutil.rmtree(gone, ignore_errors=True)
        self._forget_old_logs()

    def _forget_old_logs(self) -> None:
        kept = sorted(self._folder.logs.iterdir(), key=lambda entry: entry.stat().st_mtime)
        for old in kept[:-_LOGS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _read_state(node: NodeFolder, written: ProcessInstance, *, has_raylet: bool) -> InstanceState:
    if time.time() < written.ready_s:
        return InstanceState.BOOTING
    if node.started_file.exists() and not has_raylet and not written.spec.is_head:
        return InstanceState.STOPPED
    return InstanceState.RUNNING


def _list_nodes_with_raylet() -> set[str]:
    """Return the marks of all live raylets of this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _read_or_empty(entry / "comm").strip() == "raylet":
            for variable in _read_or_empty(entry / "environ").split("\0"):
                name, _, value = variable.partition("=")
                if name == MARK_NODE:
                    found.add(value)
    return found


def _read_or_empty(file: Path) -> str:
    """Return a file of /proc; nothing for a process that is gone or not ours."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
