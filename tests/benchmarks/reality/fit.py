"""A row of the GPU table from measurements of one replica. Pure.

TTFT on an idle replica   = prefill_base + prefill_per_token x prompt tokens
TPOT with n running       = tpot_base + tpot_per_running x n        closed loop of n clients
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.gpu_performance import PerformanceRow

_MS_PER_S = 1000.0
_ROW_PROMPT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Line:
    """`base + slope x`; `missed` is how far it misses its points (root mean square, 1 = all)."""

    base: float
    slope: float
    missed: float

    def at(self, x: float) -> float:
        """The line's value."""
        return self.base + self.slope * x


@dataclass(frozen=True, slots=True)
class Fit:
    """Both lines of one replica, in s, and what they were measured with."""

    prefill: Line
    pace: Line
    prompt_tokens: int
    output_tokens: int

    def to_row(self, *, gpus: int, kv_capacity_tokens: int, source: str) -> PerformanceRow:
        """Return the row as the table holds it.

        The table has no prefill base: it takes one decode step for it, which `ttft_1024_ms`
        therefore holds beside 1024 tokens' time.
        """
        return PerformanceRow.model_validate(
            {
                "gpus": gpus,
                "tpot_base_ms": round(_MS_PER_S * self.pace.base, 3),
                "tpot_per_running_ms": round(_MS_PER_S * self.pace.slope, 3),
                "ttft_1024_ms": round(_MS_PER_S * self.prefill.at(_ROW_PROMPT_TOKENS), 3),
                "kv_capacity_tokens": kv_capacity_tokens,
                **self._name_lengths(),
                "kind": "measured",
                "source": source,
            }
        )

    def _name_lengths(self) -> dict[str, Any]:
        return {"fit_prompt_tokens": self.prompt_tokens, "fit_output_tokens": self.output_tokens}


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Return the line, sloping up or level, that misses points at two or more places the least.

    Errors count in parts of each point: absolute ones would let the longest prompt alone decide
    what the short ones take.

    Raises:
        ValueError: there is only one place, or a value isn't above zero.
    """
    xs = [x for x, _ in points]
    if len(set(xs)) < 2:
        raise ValueError(f"points must lie at two or more places; got {sorted(set(xs))}.")
    if not all(y > 0 for _, y in points):
        raise ValueError(f"points must lie above zero; got {min(y for _, y in points):g}.")
    weights = [1 / y**2 for _, y in points]
    slope, base = _fit_weighted(points, weights)
    if slope < 0:
        slope, base = 0.0, statistics.fmean([y for _, y in points], weights)
    if base < 0:
        # Through zero: nothing takes less than no time.
        squares = sum(w * x * x for w, x in zip(weights, xs, strict=True))
        products = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True))
        slope, base = products / squares, 0.0
    missed = statistics.fmean(((base + slope * x) / y - 1) ** 2 for x, y in points) ** 0.5
    return Line(base, slope, missed)


def _fit_weighted(
    points: Sequence[tuple[float, float]], weights: Sequence[float]
) -> tuple[float, float]:
    """Return slope and base of the weighted least-squares line."""
    x_mean = statistics.fmean([x for x, _ in points], weights)
    y_mean = statistics.fmean([y for _, y in points], weights)
    pairs = list(zip(weights, points, strict=True))
    spread = sum(w * (x - x_mean) ** 2 for w, (x, _) in pairs)
    slope = sum(w * (x - x_mean) * (y - y_mean) for w, (x, y) in pairs) / spread
    return slope, y_mean - slope * x_mean


def take_medians(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return one point for each place: the median of its values, which a stall doesn't move."""
    places = sorted({x for x, _ in points})
    return [(x, statistics.median(y for at, y in points if at == x)) for x in places]
