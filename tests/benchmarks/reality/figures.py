"""The figures that are compared, and the rule by which two of them agree. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autoscaling.simulator.tally import find_percentile
from tests.benchmarks.reality.replay import Answer

Kind = Literal["points", "ratio", "count"]


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a simulated figure may be from the measured one.

    points: difference of two shares, times 100 · ratio: difference as a share of the measured
    figure, times 100 · count: difference of two whole numbers.
    """

    figure: str
    kind: Kind
    most: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure of both sides. `is_within` None = the bound says nothing about such figures."""

    bound: Bound
    measured: float | None
    simulated: float | None
    difference: float | None
    is_within: bool | None

    def as_json(self) -> dict[str, Any]:
        """The verdict for programs."""
        return {
            "figure": self.bound.figure,
            "measured": self.measured,
            "simulated": self.simulated,
            "difference": self.difference,
            "unit": {"points": "points", "ratio": "%", "count": ""}[self.bound.kind],
            "most": self.bound.most,
            "is_within": self.is_within,
        }


def judge(
    measured: Mapping[str, float | None],
    simulated: Mapping[str, float | None],
    bounds: Sequence[Bound],
) -> list[Verdict]:
    """Return for each bound whether the simulated figure is as close as it must be.

    A figure that one side doesn't have is out of bounds; one that neither has says nothing.
    """
    return [_judge_one(measured.get(b.figure), simulated.get(b.figure), b) for b in bounds]


def _judge_one(measured: float | None, simulated: float | None, bound: Bound) -> Verdict:
    if measured is None or simulated is None:
        is_within = None if measured is simulated else False
        return Verdict(bound, measured, simulated, None, is_within)
    difference = simulated - measured
    if bound.kind == "points":
        difference *= 100
    elif bound.kind == "ratio":
        if measured == 0:
            return Verdict(bound, measured, simulated, None, simulated == 0)
        difference *= 100 / measured
    return Verdict(bound, measured, simulated, difference, abs(difference) <= bound.most)


def count_attainment(answers: Sequence[Answer], *, ttft_s: float, tpot_s: float) -> float:
    """Return the share (0-1) of all requests that were answered whole and in time."""
    met = [a for a in answers if a.is_complete and (a.ttft_s or 0.0) <= ttft_s]
    return sum(a.tpot_s <= tpot_s for a in met) / len(answers) if answers else 1.0


def find_ttft(answers: Sequence[Answer], percent: int) -> float | None:
    """Return a percentile of the time to the first token, over complete answers."""
    return find_percentile([a.ttft_s for a in answers if a.is_complete and a.ttft_s], percent)


def find_tpot(answers: Sequence[Answer], percent: int) -> float | None:
    """Return a percentile of the time per token after the first, over complete answers."""
    return find_percentile([a.tpot_s for a in answers if a.is_complete], percent)


def sum_overlap_s(spans: Sequence[tuple[float, float | None]], *, until_s: float) -> float:
    """Return how long spans lasted between 0 and `until_s`, in all; None = it goes on."""
    ends = [(begin, until_s if end is None else min(end, until_s)) for begin, end in spans]
    return sum(max(0.0, end - max(0.0, begin)) for begin, end in ends)
