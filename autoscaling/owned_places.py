"""Where replicas fit on owned nodes: whole groups first, and what runs stays where it is.

A group of tensor-parallel workers never spans nodes. Largest groups are placed first, so smaller
ones fill what is left and never split it. A new group takes the node where least must give way,
then the tightest. Pure; `autoscaling.owned_split` decides how many there are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class OwnedNode:
    """A node at a site whose hardware is paid for, and the replicas on it by application and pool.

    One that may be started but isn't there yet holds nothing.
    """

    id: str
    site: str
    accelerator: str
    gpus: int
    holds: Mapping[Key, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """A pool's `replicas` of so many GPUs each; the first `firm` of them give way to nobody."""

    key: Key
    gpus: int
    replicas: int
    firm: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Replicas by node and pool, how many of each pool found room, how many must leave theirs."""

    by_node: Mapping[str, Mapping[Key, int]]
    counts: Mapping[Key, int]
    displaced: Mapping[Key, int]


def place_groups(groups: Iterable[Group], nodes: Sequence[OwnedNode]) -> Places:
    """Return where the replicas fit; only odd sizes (3 beside 2 GPUs) can fail to find room."""
    order = sorted(groups, key=lambda group: group.key)
    board = _Board(order, nodes)
    for size in sorted({group.gpus for group in order}, reverse=True):
        alike = [group for group in order if group.gpus == size]
        left = {group.key: group.replicas - board.keep(group) for group in alike}
        for group in alike:
            for _ in range(left[group.key]):
                if not board.add(group):
                    break
    counts = Counter[Key]()
    for placed in board.placed.values():
        counts.update(placed)
    return Places(
        by_node={node_id: dict(placed) for node_id, placed in sorted(board.placed.items())},
        counts={group.key: counts[group.key] for group in order},
        displaced={group.key: board.count_displaced(group) for group in order},
    )


class _Board:
    """The nodes while they are being filled."""

    def __init__(self, groups: Sequence[Group], nodes: Sequence[OwnedNode]) -> None:
        self._nodes = nodes
        self._groups = {group.key: group for group in groups}
        self._free = {node.id: node.gpus for node in nodes}
        self._smaller: dict[tuple[str, int], tuple[int, int]] = {}
        self.placed: dict[str, Counter[Key]] = {node.id: Counter() for node in nodes}

    def keep(self, group: Group) -> int:
        """Leave replicas where they run and return how many; the emptiest nodes lose theirs.

        So Serve chooses its victims: those on nodes with the fewest replicas.
        """
        left = group.replicas
        for node in sorted(self._nodes, key=lambda node: (-sum(node.holds.values()), node.id)):
            count = min(left, node.holds.get(group.key, 0), self._free[node.id] // group.gpus)
            self._put(group, node, count)
            left -= count
        return group.replicas - left

    def add(self, group: Group) -> bool:
        """Give one more replica a place; False if no node has room."""
        fitting = [node for node in self._nodes if self._free[node.id] >= group.gpus]
        if not fitting:
            return False
        self._put(group, min(fitting, key=lambda node: self._rank(node, group)), 1)
        return True

    def count_displaced(self, group: Group) -> int:
        """Return how many of its replicas run where they are not placed."""
        return sum(
            max(0, node.holds.get(group.key, 0) - self.placed[node.id][group.key])
            for node in self._nodes
        )

    def _put(self, group: Group, node: OwnedNode, count: int) -> None:
        self._free[node.id] -= count * group.gpus
        self.placed[node.id][group.key] += count

    def _rank(self, node: OwnedNode, group: Group) -> tuple[int, int, int, str]:
        """Sort key: fewest firm GPUs that must give way, fewest at all, then the tightest fit."""
        taken, firm = self._count_smaller(node, group.gpus)
        free = self._free[node.id]
        gives_way = max(0, group.gpus - (free - taken))
        firm_gives_way = max(0, group.gpus - (free - firm))
        return (firm_gives_way, gives_way, free, node.id)

    def _count_smaller(self, node: OwnedNode, gpus: int) -> tuple[int, int]:
        """Return the GPUs of a node that smaller groups run on: all, and those of firm replicas."""
        if (node.id, gpus) not in self._smaller:
            smaller = [
                (self._groups[key], count)
                for key, count in node.holds.items()
                if key in self._groups and self._groups[key].gpus < gpus
            ]
            self._smaller[node.id, gpus] = (
                sum(other.gpus * count for other, count in smaller),
                sum(other.gpus * min(count, other.firm) for other, count in smaller),
            )
        return self._smaller[node.id, gpus]
