"""What a node's site says before it takes the node away, as the node itself tells the cluster.

Written by `cluster.node_agent` on the node, read by the autoscaler. Values only.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

BOARD_NAMESPACE = b"tidegate"
"""Where in the GCS's key-value store everything of ours is."""

NOTICES_PREFIX = b"notices/"

NoticeKind = Literal["rebalance", "interruption"]
"""rebalance = the node is likelier than others to go; interruption = it goes, at a known time."""

INTERRUPTION_S_MAX = 120.0
"""EC2 announces an interruption two minutes ahead, never more.

Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice. `left_s` is how long the node still had at `noted_s`, wall time; None = unknown.

    `node` is the id that the ledger knows the node by, `ray_node` Ray's, in hexadecimal.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    node: str
    ray_node: str
    kind: NoticeKind
    noted_s: float
    left_s: float | None = None


_NOTICE: TypeAdapter[Notice] = TypeAdapter(Notice)


def encode_notice(notice: Notice) -> bytes:
    """Return the notice as JSON."""
    return _NOTICE.dump_json(notice)


def decode_notice(raw: bytes) -> Notice:
    """Return the notice in `raw`; ValueError if anything is missing, unknown or of another type."""
    return _NOTICE.validate_json(raw, strict=True)


def bound_left_s(announced_s: float, now_s: float) -> float:
    """Return how long a node has until the announced moment, 0-120 s whatever the clocks say."""
    return min(INTERRUPTION_S_MAX, max(0.0, announced_s - now_s))
