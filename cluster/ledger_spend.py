"""The part of the ledger that adds up what nodes cost."""

from collections.abc import Mapping
from decimal import Decimal
from functools import cache

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from cluster.budget import Commitment, SpendNow
from cluster.ledger_part import LedgerPart
from cluster.model import NodePhase, NodeTypeName, SiteName
from cluster.spend import (
    CHARGED_S_MIN,
    Charge,
    Usd,
    Window,
    cost_by_site,
    cost_of,
    day_window,
    month_window,
)
from cluster.store_tables import NodeRow


class Spend(LedgerPart):
    """Money: what was spent, and what is committed."""

    def accrued_usd(self, since_s: float, until_s: float) -> Usd:
        """Return what all nodes cost in a span up to now; None = unknown, because a price is."""
        with self._store.snapshot() as session:
            charges = _list_charges(session, since_s)
        return cost_of(charges, Window(since_s, until_s), now_s=self._now_s())

    def spend_by_site(self, since_s: float, until_s: float) -> Mapping[SiteName, Usd]:
        """Return what each site's nodes cost in a span up to now; None = unknown."""
        with self._store.snapshot() as session:
            charges = _list_charges(session, since_s)
        by_site = cost_by_site(charges, Window(since_s, until_s), now_s=self._now_s())
        return {SiteName(site): usd for site, usd in by_site.items()}

    def spend_now(self) -> SpendNow:
        """Return what is spent today and this month, and what is committed now."""
        with self._store.snapshot() as session:
            return read_spend_now(session, self._now_s())

    def set_missing_prices(self, prices: Mapping[NodeTypeName, Decimal]) -> None:
        """Give nodes of unknown price their type's price, now that there is one. Idempotent."""
        with self._store.transaction() as session:
            for node_type, usd_per_hour in prices.items():
                unknown = (NodeRow.node_type == node_type, NodeRow.usd_per_hour.is_(None))
                session.execute(
                    update(NodeRow).where(*unknown).values(usd_per_hour=str(usd_per_hour))
                )


def read_spend_now(session: Session, now_s: float) -> SpendNow:
    """Return what is spent and committed, as an open transaction sees it."""
    day, month = day_window(now_s), month_window(now_s)
    charges = _list_charges(session, month.since_s)
    committed = select(NodeRow.usd_per_hour, NodeRow.launched_s, NodeRow.intended_s).where(
        NodeRow.phase != NodePhase.CLOSED
    )
    return SpendNow(
        now_s=now_s,
        commitments=tuple(
            Commitment(_read_price(price), intended_s if launched_s is None else launched_s)
            for price, launched_s, intended_s in session.execute(committed)
        ),
        day_usd=cost_of(charges, day, now_s=now_s),
        month_usd=cost_of(charges, month, now_s=now_s),
    )


def _list_charges(session: Session, since_s: float) -> list[Charge]:
    """Return the charges of every node that may have cost something since then."""
    runs = and_(NodeRow.phase != NodePhase.CLOSED, NodeRow.ended_s.is_(None))
    ended_since = NodeRow.ended_s > since_s - CHARGED_S_MIN
    query = select(
        NodeRow.site, NodeRow.usd_per_hour, NodeRow.launched_s, NodeRow.intended_s, NodeRow.ended_s
    ).where(or_(runs, ended_since))
    return [
        Charge(site, _read_price(price), intended_s if launched_s is None else launched_s, ended_s)
        for site, price, launched_s, intended_s, ended_s in session.execute(query)
    ]


@cache
def _read_price(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
