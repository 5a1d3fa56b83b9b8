"""What was promised, what runs and what it costs: the durable truth about nodes.

An intent is written before a launch is asked of a site and closed when its instance is gone, so a
crash at any moment leaves a row that says what to look for. Several processes share one ledger
(the launcher on the operator's side and the autoscaler): each row names its owner.

`Ledger` is the one door; its parts are in `ledger_sites` (sold out, holds, looks), `ledger_boot`
(boot stages), `ledger_spend` (money) and `ledger_leases` (who may act).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import Session

from cluster.budget import SpendNow
from cluster.errors import NodeNotFoundError, NotLeaderError, StateError
from cluster.ledger_boot import BootStages, write_boot_stage
from cluster.ledger_leases import Leases, check_fence
from cluster.ledger_sites import SiteNotes
from cluster.ledger_spend import Spend, read_spend_now
from cluster.model import (
    BootStage,
    Cordon,
    Instance,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
)
from cluster.store import Store
from cluster.store_place import Place
from cluster.store_tables import NodeRow

_IS_OPEN = NodeRow.phase != NodePhase.CLOSED


@dataclass(frozen=True, slots=True)
class Intent:
    """A node about to be launched."""

    node_id: NodeId
    site: SiteName
    node_type: NodeTypeName
    is_head: bool
    usd_per_hour: Decimal | None
    tags: Mapping[str, str]
    node_config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Books:
    """What a launch is checked against: open nodes, and money spent and committed."""

    open_nodes: Sequence[NodeRecord]
    spend: SpendNow


class Ledger(SiteNotes, BootStages, Spend, Leases):
    """Open and closed nodes of one cluster. All calls are short local transactions.

    `cluster.store_place.find_place` says where a cluster's is. With `reads_only`, nothing is
    written, not even the file.
    """

    def __init__(
        self, place: Place, *, now_s: Callable[[], float] = time.time, reads_only: bool = False
    ) -> None:
        super().__init__(Store(place, reads_only=reads_only), now_s)

    def close(self) -> None:
        """Close the store's connections."""
        self._store.close()

    def open_intents(
        self,
        intents: Sequence[Intent],
        *,
        owner: str,
        check: Callable[[Books], None],
        fence: int | None = None,
    ) -> None:
        """Write intents, all or none, if `check` accepts the books as they are.

        Check and write are one transaction: two launches at once can't both take the last room.
        Whatever `check` raises passes through, and nothing is written.

        Raises:
            NotLeaderError: `fence` is no longer the token of the lease; nothing is written.
        """
        now_s = self._now_s()
        try:
            with self._store.transaction() as session:
                if fence is not None:
                    check_fence(session, fence)
                open_nodes = _read_records(session, _IS_OPEN)
                check(Books(open_nodes, read_spend_now(session, now_s)))
                for intent in intents:
                    session.add(_to_row(intent, owner=owner, now_s=now_s, fence=fence))
                    write_boot_stage(session, intent.node_id, BootStage.INTENDED, now_s)
        except NotLeaderError:
            raise
        except StateError:
            # The line may have gone after the commit: an intent that is written and that nobody
            # launches would hold money and room for as long as its owner lives.
            if not self._has_written(intents, owner=owner, at_s=now_s):
                raise

    def _has_written(self, intents: Sequence[Intent], *, owner: str, at_s: float) -> bool:
        """Return whether a write without an answer was done; waits for the lock, so it is over."""
        with self._store.transaction() as session:
            rows = [session.get(NodeRow, intent.node_id) for intent in intents]
            return all(row and (row.owner, row.intended_s) == (owner, at_s) for row in rows)

    def adopt(
        self,
        instance: Instance,
        *,
        usd_per_hour: Decimal | None,
        owner: str,
        reopens: bool = False,
    ) -> None:
        """Write a node that a site has and the ledger doesn't. Idempotent.

        It counts as launched when its site says, now if it doesn't say. With `reopens`, a node that
        was closed is open again; without, it stays closed.
        """
        spec = instance.spec
        intent = Intent(
            node_id=spec.node_id,
            site=spec.site,
            node_type=spec.node_type,
            is_head=spec.is_head,
            usd_per_hour=usd_per_hour,
            tags=spec.tags,
            node_config=spec.node_config,
        )
        with self._store.transaction() as session:
            known = session.get(NodeRow, spec.node_id)
            if known is None:
                row = _to_row(intent, owner=owner, now_s=self._now_s(), fence=None)
                row.phase = NodePhase.LAUNCHED
                row.launched_s, row.offering = instance.launched_s, instance.offering
                row.cordon = instance.cordon
                session.add(row)
            elif reopens and known.phase == NodePhase.CLOSED:
                known.phase, known.changed_s = NodePhase.LAUNCHED, self._now_s()
                known.closed_s = known.closed_why = known.ended_s = None

    def list_open(self, *, site: SiteName | None = None) -> list[NodeRecord]:
        """Return every node that isn't closed, oldest first."""
        conditions = [_IS_OPEN] if site is None else [_IS_OPEN, NodeRow.site == site]
        with self._store.snapshot() as session:
            return _read_records(session, *conditions)

    def list_all(self) -> list[NodeRecord]:
        """Return every node there ever was, oldest first: for spend and reports."""
        with self._store.snapshot() as session:
            return _read_records(session)

    def get(self, node_id: NodeId) -> NodeRecord:
        """Return one node, open or closed.

        Raises:
            NodeNotFoundError: there never was such a node.
        """
        with self._store.snapshot() as session:
            return _to_record(_get(session, node_id))

    def knows(self, node_id: NodeId) -> bool:
        """Return whether there is a record of a node, open or closed."""
        with self._store.snapshot() as session:
            return session.get(NodeRow, node_id) is not None

    def merge_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Set some of a node's tags and keep the others."""
        with self._store.transaction() as session:
            row = _get(session, node_id)
            row.tags = {**row.tags, **tags}

    def set_cordon(self, node_id: NodeId, cordon: Cordon | None) -> None:
        """Note what an operator wants of a node, as its site keeps it; None = takes work."""
        with self._store.transaction() as session:
            _get(session, node_id).cordon = cordon

    def mark_launched(self, node_id: NodeId) -> None:
        """Note that the site accepted the launch. No effect unless the node is intended."""
        with self._store.transaction() as session:
            row = _get(session, node_id)
            if row.phase == NodePhase.INTENDED:
                row.phase, row.changed_s = NodePhase.LAUNCHED, self._now_s()
                write_boot_stage(session, node_id, BootStage.ACCEPTED, row.changed_s)

    def mark_running(
        self,
        node_id: NodeId,
        *,
        address: str | None,
        launched_s: float | None = None,
        offering: str | None = None,
    ) -> None:
        """Note that the node was seen running. A closed node stays as it is.

        `launched_s` and `offering` are what its site says of it; None keeps what is known, and of
        `launched_s` the first word counts.
        """
        with self._store.transaction() as session:
            row = _get(session, node_id)
            if row.phase == NodePhase.CLOSED:
                return
            if row.phase in {NodePhase.INTENDED, NodePhase.LAUNCHED}:
                row.phase, row.changed_s = NodePhase.RUNNING, self._now_s()
                write_boot_stage(session, node_id, BootStage.RUNNING, row.changed_s)
            row.address = address
            row.launched_s = launched_s if row.launched_s is None else row.launched_s
            row.offering = row.offering if offering is None else offering

    def mark_terminating(self, node_id: NodeId, *, owner: str, fence: int | None = None) -> None:
        """Note that `owner` ends the node. No effect on a closed node.

        Raises:
            NotLeaderError: `fence` is no longer the token of the lease; nothing is written.
        """
        with self._store.transaction() as session:
            if fence is not None:
                check_fence(session, fence)
            row = _get(session, node_id)
            if row.phase != NodePhase.CLOSED:
                row.phase, row.owner = NodePhase.TERMINATING, owner
                row.changed_s = self._now_s()

    def mark_closed(
        self, node_id: NodeId, *, why: str, ended_s: float | None = None, never_ran: bool = False
    ) -> None:
        """Note that the node's instance is gone. Idempotent.

        It is charged until `ended_s`, until now if that isn't known. `never_ran` = the site said
        that it started nothing, so that nothing is charged.
        """
        now_s = self._now_s()
        with self._store.transaction() as session:
            row = _get(session, node_id)
            if row.phase != NodePhase.CLOSED:
                row.phase, row.changed_s = NodePhase.CLOSED, now_s
                row.closed_s, row.closed_why = now_s, why
                if not never_ran:
                    row.ended_s = now_s if ended_s is None else ended_s


