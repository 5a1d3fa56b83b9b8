"""The decision record: what was decided and why, as JSON on the blackboard.

One record for everything: people (`tidegate status`), the gateway (which pools are closing) and the
next autoscaler process, which takes its memory from here. Only adds up what was decided elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from autoscaling.node_history import NodeFigures
from autoscaling.shadow import Shadow, Shadowed, ShadowModel
from autoscaling.shadow_view import describe_shadow, say_shadow
from autoscaling.snapshot import Decision, Reason, Snapshot
from autoscaling.stability import ModelMemory

BurstState = Literal["closed", "opening", "open", "closing"]

_MEMORY: TypeAdapter[dict[str, ModelMemory]] = TypeAdapter(
    dict[str, ModelMemory], config=ConfigDict(extra="forbid")
)
_SHADOW: TypeAdapter[dict[str, ShadowModel]] = TypeAdapter(
    dict[str, ShadowModel], config=ConfigDict(extra="forbid")
)

CHANGE_CODES = frozenset({"raise", "lower", "close", "bounds"})
"""The codes of reasons for changing something."""

_CHANGES_MAX = 8


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """A node as the decision record lists it.

    `ray_id` is Ray's id in hexadecimal, None until Ray lists it. `cordon` is what an operator wants
    of it, `is_noticed` whether its site has announced to take it away.
    """

    id: str
    node_type: str
    site: str
    is_owned: bool
    state: str
    ray_id: str | None = None
    cordon: str | None = None
    is_noticed: bool = False


@dataclass(frozen=True, slots=True)
class SchedulerReport:
    """What the scheduler's last tick saw and decided.

    `refusals` counts what each limit refused, by the limit's name. `blocked_sites` says, by site,
    why demand for it gets no node. `released` are the nodes sent home, by the ledger's ids.
    `tick_s` is how long the tick took.
    """

    nodes: tuple[NodeSummary, ...] = ()
    launches: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    refusals: Mapping[str, int] = field(default_factory=dict)
    usd_per_hour: Decimal = Decimal(0)
    blocked_sites: Mapping[str, str] = field(default_factory=dict)
    released: tuple[str, ...] = ()
    tick_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A number of replicas that was changed at a time, wall time, and why."""

    at_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else people want to know of the process that decides.

    `problems` are things a person must mend, such as a cluster file that can't be used. `waiting`
    says who waits to take over. `brain_s` is how long the brain's last tick took. `changes` are the
    last ones: a second later the reasons are about holding what was changed. `learned` is what past
    nodes taught.
    """

    is_leader: bool = True
    problems: tuple[str, ...] = ()
    waiting: str | None = None
    brain_s: float = 0.0
    changes: tuple[Change, ...] = ()
    learned: NodeFigures = field(default_factory=NodeFigures)


_CHANGES: TypeAdapter[tuple[Change, ...]] = TypeAdapter(
    tuple[Change, ...], config=ConfigDict(extra="forbid")
)


def build_record(
    decision: Decision,
    snapshot: Snapshot,
    report: SchedulerReport,
    around: Surroundings = Surroundings(),
    *,
    shadowed: Shadowed | None = None,
) -> dict[str, Any]:
    """Return the record of one decision, ready for JSON.

    In shadow mode, targets, closing pools and the burst's state are of what is carried out, reasons
    and memory of what is decided, and `shadow` tells what would have come of it.
    """
    codes = {(reason.code, reason.subject) for reason in (*decision.reasons, *decision.unmet)}
    carried = decision if shadowed is None else shadowed.carried
    return {
        "decided_s": snapshot.now_s,
        "mode": "act" if shadowed is None else "shadow",
        "targets": carried.targets,
        "closing": carried.closing,
        "burst": find_burst_state(carried, snapshot, report),
        "reasons": [str(reason) for reason in decision.reasons] + list(report.reasons),
        "unmet": [str(reason) for reason in decision.unmet],
        "changes": _CHANGES.dump_python(around.changes, mode="json"),
        "codes": [list(code) for code in sorted(codes)],
        "limits": [*around.problems, *report.limits],
        "refusals": dict(report.refusals),
        "usd_per_hour": str(report.usd_per_hour),
        "nodes": [_describe_node(node) for node in report.nodes],
        "is_leader": around.is_leader,
        "waiting": around.waiting,
        "tick_s": {"brain": around.brain_s, "scheduler": report.tick_s},
        "learned": {
            "cold_starts_s": _round(around.learned.cold_starts_s),
            "losses_per_hour": _round(around.learned.losses_per_hour),
        },
        "memory": _MEMORY.dump_python(dict(decision.memory), mode="json"),
        "shadow": None if shadowed is None else _describe_shadow(shadowed, snapshot.now_s),
    }


def _round(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figure, 4) for name, figure in sorted(figures.items())}


def _describe_shadow(shadowed: Shadowed, now_s: float) -> dict[str, Any]:
    described = describe_shadow(shadowed.shadow, now_s=now_s)
    return {
        "models": described,
        "says": list(say_shadow(described)),
        "memory": _SHADOW.dump_python(dict(shadowed.shadow), mode="json"),
    }


def _describe_node(node: NodeSummary) -> dict[str, Any]:
    return {
        "id": node.id,
        "type": node.node_type,
        "site": node.site,
        "state": node.state,
        "cordon": node.cordon,
        "noticed": node.is_noticed,
    }


def read_memory(record: Mapping[str, Any]) -> dict[str, ModelMemory]:
    """Return the memory a record holds.

    Raises:
        ValueError: it isn't a record of ours; the caller begins without memory.
    """
    # As JSON, which it was on the board: strict values inside take no plain mappings otherwise.
    return _MEMORY.validate_json(json.dumps(record.get("memory", {})))


def read_shadow(record: Mapping[str, Any]) -> Shadow:
    """Return what a record in shadow mode follows, nothing if it was made in another mode.

    Raises:
        ValueError: it isn't a record of ours; the caller begins without.
    """
    shadow = record.get("shadow") or {}
    return _SHADOW.validate_json(json.dumps(shadow.get("memory", {})))


def add_changes(
    before: Sequence[Change], decision: Decision, *, now_s: float
) -> tuple[Change, ...]:
    """Return the last changes, those of this decision included, oldest first."""
    new = [Change(now_s, str(one)) for one in decision.reasons if one.code in CHANGE_CODES]
    return (*before, *new)[-_CHANGES_MAX:]


def read_changes(record: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return the last changes that a record lists.

    Raises:
        ValueError: it isn't a record of ours; the caller begins without.
    """
    return _CHANGES.validate_json(json.dumps(record.get("changes", [])))


def find_burst_state(decision: Decision, snapshot: Snapshot, report: SchedulerReport) -> BurstState:
    """Return how open the sites that aren't owned are, from the first wish to the last node."""
    closing = decision.closing
    states = []
    for model in snapshot.models:
        for pool in model.pools:
            if pool.is_owned:
                continue
            planned = decision.targets[model.app][pool.name]
            is_closing = pool.name in closing.get(model.app, ())
            states.append((planned, pool.observed, is_closing))
    if any(planned > observed for planned, observed, _ in states):
        return "opening"
    if any(planned > 0 and not is_closing for planned, _, is_closing in states):
        return "open"
    has_left = any(observed > 0 or is_closing for _, observed, is_closing in states)
    has_nodes = any(not node.is_owned for node in report.nodes)
    return "closing" if has_left or has_nodes else "closed"


def list_news(reasons: Sequence[Reason], known: Sequence[Reason]) -> list[Reason]:
    """Return the reasons worth a log line: those whose kind and subject weren't there before."""
    before = {(reason.code, reason.subject) for reason in known}
    return [reason for reason in reasons if (reason.code, reason.subject) not in before]
