"""Nodes in memory: for plans, simulations and tests. Records calls, fails and hangs on request.

It can be told to misbehave as real sites do: refuse, raise after the launch took effect, hang
until released, or list late.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.backend_settings import FakeBackendSettings
from cluster.errors import NodeNotFoundError
from cluster.model import (
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    SoldOut,
    merge_tags,
    read_cordon,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call a backend received."""

    name: str
    node_ids: tuple[NodeId, ...] = ()


@dataclass(slots=True)
class _Node:
    spec: LaunchSpec
    launched_s: float


class FakeBackend:
    """A site without machines. Thread-safe."""

    def __init__(
        self,
        settings: FakeBackendSettings | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        settle_s: float = 0.0,
        list_lag_s: float = 0.0,
    ) -> None:
        self._boot_s = (settings or FakeBackendSettings(kind="fake")).boot_s
        self._now_s = now_s
        self._settle_s = settle_s
        self._list_lag_s = list_lag_s
        self._nodes: dict[NodeId, _Node] = {}
        self._failures: dict[str, deque[Exception]] = {}
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._released.set()
        self.calls: list[Call] = []
        self.commands: list[tuple[NodeId, str]] = []

    @property
    def settle_s(self) -> float:
        """Return how long after a launch the listing may still miss the instance."""
        return self._settle_s

    def fail_next(self, name: str, error: Exception) -> None:
        """Make the next call of that name raise, without effect; repeat for several."""
        self._failures.setdefault(name, deque()).append(error)

    def hang(self) -> None:
        """Make every call block until `release`."""
        self._released.clear()

    def release(self) -> None:
        """Let blocked calls go on."""
        self._released.set()

    def stop_instance(self, node_id: NodeId) -> None:
        """Take an instance away behind everybody's back, as a spot interruption does."""
        with self._lock:
            self._nodes.pop(node_id, None)

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        """Return nothing: this machine never sells out."""
        return ()

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Do nothing."""

    def launch(self, spec: LaunchSpec) -> None:
        """Remember a node."""
        self._enter("launch", (spec.node_id,))
        with self._lock:
            self._nodes.setdefault(spec.node_id, _Node(spec, self._now_s()))

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        """Forget nodes."""
        self._enter("terminate", tuple(node_ids))
        with self._lock:
            for node_id in node_ids:
                self._nodes.pop(node_id, None)

    def list_instances(self) -> list[Instance]:
        """Return the remembered nodes, booting until their boot time is over."""
        self._enter("list_instances", ())
        with self._lock:
            visible_s = self._now_s() - self._list_lag_s
            seen = [node for node in self._nodes.values() if node.launched_s <= visible_s]
            return [self._describe(node) for node in seen]

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Keep tags with the node."""
        self._enter("set_tags", (node_id,))
        with self._lock:
            node = self._nodes.get(node_id)
            if node is not None:
                node.spec = replace(node.spec, tags=merge_tags(node.spec.tags, tags))

    def open_command_runner(self, node_id: NodeId) -> "FakeCommandRunner":
        """Return a runner that writes commands down."""
        return FakeCommandRunner(self, node_id)

    def note_command(self, node_id: NodeId, command: str) -> None:
        """Write a command down."""
        with self._lock:
            if node_id not in self._nodes:
                raise NodeNotFoundError(f"{node_id!r} must be a running node; it is gone.")
            self.commands.append((node_id, command))

    def _enter(self, name: str, node_ids: tuple[NodeId, ...]) -> None:
        with self._lock:
            self.calls.append(Call(name, node_ids))
        self._released.wait()
        failures = self._failures.get(name)
        if failures:
            raise failures.popleft()

    def _describe(self, node: _Node) -> Instance:
        if self._now_s() - node.launched_s < self._boot_s:
            return Instance(node.spec, InstanceState.BOOTING, cordon=read_cordon(node.spec.tags))
        return Instance(
            node.spec,
            InstanceState.RUNNING,
            address=_fake_address(node.spec.node_id),
            cordon=read_cordon(node.spec.tags),
        )


@dataclass(frozen=True, slots=True)
class FakeCommandRunner:
    """Writes commands down instead of running them."""

    backend: FakeBackend = field(repr=False)
    node_id: NodeId

    def run(self, cmd: str | None = None, *_positional: Any, **_options: Any) -> str:
        """Note the command; its output is empty."""
        self.backend.note_command(self.node_id, cmd or "")
        return ""

    def run_rsync_up(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Note the copy."""
        del options
        self.backend.note_command(self.node_id, f"rsync-up {source} {target}")

    def run_rsync_down(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Note the copy."""
        del options
        self.backend.note_command(self.node_id, f"rsync-down {source} {target}")

    def remote_shell_command_str(self) -> str:
        """Return a command that says there is no shell."""
        return "echo a fake node has no shell"

    def run_init(
        self, *, as_head: bool, file_mounts: Mapping[str, str], sync_run_yet: bool
    ) -> bool | None:
        """Do nothing."""
        del as_head, file_mounts, sync_run_yet
        return None


def _fake_address(node_id: NodeId) -> str:
    """Return a documentation address (RFC 5737) that differs between nodes of one run."""
    return f"192.0.2.{sum(node_id.encode()) % 254 + 1}"
