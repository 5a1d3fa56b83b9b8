"""The forecast: how much more than a capacity will arrive, for how long, and whether it returns.

Each replica that could be rented is judged at its own level: the owned capacity and the replicas
before it. Bins of arrivals, each averaged with the two before it, are compared with that level;
what lies above is a rise. Three things are asked of the past:

- How much is over now: the last minute's bins of the present rise, moved along the slope of the
  last five minutes where that is more than chance. A slope alone can announce a rise.
- How long it lasts: a rise that has lasted d seconds lasts another t with chance d / (d + t), until
  the lengths of earlier rises say better: each counts as much as this first guess.
- Whether rises return: for what is there already, a quiet of q seconds ends within another t with
  chance t / (q + t), until earlier gaps between rises say better: each that was longer counts as
  much as this guess. So what waits for the next rise costs about what missing it would cost, at
  most, before it goes home. Something new is rented in a quiet only while it is shorter than gaps
  were. A first rise keeps nothing waiting for a second.

What is over is what may leave: what must stay takes owned capacity first and makes no excess. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from statistics import median

from autoscaling.history import BIN_S

_SMOOTH_BINS = 3
_RECENT_BINS = 6
_SLOPE_BINS = 30
_SLOPE_ERRORS_MIN = 2.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Window:
    """A time ahead that capacity is there for. `is_kept`: it is there already, and is kept."""

    begins_s: float
    length_s: float
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What arrived lately, seen from above the owned capacity. Rates in requests a second.

    `all` and `may_burst` are requests per bin, oldest first; `return_s` is how long a node takes to
    come back; `late_ratio_max` the share (0-1) of what owned capacity begins that may be late.
    `is_blind`: without a forecast, what is over now stays as it is, and nothing returns.
    `queued`: requests waiting now that may leave.
    """

    owned_rps: float
    all: tuple[int, ...]
    may_burst: tuple[int, ...]
    return_s: float
    late_ratio_max: float = 0.0
    is_blind: bool = False
    queued: int = 0

    @property
    def level_rps(self) -> float:
        """What arrives now, all classes together."""
        return _mean(self.all[-_SMOOTH_BINS:]) / BIN_S

    def over(self, rented_rps: float) -> "Rise":
        """Return what is over the owned capacity and so much more."""
        look = _look_blindly if self.is_blind else _look
        return look(self.all, self.may_burst, self.owned_rps, rented_rps, self.return_s)

    def count_spared(self, before_rps: float, after_rps: float, window: Window) -> float:
        """Return how many requests more capacity over the owned one begins in time in a window.

        Only those beyond what may be late count: nobody pays for the last in a hundred.
        """
        rise, more_rps = self.over(before_rps), after_rps - before_rps
        if window.length_s <= 0 or not (rise.now or rise.gaps_s):
            return 0.0
        over_now = self._spare(rise.now, more_rps)
        if window.is_kept:
            begun_s = BIN_S * len(rise.onsets) / (len(rise.gaps_s) + 1)
            chance = rise.chance_of_return(window.length_s)
            over_past = self._spare(rise.onsets, more_rps) * begun_s * chance / window.length_s
        else:
            over_past = self._spare(rise.past, more_rps) * rise.chance_of_more
        rising_s = rise.expect_rising_s(window)
        if not window.is_kept and not rise.is_on:
            rising_s = 0.0
        return rising_s * max(over_now, over_past) + (window.length_s - rising_s) * over_past

    def count_left(self, rented_rps: float, after_s: float) -> float:
        """Return how many of those queued now still wait then, beside so much rented capacity."""
        return max(0.0, self.queued - (self.owned_rps + rented_rps) * after_s)

    def _spare(self, excess: Sequence[float], more_rps: float) -> float:
        """Return how much less is late with so much more capacity, beyond what may be late."""
        allowed = self.late_ratio_max * self.owned_rps
        before = max(0.0, _mean(excess) - allowed)
        after = max(0.0, _mean([max(0.0, rate - more_rps) for rate in excess]) - allowed)
        return before - after


