"""What the oracle knows of the work: what each request takes of each kind of replica, and when.

Work is counted in seconds of a whole replica, and from below. A prompt token costs its prefill;
tokens of blocks that any earlier prompt had cost nothing. A step that makes one token for each
running request costs its base once and its slope for each, so an answer costs its slopes and its
part of the bases: at best one part in as many as the slots, or as the promised time per token
allows (the mean of a batch over time, by Jensen's inequality), or, where memory is scarcer, as many
as KV memory holds. Whichever makes the whole traffic cost most is taken: each alone is a bound.

A request handled in time is begun and finished between its arrival and its deadline, which is its
first token's and one promised time per token more for each further one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoscaling.simulator.engine_model import BLOCK_TOKENS
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.traffic import Traffic
from deployments.continuous_batching import Performance
from deployments.spec import PoolSpec

Floats = NDArray[np.float64]

_SPEED_CLASSES = 4
_SIZE_CLASSES = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """Pools whose replicas are equally fast, as one kind of replica."""

    pools: tuple[PoolSpec, ...]
    performance: Performance

    @property
    def is_owned(self) -> bool:
        """Whether it is paid for whatever happens."""
        return self.pools[0].owned

    @property
    def slots(self) -> int:
        """Requests that one replica holds at once."""
        return max(pool.slots for pool in self.pools)


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests that some replica can answer in time, as columns in order of arrival.

    `work_s` and `decode_s` have a row for each kind: all of a request's work, and the part after
    its first token.
    """

    arrival_s: Floats
    due_s: Floats
    output_tokens: Floats
    is_restricted: NDArray[np.bool_]
    work_s: Floats
    decode_s: Floats
    unreachable: int


@dataclass(frozen=True, slots=True)
class WorkClass:
    """Requests that are alike: where they may go, and how much slower other kinds do them.

    `members` are positions in `Requests`. `ratio` is each kind's work over the first kind's, the
    least of any member; None = they may not go there. `tokens_per_work_s` are the tokens of answers
    to a second of work on the first kind, the fewest of any member.
    """

    members: NDArray[np.int64]
    ratio: tuple[float | None, ...]
    tokens_per_work_s: float


def list_kinds(scenario: Scenario) -> list[Kind]:
    """Return the kinds of replica, owned ones first."""
    found: dict[tuple[bool, Performance, int], list[PoolSpec]] = {}
    for pool in sorted(scenario.model.pools, key=lambda one: not one.owned):
        key = (pool.owned, scenario.performance[pool.name], pool.slots)
        found.setdefault(key, []).append(pool)
    return [Kind(tuple(pools), performance) for (_, performance, _), pools in found.items()]


def measure_requests(traffic: Traffic, scenario: Scenario, kinds: Sequence[Kind]) -> Requests:
    """Return the work of every request that an idle replica could answer in time."""
    requests = traffic.requests
    slo = scenario.slo
    arrival = np.array([r.arrival_s for r in requests], dtype=np.float64)
    prompt = np.array([r.prompt_tokens for r in requests], dtype=np.float64)
    answer = np.array([r.output_tokens for r in requests], dtype=np.float64)
    restricted = np.array([r.is_restricted for r in requests], dtype=np.bool_)
    fresh = _count_fresh_tokens(traffic)
    reachable = np.zeros(len(requests), dtype=np.bool_)
    for kind in kinds:
        speed = kind.performance
        way_s = min(scenario.find_round_trip_s(pool) for pool in kind.pools)
        first_s = speed.tpot_base_s + speed.prefill_per_token_s * fresh + way_s
        is_fast = (first_s <= slo.ttft_s) & (speed.tpot_s(1) <= slo.tpot_s)
        is_held = prompt + answer < speed.kv_capacity_tokens
        reachable |= is_fast & is_held & (~restricted | kind.is_owned)
    later = answer[reachable] - 1
    prefill = [k.performance.prefill_per_token_s * fresh[reachable] for k in kinds]
    decode = [_find_decode_s(k, prompt[reachable], later, slo.tpot_s) for k in kinds]
    return Requests(
        arrival_s=arrival[reachable],
        due_s=arrival[reachable] + slo.ttft_s + slo.tpot_s * later,
        output_tokens=answer[reachable],
        is_restricted=restricted[reachable],
        work_s=np.array(prefill) + np.array(decode),
        decode_s=np.array(decode),
        unreachable=len(requests) - int(reachable.sum()),
    )


def sort_into_classes(requests: Requests, kinds: Sequence[Kind]) -> list[WorkClass]:
    """Return the requests in groups: by where they may go, how kinds compare on them, and size."""
    found: list[WorkClass] = []
    work_s = requests.work_s
    slowness = work_s[-1] / work_s[0]
    for is_restricted in (False, True):
        group = np.flatnonzero(requests.is_restricted == is_restricted)
        by_speed = group[np.argsort(slowness[group], kind="stable")]
        for alike in np.array_split(by_speed, 1 if is_restricted else _SPEED_CLASSES):
            by_size = alike[np.argsort(work_s[0][alike], kind="stable")]
            for members in np.array_split(by_size, _SIZE_CLASSES):
                if len(members):
                    ratios = (work_s[:, members] / work_s[0, members]).min(axis=1)
                    may_go = [k.is_owned or not is_restricted for k in kinds]
                    ratio = [float(r) if ok else None for r, ok in zip(ratios, may_go, strict=True)]
                    tokens = requests.output_tokens[members] / work_s[0, members]
                    found.append(WorkClass(members, tuple(ratio), float(tokens.min())))
    return found


def _count_fresh_tokens(traffic: Traffic) -> Floats:
    """Return each request's prompt tokens less those of blocks that any earlier one had."""
    seen: set[int] = set()
    found: list[int] = []
    for request in traffic.requests:
        known = sum(block in seen for block in request.blocks)
        seen.update(request.blocks)
        found.append(max(1, request.prompt_tokens - known * BLOCK_TOKENS))
    return np.array(found, dtype=np.float64)


def _find_decode_s(kind: Kind, prompt: Floats, later: Floats, tpot_s: float) -> Floats:
    """Return each answer's part of a replica's time after its first token, from below."""
    speed = kind.performance
    together = float(kind.slots)
    if speed.tpot_per_running_s > 0:
        kept = (tpot_s - speed.tpot_base_s) / speed.tpot_per_running_s
        together = max(1.0, min(together, kept))
    by_slots = later / together
    by_memory = later * (prompt + later / 2) / speed.kv_capacity_tokens
    bases = by_memory if by_memory.sum() > by_slots.sum() else by_slots
    return speed.tpot_per_running_s * later + speed.tpot_base_s * bases
