"""A ledger in memory, for schedules by the hundred: SQLAlchemy takes most of a schedule's time.

`test_the_ledger_in_memory_says_what_the_real_one_says` runs schedules on both and compares them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from cluster.budget import Commitment, SpendNow
from cluster.errors import NodeNotFoundError, NotLeaderError
from cluster.ledger import Books, Intent, Ledger
from cluster.ledger_leases import LeaseState
from cluster.ledger_sites import Hold
from cluster.model import (
    BootStage,
    Cordon,
    Instance,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
    SoldOut,
)


class MemoryLedger(Ledger):
    """What `SiteWorker`, `Reconciler` and `Lease` use of a ledger, kept in dictionaries."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._nodes: dict[NodeId, NodeRecord] = {}
        self._lease = LeaseState(holder=None, token=0, renewals=0)

    def open_intents(
        self,
        intents: Sequence[Intent],
        *,
        owner: str,
        check: Callable[[Books], None],
        fence: int | None = None,
    ) -> None:
        self._check_fence(fence)
        now_s, opened = self._now_s(), self.list_open()
        commitments = tuple(
            Commitment(one.usd_per_hour, one.launched_s or one.intended_s) for one in opened
        )
        check(Books(opened, SpendNow(now_s, commitments)))
        for one in intents:
            self._nodes[one.node_id] = self._build(one, owner=owner, phase=NodePhase.INTENDED)

    def adopt(
        self,
        instance: Instance,
        *,
        usd_per_hour: Decimal | None,
        owner: str,
        reopens: bool = False,
    ) -> None:
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
        record = self._build(intent, owner=owner, phase=NodePhase.LAUNCHED)
        self._nodes.setdefault(spec.node_id, replace(record, launched_s=instance.launched_s))

    def list_open(self, *, site: SiteName | None = None) -> list[NodeRecord]:
        opened = [one for one in self._nodes.values() if one.phase is not NodePhase.CLOSED]
        return sorted(opened, key=lambda one: (one.intended_s, one.node_id))

    def list_all(self) -> list[NodeRecord]:
        return sorted(self._nodes.values(), key=lambda one: (one.intended_s, one.node_id))

    def get(self, node_id: NodeId) -> NodeRecord:
        if node_id not in self._nodes:
            raise NodeNotFoundError(node_id)
        return self._nodes[node_id]

    def knows(self, node_id: NodeId) -> bool:
        return node_id in self._nodes

    def set_cordon(self, node_id: NodeId, cordon: Cordon | None) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], cordon=cordon)

    def mark_launched(self, node_id: NodeId) -> None:
        if self._nodes[node_id].phase is NodePhase.INTENDED:
            self._move(node_id, NodePhase.LAUNCHED)

    def mark_running(
        self,
        node_id: NodeId,
        *,
        address: str | None,
        launched_s: float | None = None,
        offering: str | None = None,
    ) -> None:
        if self._nodes[node_id].phase is NodePhase.CLOSED:
            return
        if self._nodes[node_id].phase in {NodePhase.INTENDED, NodePhase.LAUNCHED}:
            self._move(node_id, NodePhase.RUNNING)
        held = self._nodes[node_id]
        self._nodes[node_id] = replace(
            held,
            address=address,
            launched_s=launched_s if held.launched_s is None else held.launched_s,
            offering=held.offering if offering is None else offering,
        )

    def mark_terminating(self, node_id: NodeId, *, owner: str, fence: int | None = None) -> None:
        self._check_fence(fence)
        if self._nodes[node_id].phase is not NodePhase.CLOSED:
            self._move(node_id, NodePhase.TERMINATING)
            self._nodes[node_id] = replace(self._nodes[node_id], owner=owner)

    def mark_closed(
        self, node_id: NodeId, *, why: str, ended_s: float | None = None, never_ran: bool = False
    ) -> None:
        if self._nodes[node_id].phase is NodePhase.CLOSED:
            return
        self._move(node_id, NodePhase.CLOSED)
        now_s = self._now_s()
        charged_s = now_s if ended_s is None else ended_s
        self._nodes[node_id] = replace(
            self._nodes[node_id],
            closed_s=now_s,
            closed_why=why,
            ended_s=None if never_ran else charged_s,
        )

    def boot_stages(self, node_id: NodeId) -> Mapping[BootStage, float]:
        return {}

    def list_sold_out(self) -> list[SoldOut]:
        return []

    def list_holds(self) -> list[Hold]:
        return []

    def hold_type(self, site: SiteName, node_type: NodeTypeName, until_s: float, why: str) -> None:
        """Keep nothing: the schedules ask for what they want all the time."""

    def note_listing(self, site: SiteName, at_s: float, error: Exception | None = None) -> None:
        """Keep nothing: no decision rests on it."""

    def lease(self) -> LeaseState:
        return self._lease

    def _swap(self, seen: LeaseState, wanted: LeaseState) -> LeaseState | None:
        if self._lease != seen:
            return None
        self._lease = wanted
        return wanted

    def _check_fence(self, fence: int | None) -> None:
        if fence is not None and (self._lease.holder is None or self._lease.token != fence):
            raise NotLeaderError(f"token {fence} is old")

    def _move(self, node_id: NodeId, phase: NodePhase) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], phase=phase, changed_s=self._now_s())

    def _build(self, intent: Intent, *, owner: str, phase: NodePhase) -> NodeRecord:
        now_s = self._now_s()
        return NodeRecord(
            node_id=intent.node_id,
            site=intent.site,
            node_type=intent.node_type,
            phase=phase,
            is_head=intent.is_head,
            usd_per_hour=intent.usd_per_hour,
            tags=intent.tags,
            address=None,
            owner=owner,
            intended_s=now_s,
            changed_s=now_s,
        )
