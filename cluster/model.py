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


TAG_CORDON = "tidegate-cordon"
"""Tag of a node (or mark on a host): see `Cordon`. Absent = takes work."""

TAG_NOTICED = "tidegate-noticed"
"""Tag in the ledger of a node that its site has announced to take away, whatever ended it then."""

TAG_RELEASED = "tidegate-released"
"""Tag in the ledger of a node that was sent home: Ray ends on it before its site is told."""


class Cordon(StrEnum):
    """What an operator wants of a node. It is kept at the site, so it outlives the head."""

    # No new node on this host, no new replica counted on this node; what runs goes on.
    CORDONED = "cordoned"
    # As above, and what runs is moved away; the node goes home when nothing is left on it.
    DRAINING = "draining"


class BootStage(StrEnum):
    """The stages of a node on its way to work, in order. Their times are kept for each node."""

    INTENDED = "intended"  # written into the ledger
    ACCEPTED = "accepted"  # the site said yes
    RUNNING = "running"  # the site says the machine runs
    REACHABLE = "reachable"  # the first command ran on it
    SET_UP = "set_up"  # set-up commands are done
    JOINED = "joined"  # Ray lists it
    SERVING = "serving"  # a replica on it serves


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
    """A node as its site sees it. `address` is None until the site knows it.

    `launched_s` is when the site began to charge, wall time, None if it doesn't say. `offering` is
    what was given, for people: "g6e.2xlarge in us-east-1a" or a host's name. `is_silent` = the
    site couldn't ask it this time, and this is what it was before.
    """

    spec: LaunchSpec
    state: InstanceState
    address: str | None = None
    launched_s: float | None = None
    offering: str | None = None
    cordon: Cordon | None = None
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class SoldOut:
    """An offering that its site had none of. Not asked for again before `until_s`, wall time."""

    site: SiteName
    instance_type: str
    zone: str
    market: Market
    code: str
    until_s: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the ledger remembers it. `usd_per_hour` None = unknown, never free.

    `tags` are Ray's (node kind, status, launch request, ...), kept word for word. `owner` is who
    launches or ends it (see `cluster.owner`); `changed_s` is when its phase last changed. Its site
    charges from `launched_s` (None = it didn't say: from `intended_s`) to `ended_s` (None = it may
    still charge, or, of a closed node, it never ran). `fence` is the lease it was launched under.
    All times are wall time.
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
    launched_s: float | None = None
    ended_s: float | None = None
    offering: str | None = None
    cordon: Cordon | None = None
    fence: int | None = None


def merge_tags(held: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return a node's tags after a change; an empty value removes a tag."""
    return {name: text for name, text in {**held, **changes}.items() if text}


def read_cordon(tags: Mapping[str, str]) -> Cordon | None:
    """Return what the tags say an operator wants of the node.

    An unknown word counts as a cordon: the node takes no more work until somebody looks.
    """
    word = tags.get(TAG_CORDON)
    if not word:
        return None
    return Cordon(word) if word in set(Cordon) else Cordon.CORDONED
