"""The part of the ledger that remembers how long nodes take until they work."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.ledger_part import LedgerPart
from cluster.model import BootStage, NodeId, NodeTypeName, SiteName
from cluster.store_tables import BootStageRow, NodeRow


@dataclass(frozen=True, slots=True)
class BootRecord:
    """When one node reached one stage, wall time."""

    node_id: NodeId
    node_type: NodeTypeName
    site: SiteName
    stage: BootStage
    at_s: float


class BootStages(LedgerPart):
    """Boot stages. The ledger writes the first three itself, as the node's phase moves on."""

    def note_boot_stage(self, node_id: NodeId, stage: BootStage, at_s: float) -> None:
        """Note when a node reached a stage; what was noted first stays. Idempotent."""
        with self._store.snapshot() as session:
            is_known = session.get(BootStageRow, (node_id, stage)) is not None
        if is_known:
            return
        with self._store.transaction() as session:
            write_boot_stage(session, node_id, stage, at_s)

    def boot_stages(self, node_id: NodeId) -> Mapping[BootStage, float]:
        """Return when a node reached its stages, wall time, in the stages' order."""
        with self._store.snapshot() as session:
            query = select(BootStageRow).where(BootStageRow.node_id == node_id)
            found = {BootStage(row.stage): row.at_s for row in session.scalars(query)}
        return {stage: found[stage] for stage in BootStage if stage in found}

    def list_boot_records(self, *, since_s: float = 0.0) -> list[BootRecord]:
        """Return every stage reached since then, oldest first."""
        query = (
            select(
                BootStageRow.node_id,
                NodeRow.node_type,
                NodeRow.site,
                BootStageRow.stage,
                BootStageRow.at_s,
            )
            .join(NodeRow, NodeRow.node_id == BootStageRow.node_id)
            .where(BootStageRow.at_s >= since_s)
            .order_by(BootStageRow.at_s, BootStageRow.node_id, BootStageRow.stage)
        )
        with self._store.snapshot() as session:
            return [
                BootRecord(
                    NodeId(node_id), NodeTypeName(node_type), SiteName(site), BootStage(stage), at_s
                )
                for node_id, node_type, site, stage, at_s in session.execute(query)
            ]


def write_boot_stage(session: Session, node_id: NodeId, stage: BootStage, at_s: float) -> None:
    """Write a stage into an open transaction, unless the node reached it before."""
    if session.get(BootStageRow, (node_id, stage)) is None:
        session.add(BootStageRow(node_id=node_id, stage=stage, at_s=at_s))
