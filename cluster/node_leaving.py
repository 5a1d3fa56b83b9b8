"""What a rented node does about its own end. Pure; `cluster.node_agent` looks and acts.

    notice of interruption ──▶ drain with its deadline: replacements first, streams finish in time
    advice to move away    ──▶ drain without a deadline: replacements first, streams finish
    head lost for too long ──▶ end everything on the node and the machine with it

The last is the dead-man switch: a node that nobody can reach costs money and serves nobody.
"""

from dataclasses import dataclass

from cluster.notices import NoticeKind

_RANK: dict[NoticeKind | None, int] = {None: 0, "rebalance": 1, "interruption": 2}


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent saw. Times are seconds since then by a clock that nobody sets.

    `raylet_lost_s` and `head_lost_s` are 0 while they are there. `lost_head_s_max` None = the node
    never ends itself: it is owned. `interruption_left_s` None = no interruption is announced.
    `drained_for` is the notice that the node was drained for last.
    """

    raylet_lost_s: float = 0.0
    head_lost_s: float = 0.0
    lost_head_s_max: float | None = None
    interruption_left_s: float | None = None
    has_rebalance_advice: bool = False
    drained_for: NoticeKind | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Ray shall move away what runs here. `left_s` None = it may take its time."""

    kind: NoticeKind
    left_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class EndNode:
    """Everything on the node ends, and the machine."""

    reason: str


AgentAction = Wait | Drain | EndNode


def decide_agent(seen: Observation) -> AgentAction:
    """Return what the node does now. A notice that was obeyed already asks for nothing more."""
    if seen.lost_head_s_max is not None:
        for name, lost_s in (("the head", seen.head_lost_s), ("the raylet", seen.raylet_lost_s)):
            if lost_s >= seen.lost_head_s_max:
                limit = f"lost_head_s_max is {seen.lost_head_s_max:g} s"
                return EndNode(f"{name} has been away for {lost_s:.0f} s; {limit}")
    wanted: NoticeKind | None = "rebalance" if seen.has_rebalance_advice else None
    if seen.interruption_left_s is not None:
        wanted = "interruption"
    if wanted is None:
        return Wait("no notice")
    if _RANK[wanted] <= _RANK[seen.drained_for]:
        return Wait(f"drained already, for the {seen.drained_for} notice")
    if wanted == "rebalance":
        return Drain("rebalance", None, "the site advises to move away")
    left_s = seen.interruption_left_s
    return Drain("interruption", left_s, f"the site takes the machine away in {left_s:.0f} s")
