"""What one model's pools have answered through this gateway, added up as each request is settled.

The autoscaler takes differences of these counters, so they only grow. A request that ended without
saying its lengths (the client left, the replica failed) adds no lengths and no hold: half an answer
would make the mean answer look short.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeGuard

from deployments.signals import Served

_NOTHING = Served()
_TOKENS_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Settled:
    """How one request went that held a slot. Seconds since it arrived; None = it isn't known.

    `first_token_s` is known of streams only: an answer sent whole hides when its first token came.
    """

    held_from_s: float
    ended_s: float
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class ServedTally:
    """Counters by pool; `late` and `refused_may_burst` are as `ModelSignal` has them."""

    def __init__(self) -> None:
        self.late = 0
        self.refused_may_burst = 0
        self._served: dict[str, Served] = {}

    @property
    def by_pool(self) -> Mapping[str, Served]:
        """The counters of the pools that have answered something."""
        return MappingProxyType(self._served)

    def note(self, pool: str, settled: Settled) -> None:
        """Add one request."""
        self._served[pool] = add_settled(self._served.get(pool, _NOTHING), settled)


def add_settled(served: Served, settled: Settled) -> Served:
    """Return the counters with one more request in them."""
    first_s = settled.first_token_s
    if first_s is not None:
        served = replace(
            served,
            first_tokens=served.first_tokens + 1,
            ttft_s=served.ttft_s + first_s,
            waited_s=served.waited_s + min(settled.held_from_s, first_s),
        )
    prompt, output = settled.prompt_tokens, settled.output_tokens
    if not (_is_length(prompt) and _is_length(output)):
        return served
    served = replace(
        served,
        requests=served.requests + 1,
        prompt_tokens=served.prompt_tokens + prompt,
        output_tokens=served.output_tokens + output,
        hold_s=served.hold_s + max(0.0, settled.ended_s - settled.held_from_s),
    )
    if first_s is None or output <= 1:
        return served
    return replace(
        served,
        decode_tokens=served.decode_tokens + output - 1,
        decode_s=served.decode_s + max(0.0, settled.ended_s - first_s),
    )


def _is_length(tokens: int | None) -> TypeGuard[int]:
    """Whether a replica's word on a length can be true: one absurd answer must not spoil a sum."""
    return tokens is not None and 0 <= tokens <= _TOKENS_MAX
