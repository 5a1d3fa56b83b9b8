"""How the ledger follows what a site lists: which nodes are there, gone, unknown or to be ended.

Two kinds of process do this. The autoscaler on the head keeps order by itself: it ends what nobody
wants. The launcher on an operator's machine has a ledger of its own, rebuilt from the sites; it
takes in what it finds and ends only what it was told to end.
"""

import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from cluster.ledger import Ledger
from cluster.model import (
    TAG_CORDON,
    BootStage,
    Instance,
    InstanceState,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
)
from cluster.owner import is_alive, is_of_this_machine

logger = logging.getLogger(__name__)

WHY_GONE = "gone from its site"
WHY_STOPPED = "stopped"
_WHY_NEVER = "never launched: its owner ended"

# An owner on another machine can't be asked whether it lives; no launch takes this long.
_STRANGER_S_MAX = 900.0

# A process that was told to end a node and still runs is left alone for so long.
_ENDING_S_MAX = 30.0

_TAG_STATUS, _STATUS_JOINED = "ray-node-status", "up-to-date"


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time for what is written down, a monotonic one for what is waited for."""

    wall_s: Callable[[], float] = time.time
    ticks_s: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Conduct:
    """How far this process goes by itself.

    `owner` is its name (see `cluster.owner`). `is_operator` = it ends only what it was told to.
    `is_alone` = no other machine writes this ledger. `may_act` says whether it still holds the
    lease; without it nothing is written, started or ended.
    """

    owner: str
    is_operator: bool = False
    is_alone: bool = True
    may_act: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Orders:
    """What the site must be asked for now; `to_close` is to be ended too, then closed."""

    to_end: Sequence[NodeId]
    to_close: Sequence[NodeId]


@dataclass(slots=True)
class _Sightings:
    """What this process has seen of one site, by the monotonic clock; `ended_s` is wall time."""

    first_seen_s: dict[NodeId, float] = field(default_factory=dict)
    first_missed_s: dict[NodeId, float] = field(default_factory=dict)
    misses: dict[NodeId, int] = field(default_factory=dict)
    ended_s: dict[NodeId, float] = field(default_factory=dict)
    silent: frozenset[NodeId] = frozenset()


class Reconciler:
    """Brings the ledger in line with one site's listings."""

    def __init__(
        self,
        site: SiteName,
        *,
        ledger: Ledger,
        conduct: Conduct,
        price_of: Callable[[NodeTypeName], Decimal | None],
        join_s_max: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._site = site
        self._ledger = ledger
        self._conduct = conduct
        self._price_of = price_of
        self._join_s_max = join_s_max
        self._clock = clock or Clock()
        self._seen = _Sightings()
        # Why a node is being ended, where that is more than an order.
        self.reasons: dict[NodeId, str] = {}
        # Tags that this process set: nobody knows them better while it lives.
        self.own_tags: dict[NodeId, dict[str, str]] = {}

    @property
    def silent(self) -> frozenset[NodeId]:
        """Return the nodes that the site couldn't ask the last time."""
        return self._seen.silent

    @property
    def doubtful(self) -> frozenset[NodeId]:
        """Return the nodes that the last listing lacked, and that the next decides about."""
        return frozenset(node_id for node_id, misses in self._seen.misses.items() if misses == 1)

    def take_in(self, instances: Sequence[Instance], *, looked_s: float, settle_s: float) -> Orders:
        """Write what a listing says, and return what follows for the site.

        Units: `looked_s` is wall time just before the listing; `settle_s` is the backend's.
        """
        listed = {one.spec.node_id: one for one in instances}
        # The site was asked before the ledger: an intent always precedes its instance, so whatever
        # the site lists and the ledger doesn't know is truly unknown.
        records = {one.node_id: one for one in self._ledger.list_open(site=self._site)}
        self._remember(listed, records)
        to_end = [
            node_id
            for node_id, one in listed.items()
            if not one.is_silent and self._is_to_end(one, records.get(node_id))
        ]
        to_close = [
            node_id
            for node_id, record in records.items()
            if node_id not in listed
            and self._is_gone(record, looked_s=looked_s, settle_s=settle_s)
            and self._close_or_pass_on(record)
        ]
        return Orders(to_end, to_close)

    def close_never_launched(self, node_id: NodeId) -> None:
        """Close an intent whose owner ended, once its site was told to end what there may be.

        Its site never listed it, and nobody else was there to end it: it cost nothing.
        """
        self._ledger.mark_closed(node_id, why=_WHY_NEVER, never_ran=True)

    def note_ended(self, node_ids: Sequence[NodeId]) -> None:
        """Note that the site accepted the end of nodes: it charges no longer."""
        for node_id in node_ids:
            self._seen.ended_s.setdefault(node_id, self._clock.wall_s())

    # --- what is missing

    def _is_gone(self, record: NodeRecord, *, looked_s: float, settle_s: float) -> bool:
        """Return whether a node that isn't listed can be believed to be gone.

        One that was never seen may only not be listed yet: `settle_s` must pass. One that was seen
        must be missing twice, unless its end was ordered. Waits go by the monotonic clock.
        """
        if looked_s <= record.changed_s <= self._clock.wall_s():
            return False  # It changed while its site was being asked.
        now_s, seen = self._clock.ticks_s(), self._seen
        missed_s = seen.first_missed_s.setdefault(record.node_id, now_s)
        seen.ended_s.setdefault(record.node_id, looked_s)
        misses = seen.misses[record.node_id] = seen.misses.get(record.node_id, 0) + 1
        if record.node_id not in seen.first_seen_s and record.address is None:
            return now_s - missed_s >= settle_s
        return misses > 1 or record.phase is NodePhase.TERMINATING

    def _close_or_pass_on(self, record: NodeRecord) -> bool:
        """Close a node that is gone; returns whether its site must be told to end it first."""
        if record.phase is NodePhase.INTENDED:
            # Its owner may have ended in the middle of the launch, before the site lists it.
            return record.owner != self._conduct.owner and self._is_free(record)
        ended = record.phase is NodePhase.TERMINATING
        why = self.reasons.pop(record.node_id, "terminated") if ended else WHY_GONE
        ended_s = self._seen.ended_s.get(record.node_id)
        self._ledger.mark_closed(record.node_id, why=why, ended_s=ended_s)
        return False

    # --- what is there

    def _is_to_end(self, instance: Instance, record: NodeRecord | None) -> bool:
        """Write what the site says of an instance; returns whether it is to be ended now."""
        if record is None:
            return self._is_unwanted(instance)
        if record.phase is NodePhase.TERMINATING:
            return self._is_free(record) or self._is_overdue(record)
        if record.phase is NodePhase.INTENDED and self._is_free(record):
            # Launches are made one by one with these looks, so none of ours is half done now: it
            # was only not written down.
            self._ledger.mark_launched(record.node_id)
        self._copy_marks(instance, record)
        if not self._conduct.is_operator and self._is_useless(instance, record):
            self._ledger.mark_terminating(record.node_id, owner=self._conduct.owner)
            return True
        is_running = instance.state is InstanceState.RUNNING
        # Said only once: several processes look every second, and each writing locks the ledger.
        if is_running and record.phase is not NodePhase.INTENDED and _is_news(instance, record):
            self._ledger.mark_running(
                record.node_id,
                address=instance.address,
                launched_s=instance.launched_s,
                offering=instance.offering,
            )
        return False

    def _is_unwanted(self, instance: Instance) -> bool:
        """Return whether an instance that isn't open in the ledger must end; adopt it otherwise.

        A closed node that shows up again was ended too early for its site to know. A node without
        any record is one whose record was lost: it runs and costs, so it is taken back.
        """
        node_id = instance.spec.node_id
        closed_why = self._ledger.get(node_id).closed_why if self._ledger.knows(node_id) else None
        # An operator's machine may have missed what the head still runs.
        is_missed = self._conduct.is_operator and closed_why == WHY_GONE
        if closed_why is not None and not is_missed:
            return True
        logger.info("site %s: taking in %s, which has no open record", self._site, node_id)
        self._ledger.adopt(
            instance,
            usd_per_hour=self._price_of(instance.spec.node_type),
            owner=self._conduct.owner,
            reopens=is_missed,
        )
        return False

    def _is_overdue(self, record: NodeRecord) -> bool:
        """Return whether another process's termination is to be done by this one.

        It may live on without the lease, or hang. Ending twice does no harm.
        """
        ordered_s = self._clock.wall_s() - record.changed_s
        return not self._conduct.is_operator and abs(ordered_s) > _ENDING_S_MAX

    def _is_useless(self, instance: Instance, record: NodeRecord) -> bool:
        """Return whether a node doesn't serve and never will, noting why."""
        if instance.state is InstanceState.STOPPED:
            self.reasons[record.node_id] = f"{WHY_STOPPED}: it serves no more"
            return True
        if self._join_s_max is None or record.is_head or not self._is_late(record):
            return False
        why = f"not joined within {self._join_s_max:g} s"
        logger.warning("site %s: ending %s, %s", self._site, record.node_id, why)
        self.reasons[record.node_id] = why
        return True

    def _is_late(self, record: NodeRecord) -> bool:
        """Return whether a node took longer than it may to run Ray.

        Time before this process saw it counts by wall time, and for half of the limit at most: a
        clock that jumps must not end nodes that boot.
        """
        limit_s = self._join_s_max or 0.0
        waited_s = self._clock.ticks_s() - self._seen.first_seen_s[record.node_id]
        before_s = self._clock.wall_s() - waited_s - record.intended_s
        if waited_s + min(max(0.0, before_s), limit_s / 2) <= limit_s:
            return False
        if record.tags.get(_TAG_STATUS) == _STATUS_JOINED:
            return False
        return BootStage.JOINED not in self._ledger.boot_stages(record.node_id)

    def _copy_marks(self, instance: Instance, record: NodeRecord) -> None:
        """Take over the cordon and, on an operator's machine, the tags that others set."""
        if instance.cordon != record.cordon:
            self._ledger.set_cordon(record.node_id, instance.cordon)
        if not self._conduct.is_operator or not self._is_free(record):
            return
        own = self.own_tags.get(record.node_id, {})
        news = {
            name: text
            for name, text in instance.spec.tags.items()
            if name not in own and name != TAG_CORDON and record.tags.get(name) != text
        }
        if news:
            self._ledger.merge_tags(record.node_id, news)

    # --- memory

    def _is_free(self, record: NodeRecord) -> bool:
        """Return whether a node is this process's own work, or that of one that has ended."""
        if record.owner == self._conduct.owner:
            return True
        if self._conduct.is_alone or is_of_this_machine(record.owner):
            return not is_alive(record.owner)
        return abs(self._clock.wall_s() - record.changed_s) > _STRANGER_S_MAX

    def _remember(self, listed: dict[NodeId, Instance], records: dict[NodeId, NodeRecord]) -> None:
        now_s, seen = self._clock.ticks_s(), self._seen
        seen.first_seen_s = {
            node_id: seen.first_seen_s.get(node_id, now_s)
            for node_id in {*listed, *(seen.first_seen_s.keys() & records.keys())}
        }
        missed = records.keys() - listed.keys()
        for memory in (seen.first_missed_s, seen.misses):
            for node_id in memory.keys() - missed:
                del memory[node_id]
        seen.silent = frozenset(node_id for node_id, one in listed.items() if one.is_silent)
        for node_id in listed:
            # It is there all the same: only an accepted end, below, says otherwise.
            if node_id in records and records[node_id].phase is not NodePhase.TERMINATING:
                seen.ended_s.pop(node_id, None)
        self._forget(records.keys() | listed.keys())

    def _forget(self, known: AbstractSet[NodeId]) -> None:
        """Drop what is remembered of nodes that are neither open nor listed."""
        memories: tuple[dict[NodeId, Any], ...] = (
            self.reasons,
            self.own_tags,
            self._seen.ended_s,
        )
        for memory in memories:
            for node_id in memory.keys() - known:
                del memory[node_id]


def _is_news(instance: Instance, record: NodeRecord) -> bool:
    """Return whether a running instance differs from its record in what the site says of it."""
    if (record.phase, record.address) != (NodePhase.RUNNING, instance.address):
        return True
    # What was said first of the price's beginning counts, so only that is news.
    if record.launched_s is None and instance.launched_s is not None:
        return True
    return instance.offering is not None and instance.offering != record.offering
