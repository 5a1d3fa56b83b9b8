"""Which owned nodes there are or may be, and what runs on them.

The cluster file says how many nodes of a type there may be; the scheduler, which of them exist; the
gateways, on which of those replicas answer. One that isn't up counts as empty: owned hardware comes
back. One that an operator or its site takes away counts for what it carries. Pure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from autoscaling.guard import Offer
from autoscaling.owned_claims import Key
from autoscaling.owned_places import OwnedNode
from autoscaling.record import NodeSummary
from cluster.model import LABEL_ACCELERATOR
from deployments.signals import GatewaySignals

_GPU = "GPU"


def list_owned_nodes(
    offers: Iterable[Offer], nodes: Sequence[NodeSummary], signals: Iterable[GatewaySignals]
) -> tuple[OwnedNode, ...]:
    """Return the owned nodes with GPUs of a named accelerator, those to come included."""
    holds, sizes = _find_holds(signals)
    found: list[OwnedNode] = []
    for offer in sorted(offers, key=lambda offer: offer.name):
        gpus = int(offer.resources.get(_GPU, 0))
        accelerator = offer.labels.get(LABEL_ACCELERATOR)
        if not offer.is_owned or accelerator is None or gpus < 1:
            continue
        there = [node for node in nodes if node.node_type == offer.name]
        for node in there:
            held = holds.get(node.ray_id or "", {})
            leaves = node.cordon is not None or node.is_noticed
            room = sum(sizes[key] * count for key, count in held.items()) if leaves else gpus
            found.append(OwnedNode(node.id, offer.site, accelerator, min(room, gpus), held))
        found += [
            OwnedNode(f"{offer.name}#{number}", offer.site, accelerator, gpus)
            for number in range(len(there), offer.nodes_max)
        ]
    return tuple(found)


def _find_holds(
    signals: Iterable[GatewaySignals],
) -> tuple[dict[str, Mapping[Key, int]], dict[Key, int]]:
    """Return the replicas by Ray node and pool, and each pool's GPUs a replica.

    Gateways see the same replicas; one that learned of a replica later sees fewer.
    """
    holds: dict[str, dict[Key, int]] = {}
    sizes: dict[Key, int] = {}
    for report in signals:
        for model in report.models:
            for pool in model.pools:
                key = (model.app, pool.pool)
                sizes[key] = pool.gpus_per_replica
                for node, count in Counter(pool.ray_nodes).items():
                    held = holds.setdefault(node, {})
                    held[key] = max(count, held.get(key, 0))
    return dict(holds), sizes
