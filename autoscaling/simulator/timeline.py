"""What a run looked like over time, for a person to see: values by bin, nodes, decisions.

A `Recorder` is told and never asked: a run with one has the same figures as a run without.
Answers count in the bin of their arrival, everything else in the bin it was sampled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from autoscaling.simulator.policy import Wish
from autoscaling.simulator.tally import find_percentile
from autoscaling.simulator.traffic import Traffic

_BIN_S_MIN = 10.0
_BINS_MAX = 720
_NICE_BINS_S = (10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)

ANYWHERE = "anywhere"
"""Stands for a pool where a policy wants so many replicas in all and doesn't say where."""

NodeTurn = Literal["asked", "sold_out", "joined", "notice", "lost", "home"]
"""What happens to a node: asked for (or in vain), joined, told of its loss, lost, sent home."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How things are at one time. Replicas and streams are by pool; `planned` includes `running`.

    `cloud_usd` is spent from the start of the run on, `cloud_usd_per_hour` what it costs now.
    """

    at_s: float
    waiting: int
    running: Mapping[str, int]
    planned: Mapping[str, int]
    streams: Mapping[str, int]
    cloud_usd: float
    cloud_usd_per_hour: float


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One turn in a node's life. A node that was asked for in vain has no id."""

    at_s: float
    node_id: str
    node_type: str
    turn: NodeTurn


class Recorder(Protocol):
    """Is told what happens in a run, in order of time. `bin_s` is how often it wants a sample."""

    bin_s: float

    def answer(self, arrival_s: float, ttft_s: float, *, is_in_time: bool) -> None:
        """Note an answer that came to its end, and whether it kept both promises."""
        ...

    def sample(self, sample: Sample) -> None:
        """Note how things are."""
        ...

    def note_node(self, event: NodeEvent) -> None:
        """Note what happened to a node."""
        ...

    def decide(self, at_s: float, wish: Wish) -> None:
        """Note what the policy wants, with its reasons; called at each of its looks."""
        ...


@dataclass(frozen=True, slots=True)
class Decided:
    """A look that changed something: replicas by pool, or anywhere, before and after, and why."""

    at_s: float
    before: Mapping[str, int]
    after: Mapping[str, int]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class NodeSpan:
    """One node from its request to its end; None = not (yet)."""

    node_id: str
    node_type: str
    asked_s: float
    joined_s: float | None = None
    ended_s: float | None = None
    end: NodeTurn | None = None


@dataclass(slots=True)
class Timeline:
    """Keeps what it is told about one run. `holds` are each bin's last reasons, by bin."""

    duration_s: float
    bin_s: float
    arrivals: list[int]
    in_time: list[int]
    samples: dict[int, Sample] = field(default_factory=dict)
    spans: dict[str, NodeSpan] = field(default_factory=dict)
    sold_out: list[NodeEvent] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)
    holds: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _ttft_s: dict[int, list[float]] = field(default_factory=dict)
    _wished: Mapping[str, int] | None = None

    def answer(self, arrival_s: float, ttft_s: float, *, is_in_time: bool) -> None:
        """Note an answer in the bin of its arrival."""
        at = self._find_bin(arrival_s)
        self._ttft_s.setdefault(at, []).append(ttft_s)
        self.in_time[at] += is_in_time

    def sample(self, sample: Sample) -> None:
        """Keep a sample of the traffic's time; what comes after it is not shown."""
        if sample.at_s <= self.duration_s:
            self.samples[self._find_bin(sample.at_s)] = sample

    def note_node(self, event: NodeEvent) -> None:
        """Lengthen a node's span, or note that there was none to be had."""
        if event.turn == "sold_out":
            self.sold_out.append(event)
        elif event.turn == "asked":
            self.spans[event.node_id] = NodeSpan(event.node_id, event.node_type, event.at_s)
        elif event.turn == "joined":
            self.spans[event.node_id].joined_s = event.at_s
        elif event.turn in {"lost", "home"}:
            self.spans[event.node_id].ended_s = event.at_s
            self.spans[event.node_id].end = event.turn

    def decide(self, at_s: float, wish: Wish) -> None:
        """Keep what changes the wish, and the last reasons of each bin."""
        if at_s > self.duration_s:
            return
        after: Mapping[str, int] = dict(wish.replicas)
        if wish.anywhere is not None:
            after = {ANYWHERE: wish.anywhere}
        if self._wished is not None and after and after != self._wished:
            self.decisions.append(Decided(at_s, self._wished, after, wish.reasons))
        if after:
            self._wished = after
        if wish.reasons:
            self.holds[self._find_bin(at_s)] = wish.reasons

    def list_ttft_s(self, percent: int) -> list[float | None]:
        """Return this percentile of the time to the first token by bin, None where none arrived."""
        return [
            find_percentile(self._ttft_s.get(at, []), percent) for at in range(len(self.arrivals))
        ]

    def _find_bin(self, at_s: float) -> int:
        return min(len(self.arrivals) - 1, int(at_s // self.bin_s))


def build_timeline(traffic: Traffic) -> Timeline:
    """Return an empty timeline for a run of this traffic, with its arrivals already counted."""
    bin_s = find_bin_s(traffic.duration_s)
    arrivals = [0] * max(1, -int(-traffic.duration_s // bin_s))
    for request in traffic.requests:
        arrivals[min(len(arrivals) - 1, int(request.arrival_s // bin_s))] += 1
    return Timeline(traffic.duration_s, bin_s, arrivals, [0] * len(arrivals))


def find_bin_s(duration_s: float, nice_s: Sequence[float] = _NICE_BINS_S) -> float:
    """Return a round bin of 10 s or more that shows so long a time in at most 720 bins."""
    needed_s = max(_BIN_S_MIN, duration_s / _BINS_MAX)
    return next((bin_s for bin_s in nice_s if bin_s >= needed_s), needed_s)
