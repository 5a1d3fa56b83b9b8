"""Requests drawn from ServeGen's rate curves and length distributions.

Bins of zero rate are missing data (Source: the trace's own description), so they are filled in from
their neighbours. Within a bin arrivals are Poisson; lengths come from an archive of the clients'
distributions, clients weighted equally, or from a lognormal where no archive is given.
"""

import ast
import functools
import itertools
import json
import tarfile
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from autoscaling.simulator.traffic import TraceRequest, Traffic, build_random, build_traffic
from cluster.errors import ConfigError

_REQUESTS_MAX = 2_000_000
_PROMPT_MEDIAN_LOG, _OUTPUT_MEDIAN_LOG, _SPREAD = 5.2, 4.4, 1.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts with their cumulative weights, drawn from by chance."""

    values: Sequence[int]
    cumulative: Sequence[float]

    def draw(self, chance: Random) -> int:
        """Return one of the values."""
        at = bisect(self.cumulative, chance.random() * self.cumulative[-1])
        return max(1, self.values[min(at, len(self.values) - 1)])


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Pairs of a bin's start in seconds and its requests per second; `until_s` is where it is cut.

    Times count from the first bin. A row that is missing lengthens the bin before it.

    Raises:
        ConfigError: there are fewer than two bins, not in order of time, or no rate at all.
    """

    name: str
    bins: tuple[tuple[float, float], ...]
    until_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.bins) < 2 or not any(rate for _, rate in self.bins):  # noqa: PLR2004 - a length
            raise ConfigError(f"{self.name} must hold at least two bins and a rate above 0.")
        for (start_s, _), (next_s, _) in pairwise(self.bins):
            if next_s <= start_s:
                raise ConfigError(
                    f"{self.name} must hold bins in order of time; got t_s {next_s:g} after "
                    f"{start_s:g}."
                )

    @property
    def filled(self) -> list[tuple[float, float, float]]:
        """Each bin's start, end and rate, up to the cut, with missing rates filled in."""
        begin_s = self.bins[0][0]
        starts = [start_s - begin_s for start_s, _ in self.bins]
        ends = [*starts[1:], starts[-1] + starts[1]]
        cut_s = float("inf") if self.until_s is None else self.until_s
        rates = _fill_missing([rate for _, rate in self.bins])
        spans = zip(starts, ends, rates, strict=True)
        return [(a, min(b, cut_s), rate) for a, b, rate in spans if a < cut_s]

    @property
    def expected(self) -> float:
        """How many requests there will be, on average."""
        return sum((end_s - start_s) * rate for start_s, end_s, rate in self.filled)

    def scale_to(self, load_rps: float) -> "RateCurve":
        """Return the same curve at this mean rate: a provider's scale brought to a cluster's."""
        factor = load_rps * self.filled[-1][1] / self.expected
        bins = tuple((start_s, rate * factor) for start_s, rate in self.bins)
        return RateCurve(self.name, bins, self.until_s)


def draw_servegen(curve: RateCurve, *, lengths: Path | None, seed: int) -> Traffic:
    """Return requests at the curve's rates.

    Raises:
        ConfigError: there would be too many requests for memory.
    """
    if curve.expected > _REQUESTS_MAX:
        raise ConfigError(
            f"{curve.name} must hold at most {_REQUESTS_MAX} requests; got about "
            f"{curve.expected:.0f}. Its rates are a provider's: give --load, --hours or both."
        )
    chance = build_random(seed, "servegen")
    inputs, outputs = _read_lengths(lengths) if lengths else (None, None)
    found: list[TraceRequest] = []
    spans = curve.filled
    for start_s, end_s, rate in spans:
        now_s = start_s
        while rate and (now_s := now_s + chance.expovariate(rate)) < end_s:
            found.append(
                TraceRequest(
                    arrival_s=now_s,
                    prompt_tokens=_draw(inputs, chance, _PROMPT_MEDIAN_LOG),
                    output_tokens=_draw(outputs, chance, _OUTPUT_MEDIAN_LOG),
                )
            )
    return build_traffic(curve.name, found, spans[-1][1])


def _draw(lengths: Lengths | None, chance: Random, median_log: float) -> int:
    if lengths is not None:
        return lengths.draw(chance)
    return max(1, round(chance.lognormvariate(median_log, _SPREAD)))


def _fill_missing(rates: Sequence[float]) -> list[float]:
    """Return the rates with each zero replaced by the mean of the nearest others."""
    known = [index for index, rate in enumerate(rates) if rate > 0]
    found: list[float] = []
    for index, rate in enumerate(rates):
        at = bisect(known, index)
        near = [rates[k] for k in known[max(0, at - 1) : at + 1]]
        found.append(rate or sum(near) / len(near))
    return found


@functools.lru_cache(maxsize=2)
def _read_lengths(path: Path) -> tuple[Lengths, Lengths]:
    """Return the prompt and the answer lengths in an archive of `chunk-*-dataset.json` files."""
    totals: dict[str, dict[int, float]] = {"input_tokens": {}, "output_tokens": {}}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".json") else None
                if file is not None:
                    _add_client(json.load(file), totals)
    except (OSError, tarfile.TarError, ValueError, KeyError, SyntaxError) as exc:
        raise ConfigError(f"{path} must be an archive of ServeGen datasets; got: {exc}.") from exc
    prompts, answers = totals["input_tokens"], totals["output_tokens"]
    if not prompts or not answers:
        raise ConfigError(f"{path} must hold chunk-*-dataset.json files with token lengths.")
    return _build_lengths(prompts), _build_lengths(answers)


def _add_client(windows: dict[str, Any], totals: dict[str, dict[int, float]]) -> None:
    for window in windows.values():
        for name, total in totals.items():
            for value, share in ast.literal_eval(window[name]).items():
                total[int(value)] = total.get(int(value), 0.0) + float(share)


def _build_lengths(total: dict[int, float]) -> Lengths:
    values = sorted(total)
    return Lengths(values, list(itertools.accumulate(total[value] for value in values)))
