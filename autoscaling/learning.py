"""What the brain learns of a model while it runs: arrivals, lengths, and true speeds.

Gateways report counters that only grow; their differences are collected into bins of
`history.BIN_S`. Lengths are means that forget with a half-life of ten minutes. A pool's speed is
the ratio of what is seen to what the GPU table expects: of the requests finished a second while all
slots are taken and some wait, which is what its capacity really is; else of the pace per token,
where that is off by more than half. It stays within a quarter and four times, and a bin moves it by
half the way in the first case and a fifth in the second, so that no odd bin decides alone. Pure;
memory is a value in and a value out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoscaling.capacity import Lengths, find_pace_s, find_rps, find_variation
from autoscaling.history import BIN_S, Counts, DemandHistory, note_arrivals
from autoscaling.squares import SquareSums
from deployments.continuous_batching import Performance
from deployments.gpu_performance import load_rows
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served

_HALF_LIFE_S = 600.0
_REQUESTS_MIN = 20.0
_TOKENS_MIN = 200
_STRETCH_MAX = 4.0
_SPEED_WEIGHT = 0.2
_FULL_WEIGHT = 0.5
_SHORT = 0.9
_SAME = 0.05
_PACE_NEAR = 1.5
_SPEED_MIN, _SPEED_MAX = 0.25, 4.0


@dataclass(frozen=True, slots=True)
class LengthSums:
    """Requests, their tokens and their time, each halved every `_HALF_LIFE_S`.

    `cached_tokens` of `prompt_tokens` weren't read again.
    `hold_s` is how long the answered ones held slots, `streams_s` how long slots were held at all.
    """

    requests: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    hold_s: float = 0.0
    streams_s: float = 0.0
    cached_tokens: float = 0.0
    squares: SquareSums = field(default_factory=SquareSums)

    @property
    def mean(self) -> Lengths | None:
        """The mean request; None before enough were answered.

        Short answers end first, so at the beginning those answered are too short a sample. Time
        held by all over time held by the answered stretches it: for lengths without memory that
        is the estimate of highest likelihood.
        """
        if self.requests < _REQUESTS_MIN:
            return None
        stretch = self.streams_s / self.hold_s if self.hold_s > 0 else 1.0
        stretch = min(_STRETCH_MAX, max(1.0, stretch))
        is_varied = self.squares.requests >= _REQUESTS_MIN
        return Lengths(
            prompt_tokens=self.prompt_tokens / self.requests,
            output_tokens=stretch * self.output_tokens / self.requests,
            cached_tokens=self.cached_tokens / self.requests,
            read_variation=self.squares.read_variation if is_varied else None,
            output_variation=self.squares.output_variation if is_varied else None,
        )


@dataclass(frozen=True, slots=True)
class PoolSpeed:
    """How fast a pool is against the table, 1 = as fast.

    `rps` is what one replica without a row of the table was seen to finish a second. `streams_s`,
    `replicas_s` and `short_s` add up, in a bin of which `seen_s` was seen, streams, replicas and
    the time in which requests waited that it may answer; `full_s` is how long bins have been short
    all the time with the same replicas, of which the last bin had `replicas_before`.
    """

    ratio: float = 1.0
    rps: float | None = None
    streams_s: float = 0.0
    replicas_s: float = 0.0
    short_s: float = 0.0
    seen_s: float = 0.0
    full_s: float = 0.0
    replicas_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Learned:
    """All of it for one model; `served` is what the bin began with, by gateway and pool."""

    history: DemandHistory = field(default_factory=DemandHistory)
    lengths: LengthSums = field(default_factory=LengthSums)
    served: Mapping[str, Served] = field(default_factory=dict)
    speeds: Mapping[str, PoolSpeed] = field(default_factory=dict)
    looked_s: float | None = None


def learn(
    learned: Learned, reports: Sequence[GatewaySignals], app: str, *, now_s: float, keep_s: float
) -> Learned:
    """Return what is known after a look at what gateways report of one model."""
    parts = [(r.gateway, model) for r in reports for model in r.models if model.app == app]
    seen = {gateway: Counts(m.arrived, m.arrived_may_burst) for gateway, m in parts}
    before = learned.history
    history = note_arrivals(before, seen, now_s=now_s, keep_s=keep_s)
    learned = _add_up(learned, [model for _, model in parts], now_s=now_s)
    learned = replace(learned, history=history, looked_s=now_s)
    if history.open_since_s == before.open_since_s:
        return learned
    return _close_bin(learned, parts, is_whole=history.closed > before.closed)


def estimate_rps(
    learned: Learned, pool: PoolSignal, *, tpot_s_max: float, is_corrected: bool
) -> float | None:
    """Return what one replica of a pool sustains, None while nothing tells."""
    speed = learned.speeds.get(pool.pool, PoolSpeed())
    lengths = learned.lengths.mean
    performance = find_performance(pool)
    if lengths is None:
        return None
    if performance is None:
        return speed.rps
    rps = find_rps(performance, lengths, slots=pool.slots_per_replica, tpot_s_max=tpot_s_max)
    return rps * speed.ratio if is_corrected else rps


def estimate_variation(
    learned: Learned, pools: Sequence[PoolSignal], *, tpot_s_max: float
) -> float:
    """Return how much a request's work varies, 1 while nothing tells.

    On the first pool with a row of the table, an owned one if there is any: its capacity is what
    room is left of, and the share of work that reading is differs little between rows.
    """
    lengths = learned.lengths.mean
    for pool in sorted(pools, key=lambda pool: not pool.owned):
        performance = find_performance(pool)
        if performance is not None and lengths is not None:
            slots = pool.slots_per_replica
            return find_variation(performance, lengths, slots=slots, tpot_s_max=tpot_s_max)
    return 1.0


def find_performance(pool: PoolSignal) -> Performance | None:
    """Return what the GPU table says of a pool's replicas, None if it says nothing."""
    row = load_rows().get(pool.gpu_row) if pool.gpu_row is not None else None
    return row.to_decode_performance() if row is not None else None


