"""How owned GPUs are split over models: what must stay first, then what is worth most.

Nodes of one site and accelerator are an island; a pool lives on one. On an island the worth of all
claims together (`autoscaling.owned_claims`) is made the greatest, exactly, under the whole nodes
that groups need: of replicas whose sizes divide one another, small ones never take apart what a
group could have. `autoscaling.owned_places` shows that whole groups fit. A group that was asked for
and has no room yet gets it: what stands on the node that is to be its own gives way, unless it is
a minimum or what demand that must stay needs.

Pure: memory is a value in and a value out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from autoscaling.owned_claims import (
    Claims,
    ModelDemand,
    ShareMemory,
    SplitRules,
    build_claims,
)
from autoscaling.owned_places import Group, Key, OwnedNode, Places, place_groups


@dataclass(frozen=True, slots=True)
class Share:
    """What a pool gets: at most `replicas_max`, and no fewer than `replicas_min`.

    The latter is its own minimum, more only where others gave up GPUs for it. `why` is what a
    person should know of it, "" when it has all it asks for.
    """

    replicas_min: int
    replicas_max: int
    why: str = ""
    memory: ShareMemory = field(default_factory=ShareMemory)


@dataclass(frozen=True, slots=True)
class Split:
    """The shares by application and pool. A pool that no node can hold has none.

    `places` is where whole groups fit, by node: a proof, not an order; Ray places replicas.
    """

    shares: Mapping[Key, Share] = field(default_factory=dict)
    places: Mapping[str, Mapping[Key, int]] = field(default_factory=dict)


def split_owned(
    models: Iterable[ModelDemand],
    nodes: Iterable[OwnedNode],
    *,
    now_s: float,
    rules: SplitRules,
) -> Split:
    """Return what each owned pool may have of these nodes."""
    left = {model.app: model for model in models}
    islands: dict[tuple[str, str], list[OwnedNode]] = {}
    for node in sorted(nodes, key=lambda node: node.id):
        islands.setdefault((node.site, node.accelerator), []).append(node)
    shares: dict[Key, Share] = {}
    places: dict[str, Mapping[Key, int]] = {}
    for label, members in sorted(islands.items()):
        largest, gpus = max(node.gpus for node in members), sum(node.gpus for node in members)
        asked = [
            build_claims(left[app], pool, gpus=gpus, now_s=now_s, rules=rules)
            for app in sorted(left)
            for pool in sorted(left[app].pools, key=lambda pool: pool.key)
            if (pool.site, pool.accelerator) == label and 0 < pool.gpus_per_replica <= largest
        ]
        island = _Island(asked, members, gpus)
        shares |= island.split(now_s=now_s)
        places |= island.placed.by_node
        for claims in asked:
            app = claims.pool.app
            left[app] = left[app].without(island.wanted(claims) * claims.rps)
    return Split(shares, places)


class _Island:
    """The pools and nodes of one site and accelerator, and how many replicas each pool gets."""

    def __init__(self, asked: Sequence[Claims], nodes: Sequence[OwnedNode], gpus: int) -> None:
        self._asked = asked
        self._gpus = gpus
        counts = _choose(asked, nodes)
        groups = [
            Group(
                claims.pool.key,
                gpus=claims.pool.gpus_per_replica,
                replicas=counts[claims.pool.key],
                firm=claims.firm,
            )
            for claims in asked
        ]
        self.placed: Places = place_groups(groups, nodes)
        self._waiting = [
            claims
            for claims in asked
            if claims.pool.awaits_node
            and min(self._count(claims), claims.pool.planned) > claims.pool.running
        ]

    def split(self, *, now_s: float) -> dict[Key, Share]:
        """Return the pools' shares; who takes from others and who gives is remembered."""
        losers = [c for c in self._asked if self._limit(c) < c.pool.planned]
        gainers = [c for c in self._asked if self.wanted(c) > c.pool.planned]
        shares: dict[Key, Share] = {}
        for claims in self._asked:
            pool, memory = claims.pool, claims.pool.memory
            if losers and claims in gainers:
                memory = replace(memory, gained_s=now_s, kept=self.wanted(claims))
            if gainers and claims in losers:
                memory = replace(memory, lost_s=now_s)
            has_gained = claims.has_gained or memory.gained_s == now_s
            shares[pool.key] = Share(
                replicas_min=self.wanted(claims) if has_gained else pool.replicas_min,
                replicas_max=max(pool.replicas_min, self._limit(claims)),
                why=self._explain(claims, gainers),
                memory=memory,
            )
        return shares

    def wanted(self, claims: Claims) -> int:
        """Return how many of the replicas it gets have work or are its minimum."""
        return min(max(claims.pool.replicas_min, claims.needed), self._limit(claims))

    def _count(self, claims: Claims) -> int:
        return self.placed.counts[claims.pool.key]

    def _limit(self, claims: Claims) -> int:
        """Return how many replicas a pool may have now.

        While a larger group waits for room, smaller pools give up what stands on its node and grow
        by nothing but firm claims: Ray would put them there.
        """
        pool, count = claims.pool, self._count(claims)
        if all(other.pool.gpus_per_replica <= pool.gpus_per_replica for other in self._waiting):
            return count
        stays = pool.planned - self.placed.displaced[pool.key]
        return min(count, max(0, stays, claims.firm))

    def _explain(self, claims: Claims, gainers: Sequence[Claims]) -> str:
        """Return what a person should know of a share: what it gives up or must do without."""
        pool, limit = claims.pool, self._limit(claims)
        gives, lacks = limit < pool.planned, limit < claims.needed
        if not gives and not lacks:
            return ""
        takers = [other.pool for other in (*gainers, *self._waiting) if other is not claims]
        names = [f"{taker.app} ({taker.gpus_per_replica} GPU a replica)" for taker in takers]
        text = (
            f"may have {limit} replicas of {pool.gpus_per_replica} GPU on {self._gpus} owned GPUs"
        )
        if gives:
            text += f", gives up {pool.planned - limit}"
            text += f" for {', '.join(dict.fromkeys(names))}" if names else ""
        return text + (f"; its demand fills {claims.needed}" if lacks else "")


