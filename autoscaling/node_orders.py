"""What follows from a tick's report beside launches: stages and ends noted, nodes drained.

Both may take seconds (a ledger elsewhere, a GCS that is busy), so a thread does them, one after
another; the tick only hands over its report. What fails is tried again with the next report.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from autoscaling.record import NodeSummary, SchedulerReport
from cluster.errors import NodeNotFoundError
from cluster.model import TAG_NOTICED, TAG_RELEASED, BootStage, Cordon, NodeId

_log = logging.getLogger(__name__)

_QUEUED_MAX = 4
_JOINED_STATES = {"RAY_RUNNING", "RAY_STOP_REQUESTED", "RAY_STOPPING"}
_DRAIN_AGAIN_S = 60.0


class StageLedger(Protocol):
    """Where boot stages, and why nodes went, are kept: the ledger."""

    def note_boot_stage(self, node_id: NodeId, stage: BootStage, at_s: float) -> None:
        """Note when a node reached a stage; what was noted first stays."""

    def merge_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Set some of a node's tags and keep the others."""


class NodeOrders:
    """Carries out what reports ask for. `drain` asks Ray to empty a node: its id, and why."""

    def __init__(
        self,
        ledger: StageLedger,
        drain: Callable[[str, str], None],
        *,
        list_serving: Callable[[], Iterable[str]],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._drain = drain
        self._list_serving = list_serving
        self._now_s = now_s
        self._noted: set[tuple[str, BootStage]] = set()
        self._tagged: set[tuple[str, str]] = set()
        self._drained: dict[str, float] = {}
        self._queue: queue.Queue[SchedulerReport] = queue.Queue(_QUEUED_MAX)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="node-orders", daemon=True).start()

    def submit(self, report: SchedulerReport) -> None:
        """Hand over a report; it is left out if the thread is behind: the next one says it too."""
        try:
            self._queue.put_nowait(report)
        except queue.Full:
            _log.debug("node orders are behind; a report is left out")

    def carry_out(self, report: SchedulerReport) -> None:
        """Note stages and ends that are new, and drain nodes that should be."""
        for node_id in report.released:
            self._tag(node_id, TAG_RELEASED)
        serving = set(self._list_serving())
        for node in report.nodes:
            if node.ray_id is None or node.state not in _JOINED_STATES:
                continue
            self._note(node, BootStage.JOINED)
            if node.ray_id in serving:
                self._note(node, BootStage.SERVING)
            if node.is_noticed:
                self._tag(node.id, TAG_NOTICED)
            if node.cordon == Cordon.DRAINING and node.state == "RAY_RUNNING":
                self._empty(node, node.ray_id)

    def _note(self, node: NodeSummary, stage: BootStage) -> None:
        if (node.id, stage) in self._noted:
            return
        try:
            self._ledger.note_boot_stage(NodeId(node.id), stage, self._now_s())
        except NodeNotFoundError:
            _log.warning("%s has %s and no record in the ledger", node.id, stage)
        self._noted.add((node.id, stage))

    def _tag(self, node_id: str, tag: str) -> None:
        """Remember in the ledger why a node goes: those who count losses must know."""
        if (node_id, tag) in self._tagged:
            return
        try:
            self._ledger.merge_tags(NodeId(node_id), {tag: "true"})
        except NodeNotFoundError:
            _log.warning("%s has the tag %s and no record in the ledger", node_id, tag)
        self._tagged.add((node_id, tag))

    def _empty(self, node: NodeSummary, ray_id: str) -> None:
        now_s = self._now_s()
        if now_s - self._drained.get(ray_id, -math.inf) < _DRAIN_AGAIN_S:
            return
        _log.info("draining %s: an operator wants it empty", node.id)
        self._drain(ray_id, f"{node.id} is drained by an operator")
        self._drained[ray_id] = now_s

    def _run(self) -> None:
        while True:
            report = self._queue.get()
            try:
                self.carry_out(report)
            except Exception:  # noqa: BLE001 - the thread must live; the next report asks again
                _log.exception("carrying out a report failed, it is tried again")
