"""The forecast: how much more than what is there will arrive, for how long, and whether it returns.

Bins of arrivals are compared with the owned capacity. Three in a row above it on average are a
rise. Three things are asked of the past:

- How much is over now: the last minute's bins of the present rise, moved along the slope of the
  last five minutes where that is more than chance. A slope alone can announce a rise.
- How long it lasts: a rise that has lasted d seconds lasts another t with chance d / (d + t), until
  the lengths of earlier rises say better: each counts as much as this first guess.
- Whether rises return: after a rise, the share of the earlier gaps between rises that were longer
  than the quiet has lasted by now; one gap more that never ends is counted in. A first rise
  therefore keeps nothing waiting for a second.

What is over is what may leave: what must stay takes owned capacity first and makes no excess. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autoscaling.history import BIN_S, DemandHistory

_SMOOTH_BINS = 3
_RECENT_BINS = 6
_SLOPE_BINS = 30
_SLOPE_ERRORS_MIN = 2.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What may come over `owned_rps`. Rates in requests a second, times in s.

    `late_ratio_max` is the share (0-1) of what owned capacity begins that may be late.
    `now`: recent excess bins of the present rise, empty when there is none; `past`: all excess
    bins kept; `onsets`: those within a return's time of a rise's begin, zeros elsewhere.
    `age_s`: how long the present rise has lasted; `durations_s`: of earlier ones; `quiet_s`: since
    the last one ended, 0 in a rise; `gaps_s`: between earlier ones.
    """

    owned_rps: float
    late_ratio_max: float = 0.0
    level_rps: float = 0.0
    now: tuple[float, ...] = ()
    past: tuple[float, ...] = ()
    onsets: tuple[float, ...] = ()
    age_s: float = 0.0
    durations_s: tuple[float, ...] = ()
    quiet_s: float = 0.0
    gaps_s: tuple[float, ...] = ()

    @property
    def chance_of_return(self) -> float:
        """The chance (0-1) that rises go on coming."""
        longer = sum(gap_s > self.quiet_s for gap_s in self.gaps_s)
        return longer / (longer + 1)

    def chance_of_lasting(self, more_s: float) -> float:
        """The chance (0-1) that the present rise is still there in so many seconds."""
        if self.age_s <= 0:
            return 0.0
        if math.isinf(self.age_s):
            return 1.0
        guess = self.age_s / (self.age_s + more_s)
        reached = [d for d in self.durations_s if d > self.age_s]
        lasted = sum(d > self.age_s + more_s for d in reached)
        return (guess + lasted) / (1 + len(reached))

    def expected_rest_s(self) -> float:
        """The median of how much longer the present rise lasts."""
        more_s = BIN_S
        while more_s < 86_400.0 and self.chance_of_lasting(more_s) > 0.5:  # noqa: PLR2004
            more_s *= 1.25
        return more_s

    def count_spared(self, before_rps: float, after_rps: float, window: "Window") -> float:
        """Return how many requests more capacity over the owned one begins in time in a window.

        Only those beyond what may be late count: nobody pays for the last in a hundred.
        """
        past = self.onsets if window.is_kept else self.past
        over_now = self._find_late_rps(self.now, before_rps)
        over_now -= self._find_late_rps(self.now, after_rps)
        over_past = self._find_late_rps(past, before_rps) - self._find_late_rps(past, after_rps)
        over_past *= self.chance_of_return
        rising_s = self._rising_s(window)
        return rising_s * max(over_now, over_past) + (window.length_s - rising_s) * over_past

    def _find_late_rps(self, excess: Sequence[float], rented_rps: float) -> float:
        """Return what is late beside so much rented capacity, beyond what may be."""
        late = _mean([max(0.0, rate - rented_rps) for rate in excess])
        return max(0.0, late - self.late_ratio_max * self.owned_rps)

    def _rising_s(self, window: "Window") -> float:
        """Return how many of the window's seconds the present rise is expected to fill."""
        if self.age_s <= 0 or not self.now:
            return 0.0
        steps = max(1, min(24, math.ceil(window.length_s / BIN_S)))
        step_s = window.length_s / steps
        middles = (window.begins_s + (index + 0.5) * step_s for index in range(steps))
        return step_s * sum(self.chance_of_lasting(middle_s) for middle_s in middles)


@dataclass(frozen=True, slots=True)
class Window:
    """A time ahead that capacity is there for. `is_kept`: it is there already, and is kept."""

    begins_s: float
    length_s: float
    is_kept: bool = False


