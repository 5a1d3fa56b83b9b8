"""Requests drawn from ServeGen's rate curves and length distributions.

Bins of zero rate are missing data (Source: the trace's own description), so they are filled in from
their neighbours. Within a bin arrivals are Poisson; lengths come from an archive of the clients'
distributions, clients weighted equally, or from a lognormal where no archive is given.
"""

import ast
import itertools
import json
import tarfile
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
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
    """Pairs of a bin's start in seconds and its requests per second.

    Raises:
        ConfigError: there are fewer than two bins, or no rate at all.
    """

    name: str
    bins: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.bins) < 2 or not any(rate for _, rate in self.bins):  # noqa: PLR2004 - bin_s
            raise ConfigError(f"{self.name} must hold at least two bins and a rate above 0.")

    @property
    def bin_s(self) -> float:
        """The length of one bin."""
        return self.bins[1][0] - self.bins[0][0]

    def scale_to(self, load_rps: float) -> "RateCurve":
        """Return the same curve at this mean rate: a provider's scale brought to a cluster's."""
        filled = _fill_missing(self.bins)
        factor = load_rps * len(filled) / sum(rate for _, rate in filled)
        return RateCurve(self.name, tuple((start_s, rate * factor) for start_s, rate in filled))


def draw_servegen(curve: RateCurve, *, lengths: Path | None, seed: int) -> Traffic:
    """Return requests at the curve's rates.

    Raises:
        ConfigError: there would be too many requests for memory.
    """
    name, bin_s = curve.name, curve.bin_s
    filled = _fill_missing(curve.bins)
    expected = sum(rate for _, rate in filled) * bin_s
    if expected > _REQUESTS_MAX:
        raise ConfigError(
            f"{name} must hold at most {_REQUESTS_MAX} requests; got about {expected:.0f}. "
            "Its rates are a provider's: give --load, --hours or both."
        )
    chance = build_random(seed, "servegen")
    inputs, outputs = _read_lengths(lengths) if lengths else (None, None)
    found: list[TraceRequest] = []
    for start_s, rate in filled:
        now_s = start_s
        while rate and (now_s := now_s + chance.expovariate(rate)) < start_s + bin_s:
            found.append(
                TraceRequest(
                    arrival_s=now_s,
                    prompt_tokens=_draw(inputs, chance, _PROMPT_MEDIAN_LOG),
                    output_tokens=_draw(outputs, chance, _OUTPUT_MEDIAN_LOG),
                )
            )
    return build_traffic(name, found, filled[-1][0] + bin_s)


def _draw(lengths: Lengths | None, chance: Random, median_log: float) -> int:
    if lengths is not None:
        return lengths.draw(chance)
    return max(1, round(chance.lognormvariate(median_log, _SPREAD)))


def _fill_missing(rates: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the rates with each zero replaced by the mean of the nearest others."""
    known = [index for index, (_, rate) in enumerate(rates) if rate > 0]
    found: list[tuple[float, float]] = []
    for index, (start_s, rate) in enumerate(rates):
        if rate == 0:
            at = bisect(known, index)
            near = [rates[k][1] for k in known[max(0, at - 1) : at + 1]]
            rate = sum(near) / len(near)  # noqa: PLW2901 - the same bin, filled
        found.append((start_s, rate))
    return found


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
