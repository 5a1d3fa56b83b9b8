"""Tells the cluster that this node goes: `python -m cluster.self_drain`, the notice as options.

A process of its own, because Ray's client ends the process it is in when the head can't be reached.
Writes the notice on the cluster's blackboard and asks Ray to drain the node. Idempotent: a second
notice replaces the first, a second drain its deadline.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from cluster.notices import BOARD_NAMESPACE, NOTICES_PREFIX, Notice, encode_notice

_RPC_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Return 0 once the notice is written and Ray has accepted the drain; 1 if it hasn't."""
    parser = argparse.ArgumentParser(prog="python -m cluster.self_drain", description=__doc__)
    parser.add_argument("--gcs-address", required=True)
    parser.add_argument("--node", required=True, help="the id the ledger knows this node by")
    parser.add_argument("--address", required=True, help="this node's address in the cluster")
    parser.add_argument("--kind", required=True, choices=["rebalance", "interruption"])
    parser.add_argument("--left-s", type=float, help="seconds until the machine is gone")
    options = parser.parse_args(arguments)

    from ray._raylet import GcsClient  # type: ignore[attr-defined] # noqa: PLC0415 - Ray

    client = GcsClient(address=options.gcs_address)
    ray_node = _find_ray_node(client, node=options.node, address=options.address)
    if ray_node is None:
        sys.stderr.write(f"{options.node} at {options.address} must be one living node of Ray.\n")
        return 1
    notice = Notice(options.node, ray_node, options.kind, time.time(), options.left_s)
    key = NOTICES_PREFIX + options.node.encode()
    client.internal_kv_put(key, encode_notice(notice), True, BOARD_NAMESPACE, _RPC_S)  # noqa: FBT003 - Ray
    is_accepted, why_not = _drain(client, notice)
    if not is_accepted:
        sys.stderr.write(f"Ray must drain {ray_node}; it refused: {why_not}\n")
    return 0 if is_accepted else 1


def _find_ray_node(client: Any, *, node: str, address: str) -> str | None:
    """Return Ray's id of this node in hexadecimal, by our id of it, else by its address alone.

    Where several nodes share an address, the address says nothing.
    """
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # noqa: PLC0415 - Ray

    alive = [
        info
        for info in client.get_all_node_info(timeout=_RPC_S).values()
        if info.state == GcsNodeInfo.GcsNodeState.ALIVE
    ]
    by_id = [info for info in alive if info.instance_id == node]
    found = by_id or [info for info in alive if info.node_manager_address == address]
    return found[0].node_id.hex() if len(found) == 1 else None


def _drain(client: Any, notice: Notice) -> tuple[bool, str]:
    """Ask Ray to drain the node. Serve starts replacements before it stops what runs here."""
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # noqa: PLC0415 - Ray

    # 0 = no deadline. Ray wants whole milliseconds, by the wall clock.
    deadline_ms = 0
    if notice.left_s is not None:
        deadline_ms = math.floor((notice.noted_s + notice.left_s) * 1000)
    return client.drain_node(  # type: ignore[no-any-return]
        notice.ray_node,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        f"{notice.kind} notice for {notice.node}",
        deadline_ms,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
