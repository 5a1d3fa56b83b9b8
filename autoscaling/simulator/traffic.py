"""What arrives: requests in order of time, their classes, and rates made larger or smaller."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from cluster.errors import ConfigError

_COPY_JITTER_S = 1.0
_RATE_FACTOR_MAX = 1000.0


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. `blocks` are hashes of its prompt's blocks of 512 tokens; equal = same prefix.

    `arrival_s` counts from the start of the trace.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    is_restricted: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in order of arrival, and how long they go on."""

    name: str
    requests: tuple[TraceRequest, ...]
    duration_s: float

    @property
    def mean_rps(self) -> float:
        """Requests per second over the whole duration."""
        return len(self.requests) / self.duration_s


def build_random(seed: int, purpose: str) -> random.Random:
    """Return a stream of random numbers of its own for each purpose: one never shifts another."""
    return random.Random(f"{seed}/{purpose}")  # noqa: S311 - chance in a simulation, no secret


def build_traffic(name: str, requests: Sequence[TraceRequest], duration_s: float) -> Traffic:
    """Return the requests as traffic, sorted by arrival."""
    ordered = tuple(sorted(requests, key=lambda request: request.arrival_s))
    last_s = ordered[-1].arrival_s if ordered else 0.0
    return Traffic(name, ordered, max(duration_s, last_s, 1.0))


def rescale_traffic(traffic: Traffic, factor: float, *, seed: int) -> Traffic:
    """Return traffic with `factor` times the rate over the same time.

    Below 1 each request stays with that chance. Above 1 requests are repeated, each copy up to a
    second later, so that peaks keep their place and their shape.

    Raises:
        ConfigError: the factor isn't above 0 and at most 1000.
    """
    if not 0 < factor <= _RATE_FACTOR_MAX:
        raise ConfigError(f"--rescale must be above 0 and at most 1000; got {factor:g}.")
    chance = build_random(seed, "rescale")
    found: list[TraceRequest] = []
    for request in traffic.requests:
        copies = int(factor) + (chance.random() < factor - int(factor))
        for number in range(copies):
            later_s = chance.uniform(0, _COPY_JITTER_S) if number else 0.0
            arrival_s = min(request.arrival_s + later_s, traffic.duration_s)
            found.append(replace(request, arrival_s=arrival_s))
    return build_traffic(traffic.name, found, traffic.duration_s)


def cut_traffic(traffic: Traffic, until_s: float) -> Traffic:
    """Return the traffic's beginning."""
    if until_s >= traffic.duration_s:
        return traffic
    found = tuple(request for request in traffic.requests if request.arrival_s < until_s)
    return Traffic(traffic.name, found, until_s)


def mark_restricted(traffic: Traffic, ratio: float, *, seed: int) -> Traffic:
    """Return traffic in which this share of the requests, by chance, must stay on owned sites."""
    if not 0 <= ratio <= 1:
        raise ConfigError(f"--restricted must be a share from 0 to 1; got {ratio:g}.")
    chance = build_random(seed, "restricted")
    marked = [replace(r, is_restricted=chance.random() < ratio) for r in traffic.requests]
    return replace(traffic, requests=tuple(marked))


def clip_lengths(traffic: Traffic, *, context_tokens: int) -> tuple[Traffic, int]:
    """Return traffic whose requests fit the model's context, and how many prompts were cut.

    A prompt that is too long is cut at its end, as its blocks are; the answer keeps its length.
    """
    found: list[TraceRequest] = []
    cut = 0
    for request in traffic.requests:
        output = min(request.output_tokens, context_tokens - 1)
        prompt = min(request.prompt_tokens, context_tokens - output)
        if (prompt, output) != (request.prompt_tokens, request.output_tokens):
            cut += 1
            blocks = request.blocks[: prompt // 512]
            request = replace(  # noqa: PLW2901 - the same request, shorter
                request, prompt_tokens=prompt, output_tokens=output, blocks=blocks
            )
        found.append(request)
    return replace(traffic, requests=tuple(found)), cut


def scale_prompts(traffic: Traffic, ratio: float) -> Traffic:
    """Return traffic with shorter prompts: each keeps this share of its tokens and blocks."""
    if not 0 < ratio <= 1:
        raise ConfigError(f"--prompt-scale must be above 0 and at most 1; got {ratio:g}.")
    found = [
        replace(
            request,
            prompt_tokens=max(1, round(request.prompt_tokens * ratio)),
            blocks=request.blocks[: round(len(request.blocks) * ratio)],
        )
        for request in traffic.requests
    ]
    return replace(traffic, requests=tuple(found))


def spread_grid(times_s: Sequence[float], *, seed: int) -> list[float]:
    """Return times with those that are equal spread evenly by chance up to the next other time.

    A trace whose clock ticks every few seconds would otherwise bring whole batches at once.
    """
    distinct = sorted(set(times_s))
    gaps = {a: b - a for a, b in pairwise(distinct)}
    usual = sorted(gaps.values())[len(gaps) // 2] if gaps else 1.0
    chance = build_random(seed, "grid")
    return [time_s + chance.random() * min(gaps.get(time_s, usual), usual) for time_s in times_s]
