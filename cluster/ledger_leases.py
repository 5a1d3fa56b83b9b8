"""The part of the ledger that says who may act. How a lease is kept is in `cluster.lease`."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import NotLeaderError
from cluster.ledger_part import LedgerPart
from cluster.store_tables import LeaseRow

_LEASE = "autoscaler"


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The lease as it stands. `holder` None = free; `renewals` grows with each sign of life."""

    holder: str | None
    token: int
    renewals: int


_NEVER_TAKEN = LeaseState(holder=None, token=0, renewals=0)


class Leases(LedgerPart):
    """The one lease. Every change compares first, so two processes never both succeed."""

    def lease(self) -> LeaseState:
        """Return the lease as it stands."""
        with self._store.snapshot() as session:
            return _read(session)

    def take_lease(self, holder: str, *, seen: LeaseState) -> LeaseState | None:
        """Take the lease under a new token if it is still as it was seen; None if it isn't."""
        taken = LeaseState(holder, token=seen.token + 1, renewals=0)
        return self._swap(seen, taken)

    def renew_lease(self, held: LeaseState) -> LeaseState | None:
        """Show that the holder lives; None if another has taken the lease meanwhile."""
        return self._swap(held, LeaseState(held.holder, held.token, held.renewals + 1))

    def free_lease(self, held: LeaseState) -> None:
        """Give the lease back. No effect if another has taken it meanwhile."""
        self._swap(held, LeaseState(None, held.token, held.renewals + 1))

    def _swap(self, seen: LeaseState, wanted: LeaseState) -> LeaseState | None:
        with self._store.transaction() as session:
            if _read(session) != seen:
                return None
            session.merge(
                LeaseRow(
                    name=_LEASE,
                    holder=wanted.holder,
                    token=wanted.token,
                    renewals=wanted.renewals,
                )
            )
        return wanted


def check_fence(session: Session, fence: int) -> None:
    """Raise NotLeaderError unless the token is the lease's present one and the lease is held."""
    state = _read(session)
    if state.holder is None or state.token != fence:
        holder = state.holder or "nobody"
        raise NotLeaderError(
            f"the lease must be held under token {fence}; got token {state.token}, held by "
            f"{holder}. Another autoscaler took over: this one starts and ends nothing any more."
        )


def _read(session: Session) -> LeaseState:
    row = session.scalars(select(LeaseRow).where(LeaseRow.name == _LEASE)).one_or_none()
    return _NEVER_TAKEN if row is None else LeaseState(row.holder, row.token, row.renewals)
