"""The part of the ledger that remembers what sites said: what they lack, and how looks went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import delete, select

from cluster.ledger_part import LedgerPart
from cluster.model import Market, NodeTypeName, SiteName, SoldOut
from cluster.store_tables import HoldRow, ListingRow, SoldOutRow

_LISTING_EVERY_S = 5.0
"""Good looks are written no more often: sites are looked at every second, and writing locks."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A node type that its site isn't asked for before `until_s`, wall time."""

    site: SiteName
    node_type: NodeTypeName
    until_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Listing:
    """How the last looks at a site went, wall time.

    `listed_s` = the last good one, None = there was none yet. `error` is set while looks fail;
    `error_kind` is the name of its class, such as CredentialsError.
    """

    site: SiteName
    listed_s: float | None = None
    failed_s: float | None = None
    error: str | None = None
    error_kind: str | None = None


class SiteNotes(LedgerPart):
    """Sold-out offerings, held node types and looks, by site."""

    def list_sold_out(self) -> list[SoldOut]:
        """Return the offerings that aren't to be asked for now, in the order of their keys."""
        query = select(SoldOutRow).where(SoldOutRow.until_s > self._now_s())
        keys = (SoldOutRow.site, SoldOutRow.instance_type, SoldOutRow.zone, SoldOutRow.market)
        with self._store.snapshot() as session:
            return [_to_sold_out(row) for row in session.scalars(query.order_by(*keys))]

    def replace_sold_out(self, site: SiteName, rows: Sequence[SoldOut]) -> None:
        """Write all that a site has sold out now, in place of what was written of it before."""
        latest = {(one.instance_type, one.zone, one.market): one for one in rows}
        with self._store.transaction() as session:
            session.execute(delete(SoldOutRow).where(SoldOutRow.site == site))
            session.add_all(_to_sold_out_row(site, one) for one in latest.values())

    def list_holds(self) -> list[Hold]:
        """Return the holds that still last, by site and node type."""
        query = select(HoldRow).where(HoldRow.until_s > self._now_s())
        with self._store.snapshot() as session:
            rows = session.scalars(query.order_by(HoldRow.site, HoldRow.node_type))
            return [
                Hold(SiteName(row.site), NodeTypeName(row.node_type), row.until_s, row.why)
                for row in rows
            ]

    def hold_type(self, site: SiteName, node_type: NodeTypeName, until_s: float, why: str) -> None:
        """Keep a node type from being asked for until then. A later call replaces the earlier."""
        with self._store.transaction() as session:
            row = HoldRow(site=site, node_type=node_type, until_s=until_s, why=why)
            session.merge(row)

    def lift_hold(self, site: SiteName, node_type: NodeTypeName) -> None:
        """Let a node type be asked for again. Idempotent."""
        with self._store.transaction() as session:
            here = (HoldRow.site == site, HoldRow.node_type == node_type)
            session.execute(delete(HoldRow).where(*here))

    def note_listing(self, site: SiteName, at_s: float, error: Exception | None = None) -> None:
        """Note how a look at a site went. Cheap to call at every look: news is written, and age."""
        with self._store.snapshot() as session:
            row = session.get(ListingRow, site)
            before = None if row is None else _to_listing(row)
        after = _after_look(before or Listing(site), at_s, error)
        if before is not None and not _is_news(before, after):
            return
        with self._store.transaction() as session:
            session.merge(
                ListingRow(
                    site=site,
                    listed_s=after.listed_s,
                    failed_s=after.failed_s,
                    error=after.error,
                    error_kind=after.error_kind,
                )
            )

    def list_listings(self) -> list[Listing]:
        """Return how the last looks went, by site; a site never looked at isn't listed."""
        with self._store.snapshot() as session:
            rows = session.scalars(select(ListingRow).order_by(ListingRow.site))
            return [_to_listing(row) for row in rows]


def _after_look(before: Listing, at_s: float, error: Exception | None) -> Listing:
    if error is None:
        return Listing(before.site, listed_s=at_s, failed_s=before.failed_s)
    return Listing(
        before.site,
        listed_s=before.listed_s,
        failed_s=at_s,
        error=str(error),
        error_kind=type(error).__name__,
    )


def _is_news(before: Listing, after: Listing) -> bool:
    if (before.error, before.error_kind) != (after.error, after.error_kind):
        return True
    then_s = before.failed_s if after.error else before.listed_s
    looked_s = after.failed_s if after.error else after.listed_s
    if then_s is None or looked_s is None:
        return True
    # A clock that was set back counts as news too: the age must not stay negative.
    return not 0.0 <= looked_s - then_s < _LISTING_EVERY_S


def _to_listing(row: ListingRow) -> Listing:
    return Listing(
        site=SiteName(row.site),
        listed_s=row.listed_s,
        failed_s=row.failed_s,
        error=row.error,
        error_kind=row.error_kind,
    )


def _to_sold_out(row: SoldOutRow) -> SoldOut:
    return SoldOut(
        site=SiteName(row.site),
        instance_type=row.instance_type,
        zone=row.zone,
        market=cast("Market", row.market),
        code=row.code,
        until_s=row.until_s,
    )


def _to_sold_out_row(site: SiteName, one: SoldOut) -> SoldOutRow:
    return SoldOutRow(
        site=site,
        instance_type=one.instance_type,
        zone=one.zone,
        market=one.market,
        code=one.code,
        until_s=one.until_s,
    )
