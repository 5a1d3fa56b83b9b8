"""What a replica's own node says about itself; read from Ray, never from the pool's settings."""

import ray

from deployments.replica_http import ReplicaIdentity
from deployments.spec import PoolSpec


def read_identity(pool: PoolSpec) -> ReplicaIdentity:
    """Who this replica is. A node that doesn't say it is owned isn't owned."""
    labels = ray.get_runtime_context().get_node_labels()
    return ReplicaIdentity(
        pool=pool.name,
        engine=pool.engine,
        site=labels.get("site", "unknown"),
        is_owned=labels.get("owned") == "true",
        slots=pool.slots,
    )


def read_node_address() -> str:
    """The address this node has in the cluster: the one given to `ray start`, if one was."""
    own_id = ray.get_runtime_context().get_node_id()
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own_id]
    return str(addresses[0])
