"""The nouns of nodes, sites and money. Values only: no I/O, no clock, no decisions.

The life of a node (`NodePhase`):

    INTENDED ──accepted──▶ LAUNCHED ──seen running──▶ RUNNING
        │                     │                          │
     refused              terminate                  terminate
        │                     ▼                          │
        │                TERMINATING ◀───────────────────┘
        ▼                     │ seen gone
      CLOSED ◀────────────────┘

A node is written as INTENDED before anything is asked of its site, so no crash leaves a node that
nobody remembers. Every phase but CLOSED may cost money.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, NewType

ClusterName = NewType("ClusterName", str)
SiteName = NewType("SiteName", str)
NodeTypeName = NewType("NodeTypeName", str)
NodeId = NewType("NodeId", str)

Market = Literal["owned", "reserved", "spot", "on_demand"]

LABEL_SITE = "site"
LABEL_MARKET = "market"
LABEL_OWNED = "owned"
LABEL_ACCELERATOR = "accelerator"


class NodePhase(StrEnum):
    """Where a node is in its life; see the drawing above."""

    INTENDED = "intended"
    LAUNCHED = "launched"
    RUNNING = "running"
    TERMINATING = "terminating"
    CLOSED = "closed"


class InstanceState(StrEnum):
    """What a site says about an instance. One that is gone isn't listed at all."""

    BOOTING = "booting"
    RUNNING = "running"
    # It exists but serves no more (machine stopped, Ray died on it): to be ended.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a site must know to start one node, and keeps beside it in case we forget.

    `node_id` is also the idempotency token: launching the same spec twice gives one instance.
    """

    node_id: NodeId
    cluster: ClusterName
    site: SiteName
    node_type: NodeTypeName
    is_head: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    node_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """A node as its site sees it. `address` is None until the site knows it."""

    spec: LaunchSpec
    state: InstanceState
    address: str | None = None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the ledger remembers it. `usd_per_hour` None = unknown, never free.

    `tags` are Ray's (node kind, status, launch request, ...), kept word for word. `owner` is who
    launches or ends it (see `cluster.owner`); `changed_s` is when its phase last changed.
    """

    node_id: NodeId
    site: SiteName
    node_type: NodeTypeName
    phase: NodePhase
    is_head: bool
    usd_per_hour: Decimal | None
    tags: Mapping[str, str]
    address: str | None
    owner: str
    intended_s: float
    changed_s: float
    closed_s: float | None = None
    closed_why: str | None = None
