"""Traffic made on the spot, so that no trace file is needed. Lengths are lognormal.

steady   the same rate throughout                    diurnal  one day's wave, pressed into the time
bursty   quiet and loud spells by turns              spike    steady, with one rise in the middle
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoscaling.simulator.traffic import TraceRequest, Traffic, build_random, build_traffic
from cluster.errors import ConfigError

_OUTPUT_TOKENS_MAX = 4096
_PROMPT_TOKENS_MAX = 16384


@dataclass(frozen=True, slots=True)
class Shape:
    """How much arrives and how long requests are, in tokens; `spread` is lognormal sigma."""

    mean_rps: float = 6.0
    duration_s: float = 3600.0
    prompt_tokens_median: int = 700
    output_tokens_median: int = 150
    spread: float = 0.8


def generate(name: str, shape: Shape, *, seed: int) -> Traffic:
    """Return the traffic of the generator with this name.

    Raises:
        ConfigError: there is no such generator, or the shape makes no sense.
    """
    if name not in GENERATORS:
        raise ConfigError(f"generator must be one of {', '.join(GENERATORS)}; got {name!r}.")
    if not (shape.mean_rps > 0 and shape.duration_s > 0):
        raise ConfigError(
            f"mean_rps and duration_s must be above 0; got {shape.mean_rps:g} per second "
            f"for {shape.duration_s:g} s."
        )
    chance = build_random(seed, f"generate {name}")
    rate_at, peak = GENERATORS[name](chance, shape.duration_s)
    requests: list[TraceRequest] = []
    now_s = 0.0
    # Thinning: draw at the highest rate, keep each arrival with the chance that the moment has.
    while (now_s := now_s + chance.expovariate(shape.mean_rps * peak)) < shape.duration_s:
        if chance.random() * peak <= rate_at(now_s):
            requests.append(_draw_request(chance, now_s, shape))
    return build_traffic(name, requests, shape.duration_s)


def _draw_request(chance: random.Random, arrival_s: float, shape: Shape) -> TraceRequest:
    prompt = chance.lognormvariate(math.log(shape.prompt_tokens_median), shape.spread)
    output = chance.lognormvariate(math.log(shape.output_tokens_median), shape.spread)
    return TraceRequest(
        arrival_s=arrival_s,
        prompt_tokens=min(_PROMPT_TOKENS_MAX, max(1, round(prompt))),
        output_tokens=min(_OUTPUT_TOKENS_MAX, max(1, round(output))),
    )


RateAt = Callable[[float], float]
"""The rate at a time, as a share of the mean."""


def _steady(_chance: random.Random, _duration_s: float) -> tuple[RateAt, float]:
    return (lambda _now_s: 1.0), 1.0


def _diurnal(_chance: random.Random, duration_s: float) -> tuple[RateAt, float]:
    """Lowest at the start, highest in the middle, with four fifths of the mean as amplitude."""

    def rate_at(now_s: float) -> float:
        return 1.0 - 0.8 * math.cos(2 * math.pi * now_s / duration_s)

    return rate_at, 1.8


def _bursty(chance: random.Random, duration_s: float) -> tuple[RateAt, float]:
    """Spells of 240 s on average at 0.6 and 60 s at 2.6 times the mean, which makes 1 overall."""
    ends: list[tuple[float, float]] = []
    now_s, is_loud = 0.0, False
    while now_s < duration_s:
        now_s += chance.expovariate(1 / (60.0 if is_loud else 240.0))
        ends.append((now_s, 2.6 if is_loud else 0.6))
        is_loud = not is_loud
    spells = iter(ends)
    current = next(spells)

    def rate_at(at_s: float) -> float:
        nonlocal current
        while at_s > current[0]:
            current = next(spells)
        return current[1]

    return rate_at, 2.6


def _spike(_chance: random.Random, duration_s: float) -> tuple[RateAt, float]:
    """A twelfth of the time at 4 times the rate of the rest."""
    begin_s, end_s = duration_s / 2, duration_s / 2 + duration_s / 12
    base = 12 / 15

    def rate_at(now_s: float) -> float:
        return 4 * base if begin_s <= now_s < end_s else base

    return rate_at, 4 * base


GENERATORS: Mapping[str, Callable[[random.Random, float], tuple[RateAt, float]]] = {
    "steady": _steady,
    "diurnal": _diurnal,
    "bursty": _bursty,
    "spike": _spike,
}