def _add_up(learned: Learned, parts: Sequence[ModelSignal], *, now_s: float) -> Learned:
    """Return it with streams and replicas added up over the time since the last look."""
    gap_s = 0.0 if learned.looked_s is None else now_s - learned.looked_s
    gap_s = gap_s if 0 <= gap_s <= BIN_S else 0.0
    speeds = dict(learned.speeds)
    streams: dict[str, int] = {}
    replicas: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for model in parts:
        for pool in model.pools:
            streams[pool.pool] = streams.get(pool.pool, 0) + pool.streams_running
            replicas[pool.pool] = max(replicas.get(pool.pool, 0), pool.replicas_running)
            waiting[pool.pool] = waiting.get(pool.pool, 0) + _count_waiting(model, pool)
    for name, count in streams.items():
        known = speeds.get(name, PoolSpeed())
        speeds[name] = replace(
            known,
            streams_s=known.streams_s + count * gap_s,
            replicas_s=known.replicas_s + replicas[name] * gap_s,
            short_s=known.short_s + gap_s * (waiting[name] > 0),
            seen_s=known.seen_s + gap_s,
        )
    return replace(learned, speeds=speeds)


def _count_waiting(model: ModelSignal, pool: PoolSignal) -> int:
    """Return how many wait that a pool may answer."""
    if not pool.owned:
        return model.waiting_may_burst
    return model.waiting_public + model.waiting_internal + model.waiting_restricted


def _close_bin(
    learned: Learned, parts: Sequence[tuple[str, ModelSignal]], *, is_whole: bool
) -> Learned:
    """Return it after a bin: lengths and speeds take in what was answered in it.

    A bin that isn't whole, after a silence, teaches nothing: only its end is a new beginning.
    """
    served: dict[str, Served] = {}
    fresh: dict[str, Served] = {}
    squares = learned.lengths.squares
    pools: dict[str, PoolSignal] = {}
    for gateway, model in parts:
        for pool in model.pools:
            key = f"{gateway}/{pool.pool}"
            served[key] = pool.served
            pools[pool.pool] = pool
            new = _subtract(pool.served, learned.served.get(key))
            fresh[pool.pool] = _add(fresh.get(pool.pool, Served()), new)
            squares = squares.add(new)
    tpot_s_max = min((model.tpot_s_max for _, model in parts), default=math.inf)
    lengths = learned.lengths
    if is_whole:
        for name, new in fresh.items():
            known = learned.speeds.get(name, PoolSpeed())
            lengths = _lengthen(lengths, new, streams_s=known.streams_s)
        lengths = _fade(replace(lengths, squares=squares))
    speeds: dict[str, PoolSpeed] = {}
    for name, pool in pools.items():
        known = learned.speeds.get(name, PoolSpeed())
        speeds[name] = (
            _learn_speed(known, pool, fresh[name], lengths, tpot_s_max=tpot_s_max)
            if is_whole
            else PoolSpeed(known.ratio, known.rps)
        )
    return replace(learned, lengths=lengths, served=served, speeds=speeds)


