"""What a replica can do, in requests a second of this model's lengths: capacity as work.

An A100 on-prem and an L40S in the cloud add up here, and so do short and long requests. The rate
is that of the largest batch which keeps the promised time per token and fits slots and KV memory:
n requests at once, each with one prefill and O tokens at the batch's pace. Each of them brings the
others one prefill per O steps, so the pace is base + n x (slope of decoding alone + a prefill's
share). A prefill is of what has to be read: what the engine has from earlier prompts costs memory,
but no time. With the lengths a row of the GPU table was fitted with, this is the row's own pace.

Measurements correct the table (`autoscaling.learning`). Pure.
"""

from dataclasses import dataclass

from deployments.continuous_batching import Performance

# Where the deviation is three times the mean, waits come from single requests: no room for chance
# keeps others from waiting behind one of those, and a few answers can't tell how rare they are.
_VARIATION_MAX = 9.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a request, of whose prompt `cached_tokens` needn't be read.

    The whole prompt counts in KV memory: a prefix is shared there only with requests that run at
    the same moment, and how many do is not reported. The variations are squared coefficients of
    variation: of what is read of a prompt, and of its output. None = not known.
    """

    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0
    read_variation: float | None = None
    output_variation: float | None = None

    @property
    def read_tokens(self) -> float:
        """What has to be read of a prompt; never negative, whatever counters say."""
        return max(0.0, self.prompt_tokens - self.cached_tokens)


def find_pace_s(performance: Performance, lengths: Lengths, *, batch: float) -> float:
    """Return the seconds per token of each of `batch` requests that keep coming.

    `performance` is that of decoding alone (`PerformanceRow.to_decode_performance`).
    """
    prefill_s = performance.prefill_per_token_s * lengths.read_tokens
    slope_s = performance.tpot_per_running_s + prefill_s / max(1.0, lengths.output_tokens)
    return performance.tpot_base_s + batch * slope_s


def find_batch(performance: Performance, lengths: Lengths, *, slots: int, tpot_s_max: float) -> int:
    """Return the largest batch within slots, KV memory and the promise; at least 1.

    Where no batch keeps the promise, more replicas don't either: slots and memory decide then.
    """
    per_request = lengths.prompt_tokens + lengths.output_tokens / 2
    fitting = max(1, min(slots, int(performance.kv_capacity_tokens / max(1.0, per_request))))
    for batch in range(fitting, 0, -1):
        if find_pace_s(performance, lengths, batch=batch) <= tpot_s_max:
            return batch
    return fitting


def find_rps(performance: Performance, lengths: Lengths, *, slots: int, tpot_s_max: float) -> float:
    """Return the requests a second that one replica sustains within the promise."""
    batch = find_batch(performance, lengths, slots=slots, tpot_s_max=tpot_s_max)
    prefill_s = performance.prefill_s(1) + performance.prefill_per_token_s * lengths.read_tokens
    decode_s = lengths.output_tokens * find_pace_s(performance, lengths, batch=batch)
    return batch / (prefill_s + decode_s)


def find_variation(
    performance: Performance, lengths: Lengths, *, slots: int, tpot_s_max: float
) -> float:
    """Return the squared coefficient of variation of a request's work; 1 while it isn't known.

    Work is a replica's time, 1 / `find_rps` on average: what is read costs it the prefill and a
    slot's share of that once more, an output token its share of decoding at the planned batch.
    Both are taken to vary independently.
    """
    if lengths.read_variation is None or lengths.output_variation is None:
        return 1.0
    batch = find_batch(performance, lengths, slots=slots, tpot_s_max=tpot_s_max)
    read_s = performance.prefill_per_token_s * lengths.read_tokens * (1 + 1 / batch)
    output_s = performance.tpot_s(batch) * lengths.output_tokens / batch
    variance = lengths.read_variation * read_s**2 + lengths.output_variation * output_s**2
    mean_s = 1 / find_rps(performance, lengths, slots=slots, tpot_s_max=tpot_s_max)
    return min(_VARIATION_MAX, variance / mean_s**2)