def build_outlook(
    history: DemandHistory,
    *,
    owned_rps: float,
    return_s: float,
    late_ratio_max: float = 0.0,
    is_blind: bool = False,
) -> Outlook:
    """Return the outlook over an owned capacity; `return_s`: how long a node takes to come back.

    `is_blind`: without a forecast. What is over now stays as it is, and nothing returns.
    """
    if is_blind:
        now = _find_excess(history, owned_rps)[-_SMOOTH_BINS:]
        return Outlook(owned_rps, late_ratio_max, now=now, age_s=math.inf if any(now) else 0.0)
    excess = _find_excess(history, owned_rps)
    flags = [rate > 0 for rate in excess]
    spells = _find_spells(flags)
    rising = bool(flags) and flags[-1]
    ended = spells[:-1] if rising else spells
    age_s = (spells[-1][1] - spells[-1][0]) * BIN_S if rising else 0.0
    starts = [begin for begin, _ in spells]
    gaps_s = tuple((begin - end) * BIN_S for (_, end), (begin, _) in pairwise(spells))
    quiet_s = 0.0 if rising or not spells else (len(flags) - spells[-1][1]) * BIN_S
    return_bins = max(1, math.ceil(return_s / BIN_S))
    climb_rps = _find_climb_rps(history, ahead_s=return_s)
    recent = max(1, min(_RECENT_BINS, int(age_s / BIN_S))) if rising else _RECENT_BINS
    ahead = _find_excess(history, owned_rps, more_rps=climb_rps)[-recent:]
    if climb_rps > 0 and any(ahead):
        # A climb that will be over capacity counts as a rise as old as the climb.
        age_s = max(age_s, _SLOPE_BINS * BIN_S)
    return Outlook(
        owned_rps=owned_rps,
        late_ratio_max=late_ratio_max,
        level_rps=_mean(history.all[-_SMOOTH_BINS:]) / BIN_S,
        now=ahead if age_s > 0 else (),
        past=excess,
        onsets=_keep_onsets(excess, starts, return_bins),
        age_s=age_s,
        # A rise that was on when the record begins may have been longer: it isn't counted.
        durations_s=tuple((end - begin) * BIN_S for begin, end in ended if begin > 0),
        quiet_s=quiet_s,
        gaps_s=gaps_s,
    )


def _find_excess(
    history: DemandHistory, owned_rps: float, *, more_rps: float = 0.0
) -> tuple[float, ...]:
    """Return what may leave and finds no owned room, in requests a second, bin by bin.

    What must stay takes its own room first. Each bin is the mean of those up to it: what is over
    for ten seconds only finds slots that are free by chance.
    """
    found: list[float] = []
    for index in range(len(history.all)):
        bins = slice(max(0, index + 1 - _SMOOTH_BINS), index + 1)
        every = _mean(history.all[bins]) / BIN_S
        leaving = _mean(history.may_burst[bins]) / BIN_S
        room_rps = max(0.0, owned_rps - (every - leaving))
        found.append(max(0.0, leaving + more_rps - room_rps))
    return tuple(found)


def _find_spells(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Return begin and end of each run of true, end excluded."""
    spells: list[tuple[int, int]] = []
    begin: int | None = None
    for index, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = index
        if not flag and begin is not None:
            spells.append((begin, index))
            begin = None
    return spells


def _keep_onsets(
    excess: Sequence[float], starts: Sequence[int], return_bins: int
) -> tuple[float, ...]:
    """Return the excess in the first bins of each rise: what a node gone home would miss."""
    kept = [0.0] * len(excess)
    for start in starts:
        # The mean that tells a rise lags: its first bins may come before.
        begin = max(0, start + 1 - _SMOOTH_BINS)
        end = min(len(excess), begin + return_bins)
        kept[begin:end] = excess[begin:end]
    return tuple(kept)


def _find_climb_rps(history: DemandHistory, *, ahead_s: float) -> float:
    """Return what a climb of the last minutes adds until then; it goes on for as long at most."""
    bins = history.may_burst[-_SLOPE_BINS:]
    if len(bins) < _SLOPE_BINS:
        return 0.0
    return find_slope(bins) * min(ahead_s, _SLOPE_BINS * BIN_S) / BIN_S / BIN_S


def find_slope(bins: Sequence[int]) -> float:
    """Return the least-squares slope a bin, 0 where chance alone could make it.

    It must be over twice its standard error, with the last minute and without it: what the last
    minute alone makes is a step, and nothing says that it goes on.
    """
    whole, before = _fit_slope(bins), _fit_slope(bins[:-_RECENT_BINS])
    return min(whole, before, key=abs) if whole * before > 0 else 0.0


def _fit_slope(bins: Sequence[int]) -> float:
    count = len(bins)
    if count < 2 * _SMOOTH_BINS:
        return 0.0
    middle, mean = (count - 1) / 2, _mean(bins)
    spread = sum((index - middle) ** 2 for index in range(count))
    slope = sum((index - middle) * (value - mean) for index, value in enumerate(bins)) / spread
    left = sum((value - mean - slope * (index - middle)) ** 2 for index, value in enumerate(bins))
    error = math.sqrt(left / (count - 2) / spread)
    return slope if abs(slope) > _SLOPE_ERRORS_MIN * error else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