def _learn_speed(
    speed: PoolSpeed, pool: PoolSignal, new: Served, sums: LengthSums, *, tpot_s_max: float
) -> PoolSpeed:
    """Return a pool's speed after a bin, with nothing added up any more."""
    lengths, performance = sums.mean, find_performance(pool)
    ratio, rps = speed.ratio, speed.rps
    replicas = speed.replicas_s / speed.seen_s if speed.seen_s > 0 else 0.0
    is_same = math.isclose(replicas, speed.replicas_before, rel_tol=_SAME)
    is_full = speed.short_s >= _SHORT * speed.seen_s and replicas > 0 and is_same
    full_s = speed.full_s + BIN_S if is_full else 0.0
    # What finishes shows the capacity once all that was begun before has left.
    has_settled = full_s > 0 and new.requests > 0 and speed.full_s >= new.hold_s / new.requests
    full_rps = new.requests / speed.replicas_s if has_settled else None
    if full_rps:
        rps = full_rps if rps is None else rps + _FULL_WEIGHT * (full_rps - rps)
    elif rps is None and new.requests >= _REQUESTS_MIN and new.hold_s > 0:
        # Slots by how long one is held: right only for a full replica, and corrected by one.
        rps = pool.slots_per_replica * new.requests / new.hold_s
    if performance is not None and lengths is not None and speed.replicas_s > 0:
        if full_rps is not None:
            expected = find_rps(
                performance,
                lengths,
                slots=pool.slots_per_replica,
                tpot_s_max=tpot_s_max,
            )
            ratio = _approach(ratio, full_rps / expected, weight=_FULL_WEIGHT)
        elif new.decode_tokens >= _TOKENS_MIN and new.decode_s > 0:
            batch = max(1.0, speed.streams_s / speed.replicas_s)
            pace_s = find_pace_s(performance, lengths, batch=batch)
            found = pace_s * new.decode_tokens / new.decode_s
            ratio = _approach(ratio, 1.0 if _is_near(found) else found)
    return PoolSpeed(ratio, rps, full_s=full_s, replicas_before=replicas)


def _is_near(found: float) -> bool:
    """Whether a pace is within what a changing mix of requests makes of the table's."""
    return 1 / _PACE_NEAR <= found <= _PACE_NEAR


def _approach(ratio: float, found: float, *, weight: float = _SPEED_WEIGHT) -> float:
    found = min(_SPEED_MAX, max(_SPEED_MIN, found))
    return ratio + weight * (found - ratio)


def _lengthen(sums: LengthSums, new: Served, *, streams_s: float) -> LengthSums:
    return LengthSums(
        sums.requests + new.requests,
        sums.prompt_tokens + new.prompt_tokens,
        sums.output_tokens + new.output_tokens,
        sums.hold_s + new.hold_s,
        sums.streams_s + streams_s,
        sums.cached_tokens + new.cached_tokens,
        sums.squares,
    )


def _fade(sums: LengthSums) -> LengthSums:
    share = 0.5 ** (BIN_S / _HALF_LIFE_S)
    return LengthSums(
        sums.requests * share,
        sums.prompt_tokens * share,
        sums.output_tokens * share,
        sums.hold_s * share,
        sums.streams_s * share,
        sums.cached_tokens * share,
        sums.squares.fade(share),
    )


def _subtract(now: Served, before: Served | None) -> Served:
    """Return what was served since; a counter that fell began again at zero."""
    if before is None or now.requests < before.requests:
        return now if before is not None else Served()
    return Served(
        requests=now.requests - before.requests,
        prompt_tokens=now.prompt_tokens - before.prompt_tokens,
        output_tokens=now.output_tokens - before.output_tokens,
        hold_s=now.hold_s - before.hold_s,
        first_tokens=now.first_tokens - before.first_tokens,
        ttft_s=now.ttft_s - before.ttft_s,
        decode_tokens=now.decode_tokens - before.decode_tokens,
        decode_s=now.decode_s - before.decode_s,
        cached_tokens=now.cached_tokens - before.cached_tokens,
        read_tokens_squared=now.read_tokens_squared - before.read_tokens_squared,
        output_tokens_squared=now.output_tokens_squared - before.output_tokens_squared,
    )


def _add(one: Served, other: Served) -> Served:
    return Served(
        requests=one.requests + other.requests,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        hold_s=one.hold_s + other.hold_s,
        first_tokens=one.first_tokens + other.first_tokens,
        ttft_s=one.ttft_s + other.ttft_s,
        decode_tokens=one.decode_tokens + other.decode_tokens,
        decode_s=one.decode_s + other.decode_s,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        read_tokens_squared=one.read_tokens_squared + other.read_tokens_squared,
        output_tokens_squared=one.output_tokens_squared + other.output_tokens_squared,
    )
