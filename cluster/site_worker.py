"""One site's thread: does what was queued for the site, and between that compares it with reality.

Everything slow about a site happens here, so that a site that hangs delays nobody else. What the
thread learns goes into the ledger, which is where all questions are answered from.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from cluster.backends.contract import NodeBackend
from cluster.errors import NoCapacityError, TidegateError
from cluster.ledger import Ledger
from cluster.model import (
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
)
from cluster.owner import is_alive

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the node of an intent."""

    spec: LaunchSpec


@dataclass(frozen=True, slots=True)
class Terminate:
    """End nodes."""

    node_ids: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class _Stop:
    """End the thread."""


class SiteWorker:
    """The queue and the thread of one site."""

    def __init__(
        self,
        site: SiteName,
        *,
        backend: NodeBackend,
        ledger: Ledger,
        owner: str,
        price_of: Callable[[NodeTypeName], Decimal | None],
        poll_s: float,
    ) -> None:
        self.backend = backend
        self._site = site
        self._ledger = ledger
        self._owner = owner
        self._price_of = price_of
        self._poll_s = poll_s
        # Launches that failed and whose intent is still open, each with its error.
        self._failed: dict[NodeId, Exception] = {}
        self._queue: queue.SimpleQueue[Launch | Terminate | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"site-{site}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, task: Launch | Terminate) -> None:
        """Queue a task; returns at once."""
        self._queue.put(task)

    def stop(self, *, timeout_s: float) -> None:
        """Ask the thread to end after what is queued, and wait that long for it."""
        self._queue.put(_Stop())
        self._thread.join(timeout_s)

    def _run(self) -> None:
        next_look_s = time.monotonic()
        while True:
            task = self._take(timeout_s=max(0.0, next_look_s - time.monotonic()))
            if isinstance(task, _Stop):
                return
            if isinstance(task, Launch):
                self._guarded(partial(self._launch, task.spec))
            elif isinstance(task, Terminate):
                self._guarded(partial(self._terminate, task.node_ids))
            self._guarded(self._reconcile)
            next_look_s = time.monotonic() + self._poll_s

    def _take(self, *, timeout_s: float) -> Launch | Terminate | _Stop | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _guarded(self, step: Callable[[], None]) -> None:
        """Do one step; a site's failure is logged and the thread lives on to try again."""
        try:
            step()
        except TidegateError as exc:
            logger.warning("site %s: %s", self._site, exc)
        except Exception:
            # The thread must survive anything: without it, the site's nodes would run unwatched.
            logger.exception("site %s: unexpected failure", self._site)

    def _launch(self, spec: LaunchSpec) -> None:
        try:
            if self._ledger.get(spec.node_id).phase is not NodePhase.INTENDED:
                return
            self.backend.launch(spec)
        except Exception as exc:
            # Whatever failed, nobody else closes this intent: its owner is alive.
            self._failed[spec.node_id] = exc
            self._guarded(partial(self._settle_failed_launch, spec.node_id, exc))
            raise
        self._ledger.mark_launched(spec.node_id)

    def _settle_failed_launch(self, node_id: NodeId, error: Exception) -> None:
        """End what a failed launch may have left, then close its intent.

        Whether the site started something is unknown, so it is ended first: it is idempotent. If
        that fails too, or the ledger can't be written, the next look begins with another try.
        """
        phase = self._ledger.get(node_id).phase
        if phase is NodePhase.INTENDED and isinstance(error, NoCapacityError):
            self._ledger.mark_closed(node_id, why=f"no capacity: {error}")
        elif phase in {NodePhase.INTENDED, NodePhase.TERMINATING}:
            self._ledger.mark_terminating(node_id, owner=self._owner)
            self.backend.terminate([node_id])
            self._ledger.mark_closed(node_id, why=f"launch failed: {error}")
        del self._failed[node_id]

    def _terminate(self, node_ids: Sequence[NodeId]) -> None:
        if node_ids:
            self.backend.terminate(node_ids)

    def _reconcile(self) -> None:
        """Bring the ledger in line with what the site has, and end what should be gone."""
        for node_id, error in list(self._failed.items()):
            self._guarded(partial(self._settle_failed_launch, node_id, error))
        looked_s = time.time()
        # The site is asked before the ledger: an intent always precedes its instance, so whatever
        # the site lists and the ledger doesn't know is truly unknown.
        instances = {one.spec.node_id: one for one in self.backend.list_instances()}
        records = {one.node_id: one for one in self._ledger.list_open(site=self._site)}
        to_end: list[NodeId] = []
        for node_id, record in records.items():
            instance = instances.get(node_id)
            if instance is None:
                self._note_missing(record, looked_s=looked_s)
            elif self._note_present(record, instance):
                to_end.append(node_id)
        for node_id, instance in instances.items():
            if node_id not in records and self._is_unwanted(instance):
                to_end.append(node_id)
        self._terminate(to_end)

    def _note_missing(self, record: NodeRecord, *, looked_s: float) -> None:
        """Close a node that the site no longer has, once its absence can be believed."""
        if record.changed_s >= looked_s - self.backend.settle_s:
            return
        if record.phase is NodePhase.INTENDED:
            if not is_alive(record.owner):
                # Its owner may have ended in the middle of the launch, before the site lists it.
                self.backend.terminate([record.node_id])
                self._ledger.mark_closed(record.node_id, why="never launched: its owner ended")
            return
        why = "terminated" if record.phase is NodePhase.TERMINATING else "gone from its site"
        self._ledger.mark_closed(record.node_id, why=why)

    def _note_present(self, record: NodeRecord, instance: Instance) -> bool:
        """Note what the site says of a node; returns whether the node is to be ended now."""
        is_ours = record.owner == self._owner or not is_alive(record.owner)
        if record.phase is NodePhase.TERMINATING:
            return is_ours
        if record.phase is NodePhase.INTENDED and is_ours:
            # Launches are this thread's too, so none of ours is half done now: it was only not
            # written down.
            self._ledger.mark_launched(record.node_id)
        if instance.state is InstanceState.STOPPED:
            self._ledger.mark_terminating(record.node_id, owner=self._owner)
            return True
        is_news = (record.phase, record.address) != (NodePhase.RUNNING, instance.address)
        is_running = instance.state is InstanceState.RUNNING
        # Said only once: several processes look every second, and each writing locks the ledger.
        if is_running and is_news and record.phase is not NodePhase.INTENDED:
            self._ledger.mark_running(record.node_id, address=instance.address)
        return False

    def _is_unwanted(self, instance: Instance) -> bool:
        """Return whether an instance that isn't open in the ledger must end; adopt it otherwise.

        A closed node that shows up again was ended too early for its site to know. A node without
        any record is one whose record was lost: it runs and costs, so it is taken back.
        """
        node_id = instance.spec.node_id
        if self._ledger.knows(node_id):
            return True
        logger.warning("site %s: taking back %s, which has no record", self._site, node_id)
        price = self._price_of(instance.spec.node_type)
        self._ledger.adopt(instance, usd_per_hour=price, owner=self._owner)
        return False
