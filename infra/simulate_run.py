"""Runs of a simulation one after the other: what is finished is kept, whatever ends the rest."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from autoscaling.peers.registry import run_policy
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.timeline import Timeline, build_timeline
from autoscaling.simulator.traffic import Traffic
from infra.progress import console

_QUIET_S = 2.0
_LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table: a policy, whole or with parts switched off, in its scenario."""

    label: str
    policy: str
    scenario: Scenario
    ablated: frozenset[str] = frozenset()


@dataclass(slots=True)
class Finished:
    """What was run: outcomes by label and in order of seeds, timelines of the first seed.

    `requests` counts each seed's requests. `is_interrupted`: not everything asked for was run.
    """

    first: Traffic | None = None
    requests: list[int] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)
    is_interrupted: bool = False


def run_variants(
    variants: Sequence[Variant],
    prepare: Callable[[int], Traffic],
    seeds: Sequence[int],
    *,
    is_recorded: bool,
) -> Finished:
    """Return the figures of each variant with each seed; an interruption keeps what is there."""
    finished = Finished()
    try:
        with _Progress(len(variants) * len(seeds)) as progress:
            for seed in seeds:
                progress.begin(f"traffic of seed {seed}")
                traffic = prepare(seed)
                finished.first = finished.first or traffic
                finished.requests.append(len(traffic.requests))
                for variant in variants:
                    progress.begin(f"{variant.label}, seed {seed}")
                    is_first = is_recorded and seed == seeds[0]
                    _run(variant, traffic, finished, progress, seed=seed, is_recorded=is_first)
    except KeyboardInterrupt:
        finished.is_interrupted = True
    return finished


def _run(
    variant: Variant,
    traffic: Traffic,
    finished: Finished,
    progress: "_Progress",
    *,
    seed: int,
    is_recorded: bool,
) -> None:
    timeline = build_timeline(traffic) if is_recorded else None
    outcome = run_policy(
        variant.policy,
        traffic,
        variant.scenario,
        seed=seed,
        say=lambda now_s: progress.say(now_s / traffic.duration_s),
        recorder=timeline,
        ablated=variant.ablated,
    )
    finished.outcomes.setdefault(variant.label, []).append(outcome)
    if timeline is not None and timeline.samples:
        finished.timelines[variant.label] = timeline
    progress.end()


class _Progress:
    """Says on stderr how far a long simulation is; one of less than 2 s stays quiet."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._done = 0
        self._title = ""
        self._began_s = time.monotonic()
        self._said_s = self._began_s
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def begin(self, title: str) -> None:
        """Name what is done next."""
        self._title = title
        self.say(0.0)

    def say(self, share: float) -> None:
        """Show how much of the present run is done, if it is time to."""
        now_s = time.monotonic()
        spent_s = now_s - self._began_s
        if spent_s < _QUIET_S:
            return
        text = f"run {self._done + 1} of {self._runs}: {self._title}, {min(1.0, share):.0%}"
        text += f" ({spent_s:.0f} s{self._guess_left(spent_s, share)})"
        if self._status is not None:
            self._status.update(text)
            self._status.start()
        elif now_s - self._said_s >= _LINE_EVERY_S:
            self._said_s = now_s
            console.print(f"  {text}", markup=False)

    def end(self) -> None:
        """Count a run that has come to its end."""
        self._done += 1

    def _guess_left(self, spent_s: float, share: float) -> str:
        done = self._done + min(1.0, share)
        if done == 0:
            return ""
        return f", about {spent_s * (self._runs - done) / done:.0f} s left"
