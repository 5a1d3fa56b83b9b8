"""The relational store behind the ledger: schema version, transactions, errors.

What a writing transaction reads stays true until it commits, in every process and on every
machine that shares the place: one at a time holds the write lock, from its beginning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cluster.errors import StateError
from cluster.machine import read_machine_id
from cluster.store_driver import READS_ONLY, StoreDriver
from cluster.store_migration import migrate
from cluster.store_place import Place
from cluster.store_sqlite import SqliteDriver
from cluster.store_tables import SCHEMA_VERSION, FactRow

_MACHINE = "writers_machine"
_FORGET_MACHINE = "DELETE FROM facts WHERE name = 'writers_machine'"


class Store:
    """One place and its transactions. Safe to use from many threads and processes.

    One that only reads never makes or changes anything. `machine_id` None = unknown.
    """

    def __init__(
        self, place: Place, *, reads_only: bool = False, machine_id: str | None = None
    ) -> None:
        self._driver = _open_driver(place)
        self._reads_only = reads_only
        with self._explain_errors():
            self._engine = self._driver.open_engine(reads_only=reads_only)
            self._settle_schema()
        if self._driver.is_of_one_machine and not reads_only:
            self._insist_on_machine(machine_id or read_machine_id())

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction that holds the write lock and commits unless its body raises.

        Raises:
            StateError: it is locked for too long, damaged or gone, or opened to read only.
        """
        with self._explain_errors(), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Open a transaction that only reads, one consistent state, without the write lock.

        Raises:
            StateError: as above.
        """
        reading = self._engine.execution_options(**{READS_ONLY: True})
        with self._explain_errors(), Session(reading) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _settle_schema(self) -> None:
        with self.snapshot() as session:
            version = self._driver.read_version(session.connection())
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self._driver.name} must have schema version {SCHEMA_VERSION} or less; got "
                f"{version}. It was written by a newer release: use that one, or move it away."
            )
        if version == SCHEMA_VERSION:
            return
        if self._reads_only:
            raise StateError(
                f"{self._driver.name} must have schema version {SCHEMA_VERSION}; got {version}. "
                "The cluster's own `ray up` or autoscaler brings it up to date when it starts."
            )
        with self._engine.begin() as connection:
            self._driver.make_room(connection)
            # Read again under the lock: another process may have been faster.
            version = self._driver.read_version(connection)
            migrate(connection, version=version)
            self._driver.write_version(connection)

    def _insist_on_machine(self, machine_id: str | None) -> None:
        """Let the first writer's machine be the only one, where locks reach no further."""
        if machine_id is None:
            return
        known = self._read_machine() or self._write_machine(machine_id)
        if known == machine_id:
            return
        forget = f'sqlite3 {self._driver.name} "{_FORGET_MACHINE}"'
        raise StateError(
            f"{self._driver.name} must have its writers on one machine; got: it belongs to machine "
            f"{known}, and this is {machine_id}. A SQLite file's locks don't reach over a network: "
            "both could spend the same money. Set provider.store to kind: postgresql with url_env; "
            f"or, if the file has moved here for good, type: {forget}"
        )

    def _read_machine(self) -> str | None:
        with self.snapshot() as session:
            fact = session.get(FactRow, _MACHINE)
            return None if fact is None else fact.text

    def _write_machine(self, machine_id: str) -> str:
        """Return whose the place is: this machine's, unless another was faster."""
        with self.transaction() as session:
            fact = session.get(FactRow, _MACHINE)
            if fact is None:
                fact = FactRow(name=_MACHINE, text=machine_id)
                session.add(fact)
            return fact.text

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            said = self._driver.explain(getattr(exc, "orig", None) or exc)
            raise StateError(f"{self._driver.name} must be a usable ledger; got: {said}.") from exc


def _open_driver(place: Place) -> StoreDriver:
    if isinstance(place, Path):
        return SqliteDriver(place)
    # Only here: machines without PostgreSQL's client keep their ledger in a file.
    from cluster.store_postgresql import PostgresqlDriver  # noqa: PLC0415

    return PostgresqlDriver(place)
