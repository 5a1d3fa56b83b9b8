"""What the report's charts are drawn from: each policy's timeline as lists of rounded numbers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autoscaling.peers.sizing import build_sizing
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.timeline import Decided, NodeSpan, Sample, Timeline
from autoscaling.simulator.traffic import Traffic
from deployments.spec import PoolSpec

_S_PER_HOUR = 3600.0
_PAID_S_MIN = 60.0
_NO_SAMPLE = Sample(0.0, 0, {}, {}, {}, 0.0, 0.0)


def build_pools(traffic: Traffic, scenario: Scenario) -> list[dict[str, Any]]:
    """Return the pools in the order they are filled, with what one replica answers a second.

    The rate is at this traffic's mean lengths, within the promised time per token.
    """
    rps = build_sizing(traffic, scenario).replica_rps
    sites = list(dict.fromkeys(pool.site for pool in _order(scenario.model.pools)))
    return [
        {
            "name": pool.name,
            "site": pool.site,
            "market": pool.market,
            "accelerator": pool.accelerator,
            "hue": sites.index(pool.site),
            "is_pale": pool.market == "spot",
            "rps": round(rps[pool.name], 4),
            "slots": pool.slots,
            "replicas_min": pool.min_replicas,
            "replicas_max": pool.max_replicas,
        }
        for pool in _order(scenario.model.pools)
    ]


def build_series(timeline: Timeline, scenario: Scenario) -> dict[str, Any]:
    """Return one run as the page draws it: a list per quantity, one value for each bin."""
    samples = _fill(timeline)
    pools = [pool.name for pool in _order(scenario.model.pools)]
    texts: dict[str, int] = {}

    def number(reasons: Iterable[str]) -> list[int]:
        return [texts.setdefault(text, len(texts)) for text in reasons]

    return {
        "running": {name: [s.running.get(name, 0) for s in samples] for name in pools},
        "planned": {name: [s.planned.get(name, 0) for s in samples] for name in pools},
        "streams": [sum(s.streams.values()) for s in samples],
        "waiting": [s.waiting for s in samples],
        "usd": [round(s.cloud_usd, 4) for s in samples],
        "usd_per_hour": [round(s.cloud_usd_per_hour, 4) for s in samples],
        "ttft_p50_s": _round(timeline.list_ttft_s(50)),
        "ttft_p99_s": _round(timeline.list_ttft_s(99)),
        "missed": [
            came - kept for came, kept in zip(timeline.arrivals, timeline.in_time, strict=True)
        ],
        "nodes": _list_nodes(timeline, scenario),
        "sold_out": [[round(e.at_s, 1), e.node_type] for e in timeline.sold_out],
        "decisions": [_describe(decided, number) for decided in timeline.decisions],
        "holds": {str(at): number(reasons) for at, reasons in sorted(timeline.holds.items())},
        "texts": list(texts),
    }


def _order(pools: Iterable[PoolSpec]) -> list[PoolSpec]:
    return sorted(pools, key=lambda pool: (not pool.owned, pool.site, pool.market != "spot"))


def _fill(timeline: Timeline) -> list[Sample]:
    """Return a sample for each bin: where there is none, things are as they were."""
    found: list[Sample] = []
    last = _NO_SAMPLE
    for at in range(len(timeline.arrivals)):
        last = timeline.samples.get(at, last)
        found.append(last)
    return found


def _round(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 3) for value in values]


def _list_nodes(timeline: Timeline, scenario: Scenario) -> list[dict[str, Any]]:
    """Return the rented nodes, and owned ones that weren't there from the start."""
    kinds = {str(kind.name): kind for kind in scenario.settings.node_types.values()}
    return [
        {
            "id": span.node_id,
            "type": span.node_type,
            "site": kinds[span.node_type].site,
            "asked_s": round(span.asked_s, 1),
            "joined_s": None if span.joined_s is None else round(span.joined_s, 1),
            "ended_s": None if span.ended_s is None else round(span.ended_s, 1),
            "end": span.end,
            "usd": round(_cost(span, float(kinds[span.node_type].usd_per_hour), timeline), 4),
        }
        for span in timeline.spans.values()
        if span.asked_s <= timeline.duration_s
        and (kinds[span.node_type].market != "owned" or span.asked_s > 0)
    ]


def _cost(span: NodeSpan, usd_per_hour: float, timeline: Timeline) -> float:
    """Return what a node cost within the traffic's time, a minute at least."""
    until_s = timeline.duration_s if span.ended_s is None else span.ended_s
    paid_s = max(_PAID_S_MIN, min(until_s, timeline.duration_s) - span.asked_s)
    return paid_s / _S_PER_HOUR * usd_per_hour


def _describe(
    decided: Decided, number: Callable[[Iterable[str]], list[int]]
) -> dict[str, list[Any] | float]:
    before: Mapping[str, int] = decided.before
    names = sorted({*before, *decided.after})
    changes = [
        [name, before.get(name, 0), decided.after.get(name, 0)]
        for name in names
        if before.get(name, 0) != decided.after.get(name, 0)
    ]
    return {"at_s": round(decided.at_s, 1), "changes": changes, "why": number(decided.reasons)}
