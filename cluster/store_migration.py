"""Bringing a ledger of an earlier release up to the present schema, with all its rows."""

from sqlalchemy import Connection, text

from cluster.store_tables import Base

# Columns that version 2 added to `nodes`. One type name serves SQLite and PostgreSQL alike.
_NODE_COLUMNS_OF_2 = {
    "launched_s": "FLOAT",
    "ended_s": "FLOAT",
    "offering": "VARCHAR",
    "cordon": "VARCHAR",
    "fence": "INTEGER",
}


def migrate(connection: Connection, *, version: int) -> None:
    """Make all tables from nothing (version 0), or add to an older version what it lacks."""
    if version == 1:
        _add_columns_of_2(connection)
    Base.metadata.create_all(connection)


def _add_columns_of_2(connection: Connection) -> None:
    for name, kind in _NODE_COLUMNS_OF_2.items():
        connection.execute(text(f"ALTER TABLE nodes ADD COLUMN {name} {kind}"))
    # What a site refused for want of capacity never ran, so it never cost anything.
    connection.execute(
        text(
            "UPDATE nodes SET ended_s = closed_s "
            "WHERE closed_s IS NOT NULL AND closed_why NOT LIKE 'no capacity%'"
        )
    )
