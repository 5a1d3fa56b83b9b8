"""What the nodes of the past teach: how long a cold start takes, how often a node is taken away.

Pure: the production edge (`autoscaling.node_history_reader`) and the simulator hand in plain lives
of nodes, and get the figures of `Observed.cold_starts_s` and `.losses_per_hour`. What nothing is
known of is absent, so that the setting counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cluster.model import Market

_LIVES_MAX = 20
"""The last so many nodes of a type count: images, weights and sites change."""

_PHASE_S_MAX = 1800.0
"""A node that took longer than this from asking to joining, or from joining to serving, waited for
work or for a person: that isn't a cold start."""

_WINDOW_S = 7 * 86_400.0
"""Losses and node hours older than a week say little of today's spot market."""

_HOUR_S = 3600.0

# Assumed before anything is known, as (losses, node hours): one spot node in twenty is taken away
# in an hour, one other node in a thousand. Light: two losses in ten node hours outweigh it.
_PRIOR: Mapping[Market, tuple[float, float]] = {
    "spot": (0.25, 5.0),
    "on_demand": (0.05, 50.0),
    "reserved": (0.05, 50.0),
    "owned": (0.05, 50.0),
}


@dataclass(frozen=True, slots=True)
class NodeLife:
    """One node's times by one clock, in seconds; None = it didn't come to that, or isn't known.

    `asked_s`: the launch was decided. `joined_s`: Ray lists it. `serving_s`: a replica on it runs.
    `ended_s`: it is gone. `is_lost`: it was taken away by notice, or found gone or dead unasked.
    """

    node_type: str
    asked_s: float
    joined_s: float | None = None
    serving_s: float | None = None
    ended_s: float | None = None
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """By node type: seconds from asking to serving, and losses in an hour of one node."""

    cold_starts_s: Mapping[str, float] = field(default_factory=dict)
    losses_per_hour: Mapping[str, float] = field(default_factory=dict)


def learn_from_nodes(
    lives: Iterable[NodeLife], markets: Mapping[str, Market], *, now_s: float
) -> NodeFigures:
    """Return what the lives teach of the node types that `markets` names, with their markets.

    Cold start: the median of the last nodes of the type that reached serving. Where none has, but
    some joined: their median to joining, plus the median from joining to serving of all types.

    Losses: the mean of a Gamma distribution, (losses + a) / (node hours + b) over the last week.
    The prior (a, b) is 0.25 losses in 5 hours for spot, else 0.05 in 50.
    """
    ordered = sorted(lives, key=lambda life: life.asked_s)
    by_type: dict[str, list[NodeLife]] = {name: [] for name in sorted(markets)}
    for life in ordered:
        by_type.setdefault(life.node_type, []).append(life)
    loads_s = (_span_s(life.joined_s, life.serving_s) for life in ordered)
    load_s = _median_s(took_s for took_s in loads_s if took_s is not None)
    cold_starts_s = {name: _find_cold_start_s(by_type[name], load_s) for name in sorted(markets)}
    return NodeFigures(
        cold_starts_s={
            name: took_s for name, took_s in cold_starts_s.items() if took_s is not None
        },
        losses_per_hour={
            name: _find_losses_per_hour(by_type[name], market, now_s=now_s)
            for name, market in sorted(markets.items())
        },
    )


def _find_cold_start_s(lives: Sequence[NodeLife], load_s: float | None) -> float | None:
    """Return one type's cold start, None if nothing is known; `load_s` is of all types."""
    whole_s = _median_s(took_s for life in lives if (took_s := _cold_start_s(life)) is not None)
    if whole_s is not None:
        return whole_s
    boots_s = (_span_s(life.asked_s, life.joined_s) for life in lives)
    boot_s = _median_s(took_s for took_s in boots_s if took_s is not None)
    return None if boot_s is None or load_s is None else boot_s + load_s


def _cold_start_s(life: NodeLife) -> float | None:
    """Return how long one node took from asking to serving, None if it didn't or idled first."""
    if life.joined_s is None:
        return _span_s(life.asked_s, life.serving_s)
    boot_s = _span_s(life.asked_s, life.joined_s)
    load_s = _span_s(life.joined_s, life.serving_s)
    return None if boot_s is None or load_s is None else boot_s + load_s


def _span_s(from_s: float | None, to_s: float | None) -> float | None:
    """Return a phase's length, None if it wasn't one: open, too long, or a clock that stepped."""
    if from_s is None or to_s is None or not 0 <= to_s - from_s <= _PHASE_S_MAX:
        return None
    return to_s - from_s


def _median_s(took_s: Iterable[float]) -> float | None:
    """Return the median of the last values, None if there is none."""
    last_s = list(took_s)[-_LIVES_MAX:]
    return median(last_s) if last_s else None


def _find_losses_per_hour(lives: Sequence[NodeLife], market: Market, *, now_s: float) -> float:
    losses, hours = _PRIOR[market]
    since_s = now_s - _WINDOW_S
    for life in lives:
        ended_s = now_s if life.ended_s is None else life.ended_s
        hours += max(0.0, ended_s - max(life.asked_s, since_s)) / _HOUR_S
        losses += life.is_lost and since_s <= ended_s <= now_s
    return losses / hours
