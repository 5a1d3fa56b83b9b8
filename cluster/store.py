"""The relational store behind the ledger: engine, schema version, transactions.

SQLite serves while every writer is on one machine. A writing transaction takes the lock when it
begins, so what it reads stays true until it commits, in every process that shares the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cluster.errors import StateError
from cluster.store_migration import migrate
from cluster.store_tables import SCHEMA_VERSION

_BUSY_TIMEOUT_S = 5.0
_READS_ONLY = "tidegate_reads_only"


class Store:
    """One database file and its transactions. Safe to use from many threads and processes.

    One that only reads never makes or changes the file.
    """

    def __init__(self, file: Path, *, reads_only: bool = False) -> None:
        self._file = file
        self._reads_only = reads_only
        self._engine = _open_reader(file) if reads_only else _open_writer(file)
        with self._explain_errors():
            self._settle_schema()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction that holds the write lock and commits unless its body raises.

        Raises:
            StateError: the file is locked for too long, damaged or gone, or opened to read only.
        """
        with self._explain_errors(), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Open a transaction that only reads, one consistent state, without the write lock.

        Raises:
            StateError: as above.
        """
        reading = self._engine.execution_options(**{_READS_ONLY: True})
        with self._explain_errors(), Session(reading) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _settle_schema(self) -> None:
        with self.snapshot() as session:
            version = session.execute(text("PRAGMA user_version")).scalar_one()
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self._file} must have schema version {SCHEMA_VERSION} or less; got {version}. "
                "It was written by a newer release: use that one, or move the file away."
            )
        if version == SCHEMA_VERSION:
            return
        if self._reads_only:
            raise StateError(
                f"{self._file} must have schema version {SCHEMA_VERSION}; got {version}. "
                "The cluster's own `ray up` or autoscaler brings it up to date when it starts."
            )
        with self._engine.begin() as connection:
            # Read again under the lock: another process may have been faster.
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            migrate(connection, version=version)
            connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            cause = getattr(exc, "orig", exc)
            raise StateError(f"{self._file} must be a usable ledger; got: {cause}.") from exc


def _open_writer(file: Path) -> Engine:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": _BUSY_TIMEOUT_S})
    _take_lock_when_transaction_begins(engine)
    return engine


def _open_reader(file: Path) -> Engine:
    if not file.exists():
        raise StateError(
            f"{file} must be the ledger of a cluster; there is no such file. "
            "`ray up` makes it: check provider.state_dir and the cluster's name."
        )
    # mode=ro makes SQLite itself refuse to write, whatever this process is told to do.
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
    _take_lock_when_transaction_begins(engine)
    return engine


def _take_lock_when_transaction_begins(engine: Engine) -> None:
    """Make SQLite lock at BEGIN: Python's driver would wait until the first write."""

    @event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reads_only = connection.get_execution_options().get(_READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
