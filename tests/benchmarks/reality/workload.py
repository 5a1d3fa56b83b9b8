"""Traffic for the comparisons: made from a seed, the same for what runs and for what is simulated.

Each draw has a stream of random numbers of its own, so that one more request shifts no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from autoscaling.simulator.traffic import TraceRequest, Traffic, build_random, build_traffic


@dataclass(frozen=True, slots=True)
class Rise:
    """A time with a higher rate: from and to are shares (0-1) of the traffic's duration."""

    begin: float
    end: float
    rps: float


@dataclass(frozen=True, slots=True)
class Load:
    """How much arrives, and how long requests are in tokens: uniform between both ends."""

    base_rps: float
    duration_s: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    rises: Sequence[Rise] = ()

    def rps_at(self, at_s: float) -> float:
        """The rate at a time."""
        share = at_s / self.duration_s
        return next((r.rps for r in self.rises if r.begin <= share < r.end), self.base_rps)


def build_load(name: str, load: Load, *, seed: int) -> Traffic:
    """Return Poisson arrivals at the load's rate, by thinning at its highest."""
    arrivals, lengths = (
        build_random(seed, f"{name} arrivals"),
        build_random(seed, f"{name} lengths"),
    )
    peak_rps = max([load.base_rps, *(rise.rps for rise in load.rises)])
    requests: list[TraceRequest] = []
    now_s = 0.0
    while (now_s := now_s + arrivals.expovariate(peak_rps)) < load.duration_s:
        if arrivals.random() * peak_rps > load.rps_at(now_s):
            continue
        prompt, output = lengths.randint(*load.prompt_tokens), lengths.randint(*load.output_tokens)
        requests.append(TraceRequest(now_s, prompt, output))
    return build_traffic(name, requests, load.duration_s)
