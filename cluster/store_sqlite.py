"""A ledger in a SQLite file, while every writer is on one machine.

A writing transaction takes the lock when it begins, so what it reads stays true until it commits,
in every process that shares the file. SQLite's locks don't reach over a network (Source: "SQLite
Over a Network", sqlite.org/useovernet.html), so the file remembers its writers' machine.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from cluster.errors import StateError
from cluster.store_driver import READS_ONLY
from cluster.store_tables import SCHEMA_VERSION

_BUSY_TIMEOUT_S = 5.0


class SqliteDriver:
    """One database file."""

    is_of_one_machine = True

    def __init__(self, file: Path) -> None:
        self._file = file
        self.name = str(file)

    def open_engine(self, *, reads_only: bool) -> Engine:
        """Return an engine on the file; see `StoreDriver`."""
        if not reads_only:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _open(str(self._file))
        if not self._file.exists():
            raise StateError(
                f"{self._file} must be the ledger of a cluster; there is no such file. "
                "`ray up` makes it: check provider.state_dir and the cluster's name."
            )
        # mode=ro makes SQLite itself refuse to write, whatever this process is told to do.
        return _open(f"file:{quote(str(self._file))}?mode=ro", is_uri=True)

    def read_version(self, connection: Connection) -> int:
        """Return the file's schema version, 0 for a new file."""
        return int(connection.execute(text("PRAGMA user_version")).scalar_one())

    def make_room(self, connection: Connection) -> None:
        """Do nothing: the file is the room."""

    def write_version(self, connection: Connection) -> None:
        """Write the present schema version."""
        connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))

    def explain(self, error: BaseException) -> str:
        """Return what SQLite said."""
        return str(error)


def _open(database: str, *, is_uri: bool = False) -> Engine:
    # Not as text: a path may hold what a URL reads as its own.
    url = URL.create("sqlite", database=database, query={"uri": "true"} if is_uri else {})
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})

    # Python's driver would begin, and so lock, only at the first write.
    @event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads_only = connection.get_execution_options().get(READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine
