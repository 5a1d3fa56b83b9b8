"""The tables behind the ledger. Times are wall time; money is text, because SQLite has no decimals.

`SCHEMA_VERSION` counts every change here; `cluster.store` brings older files up to it.
"""

from typing import Any

from sqlalchemy import JSON, Float, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 2


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {float: Float(53)}  # noqa: RUF012 - SQLAlchemy reads it as it stands


class NodeRow(Base):
    """One node, from its intent to its end. Closed rows stay: they are the record of spend."""

    __tablename__ = "nodes"

    node_id: Mapped[str] = mapped_column(String, primary_key=True)
    site: Mapped[str] = mapped_column(String, index=True)
    node_type: Mapped[str]
    phase: Mapped[str] = mapped_column(String, index=True)
    is_head: Mapped[bool]
    usd_per_hour: Mapped[str | None]
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    node_config: Mapped[dict[str, Any]] = mapped_column(JSON)
    address: Mapped[str | None]
    owner: Mapped[str]
    intended_s: Mapped[float]
    changed_s: Mapped[float]
    closed_s: Mapped[float | None]
    closed_why: Mapped[str | None]
    launched_s: Mapped[float | None]
    ended_s: Mapped[float | None]
    offering: Mapped[str | None]
    cordon: Mapped[str | None]
    fence: Mapped[int | None]


class SoldOutRow(Base):
    """One offering that its site had none of."""

    __tablename__ = "sold_out"

    site: Mapped[str] = mapped_column(String, primary_key=True)
    instance_type: Mapped[str] = mapped_column(String, primary_key=True)
    zone: Mapped[str] = mapped_column(String, primary_key=True)
    market: Mapped[str] = mapped_column(String, primary_key=True)
    code: Mapped[str]
    until_s: Mapped[float]


class HoldRow(Base):
    """One node type that its site isn't asked for until a moment."""

    __tablename__ = "holds"

    site: Mapped[str] = mapped_column(String, primary_key=True)
    node_type: Mapped[str] = mapped_column(String, primary_key=True)
    until_s: Mapped[float]
    why: Mapped[str]


class BootStageRow(Base):
    """When a node first reached a stage of its way to work."""

    __tablename__ = "boot_stages"

    node_id: Mapped[str] = mapped_column(String, primary_key=True)
    stage: Mapped[str] = mapped_column(String, primary_key=True)
    at_s: Mapped[float]


class ListingRow(Base):
    """How the last look at a site went."""

    __tablename__ = "listings"

    site: Mapped[str] = mapped_column(String, primary_key=True)
    listed_s: Mapped[float | None]
    failed_s: Mapped[float | None]
    error: Mapped[str | None]
    error_kind: Mapped[str | None]


class LeaseRow(Base):
    """Who may act. `token` grows with every holder, `renewals` with every sign of life."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String, primary_key=True)
    holder: Mapped[str | None]
    token: Mapped[int]
    renewals: Mapped[int]


class FactRow(Base):
    """One fact about the store itself, such as the machine that writes it."""

    __tablename__ = "facts"

    name: Mapped[str] = mapped_column(String, primary_key=True)
    text: Mapped[str]