# All that a record holds. A row's node_config stays where it is: it is large, and only kept.
_RECORD_COLUMNS = tuple(
    column for column in NodeRow.__table__.columns if column.name != "node_config"
)


def _read_records(session: Session, *conditions: ColumnElement[bool]) -> list[NodeRecord]:
    """Return the records that meet the conditions, oldest first."""
    query = select(*_RECORD_COLUMNS).where(*conditions)
    rows = session.execute(query.order_by(NodeRow.intended_s, NodeRow.node_id))
    return [_to_record(row) for row in rows]


def _get(session: Session, node_id: NodeId) -> NodeRow:
    row = session.get(NodeRow, node_id)
    if row is None:
        raise NodeNotFoundError(f"{node_id!r} must be a node of this cluster; no record of it.")
    return row


def _to_row(intent: Intent, *, owner: str, now_s: float, fence: int | None) -> NodeRow:
    return NodeRow(
        node_id=intent.node_id,
        site=intent.site,
        node_type=intent.node_type,
        phase=NodePhase.INTENDED,
        is_head=intent.is_head,
        usd_per_hour=None if intent.usd_per_hour is None else str(intent.usd_per_hour),
        tags=dict(intent.tags),
        node_config=dict(intent.node_config),
        address=None,
        owner=owner,
        intended_s=now_s,
        changed_s=now_s,
        fence=fence,
    )


def _to_record(row: NodeRow | Row[Any]) -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(row.node_id),
        site=SiteName(row.site),
        node_type=NodeTypeName(row.node_type),
        phase=NodePhase(row.phase),
        is_head=row.is_head,
        usd_per_hour=None if row.usd_per_hour is None else Decimal(row.usd_per_hour),
        tags=dict(row.tags),
        address=row.address,
        owner=row.owner,
        intended_s=row.intended_s,
        changed_s=row.changed_s,
        closed_s=row.closed_s,
        closed_why=row.closed_why,
        launched_s=row.launched_s,
        ended_s=row.ended_s,
        offering=row.offering,
        cordon=None if row.cordon is None else Cordon(row.cordon),
        fence=row.fence,
    )