@dataclass(frozen=True, slots=True)
class Rise:
    """The rises over one level of capacity. Rates in requests a second, times in s.

    `now`: recent excess of the present rise, empty when there is none; `is_on`: the newest bin by
    itself is over, or will be; `past`: the excess of all bins kept; `onsets`: of those within a
    return's time of a rise's begin, zeros elsewhere. `age_s`: how long the present rise has lasted;
    `durations_s`: of earlier ones; `quiet_s`: since the last one ended, 0 in a rise; `gaps_s`:
    between earlier ones.
    """

    now: tuple[float, ...] = ()
    is_on: bool = False
    past: tuple[float, ...] = ()
    onsets: tuple[float, ...] = ()
    age_s: float = 0.0
    durations_s: tuple[float, ...] = ()
    quiet_s: float = 0.0
    gaps_s: tuple[float, ...] = ()

    @property
    def chance_of_more(self) -> float:
        """The chance (0-1) that rises go on coming as they did.

        The share of gaps longer than the quiet so far, one more that never ends counted in.
        """
        longer = sum(gap_s > self.quiet_s for gap_s in self.gaps_s)
        return longer / (longer + 1)

    def chance_of_return(self, within_s: float) -> float:
        """The chance (0-1) that the next rise begins so soon; none after a first rise.

        A quiet of q seconds ends within another t with chance t / (q + t); each earlier gap that
        was longer than q counts as much as this guess.
        """
        if not self.gaps_s:
            return 0.0
        if self.quiet_s <= 0:
            return self.chance_of_more
        guess = within_s / (self.quiet_s + within_s)
        longer = [gap_s for gap_s in self.gaps_s if gap_s > self.quiet_s]
        soon = sum(gap_s <= self.quiet_s + within_s for gap_s in longer)
        return (guess + soon) / (1 + len(longer))

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
        """The median of how much longer the present rise lasts, a day at most."""
        more_s = BIN_S
        while more_s < _DAY_S and self.chance_of_lasting(more_s) > 0.5:  # noqa: PLR2004 - median
            more_s *= 1.25
        return more_s

    def expect_rising_s(self, window: Window) -> float:
        """Return how many of a window's seconds the present rise is expected to fill."""
        if self.age_s <= 0 or not self.now:
            return 0.0
        steps = max(1, min(24, math.ceil(window.length_s / BIN_S)))
        step_s = window.length_s / steps
        middles = (window.begins_s + (index + 0.5) * step_s for index in range(steps))
        return step_s * sum(self.chance_of_lasting(middle_s) for middle_s in middles)


@lru_cache(maxsize=256)
def _look(
    every: tuple[int, ...],
    leaving: tuple[int, ...],
    owned_rps: float,
    rented_rps: float,
    return_s: float,
) -> Rise:
    """Return the rises over a level; kept for a while, as the bins change every 10 s only."""
    excess = _find_excess(every, leaving, owned_rps, rented_rps)
    spells = _find_spells([rate > 0 for rate in excess])
    is_rising = bool(spells) and spells[-1][1] == len(excess)
    ended = spells[:-1] if is_rising else spells
    age_s = (spells[-1][1] - spells[-1][0]) * BIN_S if is_rising else 0.0
    quiet_s = 0.0 if is_rising or not spells else (len(excess) - spells[-1][1]) * BIN_S
    recent = max(1, min(_RECENT_BINS, int(age_s / BIN_S))) if is_rising else _RECENT_BINS
    climb_rps = _find_climb_rps(leaving, ahead_s=return_s)
    ahead = _find_excess(every, leaving, owned_rps, rented_rps - climb_rps)[-recent:]
    if climb_rps > 0 and any(ahead):
        # A climb that will be over the level counts as a rise as old as the climb.
        age_s = max(age_s, _SLOPE_BINS * BIN_S)
    return Rise(
        now=ahead if age_s > 0 else (),
        is_on=_is_newest_over(every, leaving, owned_rps, rented_rps - climb_rps),
        past=excess,
        onsets=_keep_onsets(excess, spells, return_s=return_s),
        age_s=age_s,
        # A rise that was on when the record begins may have been longer: it isn't counted.
        durations_s=tuple((end - begin) * BIN_S for begin, end in ended if begin > 0),
        quiet_s=quiet_s,
        gaps_s=tuple((begin - end) * BIN_S for (_, end), (begin, _) in pairwise(spells)),
    )


