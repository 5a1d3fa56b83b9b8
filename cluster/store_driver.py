"""What SQLite and PostgreSQL do differently, as the store asks for it."""

from typing import Protocol

from sqlalchemy import Connection, Engine

READS_ONLY = "tidegate_reads_only"
"""Execution option of a connection whose transactions take no lock, because they only read."""


class StoreDriver(Protocol):
    """One place of a ledger."""

    @property
    def name(self) -> str:
        """Return what the place is called in errors; never a user or a password."""

    @property
    def is_of_one_machine(self) -> bool:
        """Return whether only one machine may write there."""

    def open_engine(self, *, reads_only: bool) -> Engine:
        """Return an engine whose transactions hold the write lock unless READS_ONLY is set.

        With `reads_only`, it can't write at all, and the place must be there.

        Raises:
            StateError: it only reads, and there is nothing.
        """

    def read_version(self, connection: Connection) -> int:
        """Return the schema version, 0 where there are no tables yet."""

    def make_room(self, connection: Connection) -> None:
        """Make what tables are put into. Idempotent."""

    def write_version(self, connection: Connection) -> None:
        """Write the present schema version."""

    def explain(self, error: BaseException) -> str:
        """Return in one line what the database said, without secrets."""
