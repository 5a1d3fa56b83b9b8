"""The relational store behind the ledger: tables, engine, transactions.

SQLite serves while every writer is on one machine. A writing transaction takes the lock when it
begins, so what it reads stays true until it commits, in every process that shares the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, Float, String, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from cluster.errors import StateError

_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 5.0
_READS_ONLY = "tidegate_reads_only"


class Base(DeclarativeBase):
    """Base of all tables."""


class NodeRow(Base):
    """One node, from its intent to its end. Closed rows stay: they are the record of spend."""

    __tablename__ = "nodes"

    node_id: Mapped[str] = mapped_column(String, primary_key=True)
    site: Mapped[str] = mapped_column(String, index=True)
    node_type: Mapped[str]
    phase: Mapped[str] = mapped_column(String, index=True)
    is_head: Mapped[bool]
    # Money as text: SQLite has no decimals, and floats would round prices.
    usd_per_hour: Mapped[str | None]
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    node_config: Mapped[dict[str, Any]] = mapped_column(JSON)
    address: Mapped[str | None]
    owner: Mapped[str]
    intended_s: Mapped[float] = mapped_column(Float)
    changed_s: Mapped[float] = mapped_column(Float)
    closed_s: Mapped[float | None] = mapped_column(Float)
    closed_why: Mapped[str | None]


class Store:
    """One database file and its transactions. Safe to use from many threads and processes."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = file
        self._engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": _BUSY_TIMEOUT_S})
        _take_lock_when_transaction_begins(self._engine)
        with self._explain_errors():
            self._create_tables()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction that holds the write lock and commits unless its body raises.

        Raises:
            StateError: the file is locked for too long, damaged or gone.
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

    def _create_tables(self) -> None:
        with self._engine.begin() as connection:
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            if version not in (0, _SCHEMA_VERSION):
                raise StateError(
                    f"{self._file} must have schema version {_SCHEMA_VERSION}; got {version}. "
                    "It was written by another release: use that one, or move the file away."
                )
            if version == 0:
                Base.metadata.create_all(connection)
                connection.execute(text(f"PRAGMA user_version = {_SCHEMA_VERSION}"))

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            cause = getattr(exc, "orig", exc)
            raise StateError(f"{self._file} must be a usable ledger; got: {cause}.") from exc


def _take_lock_when_transaction_begins(engine: Engine) -> None:
    """Make SQLite lock at BEGIN: Python's driver would wait until the first write."""

    @event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reads_only = connection.get_execution_options().get(_READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
