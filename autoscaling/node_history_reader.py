"""Reads from the ledger what past nodes teach, now and then and beside the brain's ticks.

A tick takes what was read last and never waits: cold starts and losses change over hours. What
fails is tried again with the next read; until one works nothing is known, and the settings count.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from autoscaling.node_history import NodeFigures, NodeLife, learn_from_nodes
from autoscaling.settings_reader import find_ledger
from cluster.config import ClusterSettings
from cluster.ledger import Ledger
from cluster.ledger_boot import BootRecord
from cluster.model import TAG_NOTICED, TAG_RELEASED, BootStage, NodePhase, NodeRecord
from cluster.site_reconcile import WHY_GONE, WHY_STOPPED
from cluster.store_place import Place

_log = logging.getLogger(__name__)

_EVERY_S = 60.0
# Cold starts count by their number, so those of rarely used types may be older than a week.
_BOOTS_S_MAX = 30 * 86_400.0


class NodeHistoryReader:
    """One cluster's figures. For one thread at a time; `clock` is monotonic seconds."""

    def __init__(
        self,
        read_settings: Callable[[], ClusterSettings],
        *,
        open_ledger: Callable[[Place], Ledger] = lambda place: Ledger(place, reads_only=True),
        now_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_settings = read_settings
        self._open_ledger = open_ledger
        self._now_s = now_s
        self._clock = clock
        self._ledger: Ledger | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="node-history")
        self._pending: Future[NodeFigures] | None = None
        self._begun_s: float | None = None
        self._last = NodeFigures()

    def read(self) -> NodeFigures:
        """Return the figures read last, and begin another read when it is time; never raises."""
        if self._pending is not None and self._pending.done():
            self._take(self._pending)
            self._pending = None
        is_due = self._begun_s is None or self._clock() - self._begun_s >= _EVERY_S
        if self._pending is None and is_due:
            self._begun_s = self._clock()
            self._pending = self._thread.submit(self._collect)
        return self._last

    def _take(self, done: "Future[NodeFigures]") -> None:
        error = done.exception()
        if error is None:
            self._last = done.result()
        else:
            _log.warning("what past nodes teach couldn't be read, going on without: %s", error)

    def _collect(self) -> NodeFigures:
        """Read the ledger; runs in the reader's thread."""
        settings = self._read_settings()
        if self._ledger is None:
            self._ledger = self._open_ledger(find_ledger(settings))
        now_s = self._now_s()
        boots = self._ledger.list_boot_records(since_s=now_s - _BOOTS_S_MAX)
        lives = list_lives(self._ledger.list_all(), boots)
        markets = {str(name): kind.market for name, kind in settings.node_types.items()}
        return learn_from_nodes(lives, markets, now_s=now_s)


def list_lives(records: Iterable[NodeRecord], boots: Iterable[BootRecord]) -> list[NodeLife]:
    """Return the lives of all nodes but heads and those that never came to be."""
    stages: dict[str, dict[BootStage, float]] = {}
    for boot in boots:
        stages.setdefault(boot.node_id, {})[boot.stage] = boot.at_s
    return [
        _describe(record, stages.get(record.node_id, {}))
        for record in records
        if not record.is_head and not _never_ran(record)
    ]


def _never_ran(record: NodeRecord) -> bool:
    return record.phase is NodePhase.CLOSED and record.ended_s is None


def _describe(record: NodeRecord, stages: Mapping[BootStage, float]) -> NodeLife:
    was_missed = (record.closed_why or "").startswith((WHY_GONE, WHY_STOPPED))
    is_lost = TAG_NOTICED in record.tags or (was_missed and TAG_RELEASED not in record.tags)
    return NodeLife(
        node_type=record.node_type,
        asked_s=record.intended_s,
        joined_s=stages.get(BootStage.JOINED),
        serving_s=stages.get(BootStage.SERVING),
        ended_s=record.ended_s,
        is_lost=is_lost,
    )
