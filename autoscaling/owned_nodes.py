"""Which owned nodes there are or may be, and what runs on them.

The cluster file says how many nodes of a type there may be; the scheduler, which of them exist; the
gateways, on which of those replicas answer. One that isn't up counts as empty: owned hardware comes
back. One that an operator or its site takes away counts for what it carries. GPUs that engines
share in turns (`autoscaling.warm`) are theirs. Pure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from autoscaling.guard import Offer
from autoscaling.owned_places import Key, OwnedNode
from autoscaling.record import NodeSummary
from cluster.model import LABEL_ACCELERATOR
from deployments.signals import GatewaySignals

_GPU = "GPU"


def list_owned_nodes(
    offers: Iterable[Offer], nodes: Sequence[NodeSummary], signals: Iterable[GatewaySignals]
) -> tuple[OwnedNode, ...]:
    """Return the owned nodes with GPUs of a named accelerator, those to come included."""
    holds, sizes = _find_holds(signals, in_turns=False)
    shared, shares = _find_holds(signals, in_turns=True)
    found: list[OwnedNode] = []
    for offer in sorted(offers, key=lambda offer: offer.name):
        gpus = int(offer.resources.get(_GPU, 0))
        accelerator = offer.labels.get(LABEL_ACCELERATOR)
        if not offer.is_owned or accelerator is None or gpus < 1:
            continue
        there = [node for node in nodes if node.node_type == offer.name]
        for node in there:
            held = holds.get(node.ray_id or "", {})
            in_turns = shared.get(node.ray_id or "", {})
            taken = math.ceil(sum(shares[key] * count for key, count in in_turns.items()))
            leaves = node.cordon is not None or node.is_noticed
            room = sum(sizes[key] * count for key, count in held.items()) if leaves else gpus
            room = int(min(room, gpus - taken))
            found.append(OwnedNode(node.id, offer.site, accelerator, room, held))
        found += [
            OwnedNode(f"{offer.name}#{number}", offer.site, accelerator, gpus)
            for number in range(len(there), offer.nodes_max)
        ]
    return tuple(found)


def _find_holds(
    signals: Iterable[GatewaySignals], *, in_turns: bool
) -> tuple[dict[str, Mapping[Key, int]], dict[Key, float]]:
    """Return the replicas by Ray node and pool, and each pool's GPUs or parts of them a replica.

    Gateways see the same replicas; one that learned of a replica later sees fewer.
    """
    holds: dict[str, dict[Key, int]] = {}
    sizes: dict[Key, float] = {}
    for report in signals:
        for model in report.models:
            for pool in model.pools:
                if in_turns != (pool.gpu_shares > 1):
                    continue
                key = (model.app, pool.pool)
                sizes[key] = pool.gpus_per_replica / pool.gpu_shares
                for node, count in Counter(pool.ray_nodes).items():
                    held = holds.setdefault(node, {})
                    held[key] = max(count, held.get(key, 0))
    return dict(holds), sizes