def _look_blindly(
    every: tuple[int, ...],
    leaving: tuple[int, ...],
    owned_rps: float,
    rented_rps: float,
    return_s: float,
) -> Rise:
    """Return the last bins' excess as if it were for ever."""
    del return_s
    now = _find_excess(every, leaving, owned_rps, rented_rps)[-_SMOOTH_BINS:]
    return Rise(now=now, is_on=any(now), age_s=math.inf if any(now) else 0.0)


@lru_cache(maxsize=16)
def _smooth(bins: tuple[int, ...]) -> tuple[float, ...]:
    """Return each bin's mean with those before it, in requests a second.

    What is over for ten seconds only finds slots that are free by chance.
    """
    return tuple(
        _mean(bins[max(0, index + 1 - _SMOOTH_BINS) : index + 1]) / BIN_S
        for index in range(len(bins))
    )


def _find_excess(
    every: tuple[int, ...], leaving: tuple[int, ...], owned_rps: float, rented_rps: float
) -> tuple[float, ...]:
    """Return what may leave and finds neither owned nor rented room, bin by bin.

    What must stay takes owned room first.
    """
    return tuple(
        max(0.0, may_leave - max(0.0, owned_rps - (total - may_leave)) - rented_rps)
        for total, may_leave in zip(_smooth(every), _smooth(leaving), strict=True)
    )


def _is_newest_over(
    every: tuple[int, ...], leaving: tuple[int, ...], owned_rps: float, rented_rps: float
) -> bool:
    """Whether the newest bin alone is over: a rise that has just ended is nothing to rent for."""
    return any(_find_excess(every[-1:], leaving[-1:], owned_rps, rented_rps))


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
    excess: Sequence[float], spells: Sequence[tuple[int, int]], *, return_s: float
) -> tuple[float, ...]:
    """Return the excess in the first bins of each rise: what a node gone home would miss."""
    bins = max(1, math.ceil(return_s / BIN_S))
    kept = [0.0] * len(excess)
    for begin, end in spells:
        until = min(end, begin + bins)
        kept[begin:until] = excess[begin:until]
    return tuple(kept)


def _find_climb_rps(leaving: tuple[int, ...], *, ahead_s: float) -> float:
    """Return what a climb of the last minutes adds until then; it goes on for as long at most."""
    bins = leaving[-_SLOPE_BINS:]
    if len(bins) < _SLOPE_BINS:
        return 0.0
    return find_slope(bins) * min(ahead_s, _SLOPE_BINS * BIN_S) / BIN_S / BIN_S


@lru_cache(maxsize=16)
def find_slope(bins: tuple[int, ...]) -> float:
    """Return the trend a bin, 0 where chance, a step or spells could make it.

    Of the whole and of both halves the flattest counts, if all go the same way: a step leaves at
    least one half level, and nothing says that it goes on. Each is the median slope of all pairs
    (Theil and Sen), which a few loud bins don't move, and counts only where more pairs agree on its
    sign than two standard errors of chance (Kendall) would make.
    """
    middle = len(bins) // 2
    slopes = [_find_trend(part) for part in (bins, bins[:middle], bins[middle:])]
    return min(slopes, key=abs) if min(slopes) * max(slopes) > 0 else 0.0


def _find_trend(bins: Sequence[int]) -> float:
    count = len(bins)
    if count < 2 * _SMOOTH_BINS:
        return 0.0
    slopes = [
        (later - earlier) / (j - i) for (i, earlier), (j, later) in combinations(enumerate(bins), 2)
    ]
    sign = sum((slope > 0) - (slope < 0) for slope in slopes)
    error = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return median(slopes) if abs(sign) > _SLOPE_ERRORS_MIN * error else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
