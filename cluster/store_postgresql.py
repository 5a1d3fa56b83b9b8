"""A ledger in a PostgreSQL schema, for writers on several machines.

Every writing transaction begins with the same advisory lock, so that one at a time checks and
writes, as with SQLite. A reading one sees one consistent state and takes no lock.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text

from cluster.store_driver import READS_ONLY
from cluster.store_place import PostgresqlPlace
from cluster.store_tables import SCHEMA_VERSION

_CONNECT_TIMEOUT_S = 5
# A line that went dead is noticed after 5 + 3 x 2 s without a sign of life, or 10 s without a
# receipt; Linux alone waits for hours.
_LINE: Mapping[str, int] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_WAIT_MS_MAX = 5000
_IDLE_MS_MAX = 3000
"""A writer that froze inside a transaction is cut off by the server before others stop waiting."""
_VERSION = "schema_version"


class PostgresqlDriver:
    """One schema of a database. Connects at the first use."""

    is_of_one_machine = False

    def __init__(self, place: PostgresqlPlace) -> None:
        self._place = place
        self.name = str(place)

    def open_engine(self, *, reads_only: bool) -> Engine:
        """Return an engine on the schema; see `StoreDriver`."""
        engine = create_engine(
            self._place.url,
            # A connection that the server or the network dropped is opened again, not handed out.
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "application_name": "tidegate",
                **_LINE,
            },
            # Errors would show values beside statements, and Ray's tags are among those.
            hide_parameters=True,
        )
        schema = self._place.schema

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _record: Any) -> None:
            settings = {
                "lock_timeout": _WAIT_MS_MAX,
                "statement_timeout": _WAIT_MS_MAX,
                "idle_in_transaction_session_timeout": _IDLE_MS_MAX,
            }
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('search_path', quote_ident(%s), false)", [schema])
                for name, milliseconds in settings.items():
                    cursor.execute("SELECT set_config(%s, %s, false)", [name, str(milliseconds)])
            connection.commit()

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            if connection.get_execution_options().get(READS_ONLY, False):
                connection.exec_driver_sql(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
                )
            elif reads_only:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            else:
                # One key for each schema: clusters in one database don't wait for one another.
                lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:schema, 0))")
                connection.execute(lock, {"schema": schema})

        return engine

    def read_version(self, connection: Connection) -> int:
        """Return the schema's version, 0 while it has no tables."""
        if not inspect(connection).has_table("facts", schema=self._place.schema):
            return 0
        query = text("SELECT text FROM facts WHERE name = :name")
        return int(connection.execute(query, {"name": _VERSION}).scalar() or 0)

    def make_room(self, connection: Connection) -> None:
        """Make the schema unless it is there."""
        quoted = connection.dialect.identifier_preparer.quote_identifier(self._place.schema)
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted}"))

    def write_version(self, connection: Connection) -> None:
        """Write the present schema version."""
        connection.execute(
            text(
                "INSERT INTO facts (name, text) VALUES (:name, :version) "
                "ON CONFLICT (name) DO UPDATE SET text = excluded.text"
            ),
            {"name": _VERSION, "version": str(SCHEMA_VERSION)},
        )

    def explain(self, error: BaseException) -> str:
        """Return what PostgreSQL said, in one line and without the password."""
        said = " ".join(str(error).split())
        password = self._place.url.password
        return said.replace(password, "***") if password else said