def _choose(asked: Sequence[Claims], nodes: Sequence[OwnedNode]) -> dict[Key, int]:
    """Return the replicas of each pool that are together worth most.

    From the largest size to the smallest: whole nodes hold so many of a size, wherever the larger
    ones lie, as long as each size divides the next. `best` has the greatest worth for each number
    of GPUs used, with how many claims of each size it takes.
    """
    sizes = sorted({claims.pool.gpus_per_replica for claims in asked}, reverse=True)
    if all(_count_asked(asked, size) <= _count_room(nodes, size) for size in sizes):
        return {claims.pool.key: len(claims.worth) for claims in asked}
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    ranked = [_rank_claims(asked, size) for size in sizes]
    for size, claims_of_size in zip(sizes, ranked, strict=True):
        sums = [0, *accumulate(worth for worth, _ in claims_of_size)]
        room = _count_room(nodes, size)
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for used, (worth, taken) in best.items():
            most = min(len(sums) - 1, max(0, room - used) // size)
            # Every claim is worth something, so the last size takes all it can.
            for count in range(most if size == sizes[-1] else 0, most + 1):
                found = (worth + sums[count], (*taken, count))
                gpus = used + count * size
                grown[gpus] = max(found, grown.get(gpus, found))
        best = grown
    _, taken = max(best.values())
    counts = {claims.pool.key: 0 for claims in asked}
    for claims_of_size, count in zip(ranked, taken, strict=True):
        for _, key in claims_of_size[:count]:
            counts[key] += 1
    return counts


def _count_asked(asked: Sequence[Claims], size: int) -> int:
    """Return the GPUs of all claims of this size and larger."""
    large = (claims for claims in asked if claims.pool.gpus_per_replica >= size)
    return sum(len(claims.worth) * claims.pool.gpus_per_replica for claims in large)


def _count_room(nodes: Sequence[OwnedNode], size: int) -> int:
    """Return the GPUs that replicas of this size could have of empty nodes."""
    return sum(node.gpus // size * size for node in nodes)


def _rank_claims(asked: Sequence[Claims], size: int) -> list[tuple[int, Key]]:
    """Return the claims of so many GPUs each, worthiest first."""
    claims_of_size = [
        (worth, claims.pool.key)
        for claims in asked
        if claims.pool.gpus_per_replica == size
        for worth in claims.worth
    ]
    return sorted(claims_of_size, key=lambda claim: (-claim[0], claim[1]))
