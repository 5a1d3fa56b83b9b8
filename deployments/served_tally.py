"""What one model's pools have answered through this gateway, added up as each request is settled.

The autoscaler takes differences of these counters, so they only grow. A request that ended without
saying its lengths (the client left, the replica failed) adds no lengths and no hold: half an answer
would make the mean answer look short.
"""

from dataclasses import asdict, dataclass
from typing import TypeGuard

from deployments.signals import Served

_TOKENS_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Settled:
    """How one request went that held a slot. Seconds since it arrived; None = it isn't known.

    `first_token_s` is known of streams only: an answer sent whole hides when its first token came.
    `cached_tokens` of the prompt's weren't read again; an engine that doesn't say reuses none.
    """

    held_from_s: float
    ended_s: float
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(slots=True)
class PoolCounts:
    """The counters of one pool while they grow; named as in `deployments.signals.Served`."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    hold_s: float = 0.0
    first_tokens: int = 0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    waited_s: float = 0.0
    cached_tokens: int = 0
    read_tokens_squared: int = 0
    output_tokens_squared: int = 0

    def add(self, settled: Settled) -> None:
        """Add one request."""
        first_s = settled.first_token_s
        if first_s is not None:
            self.first_tokens += 1
            self.ttft_s += first_s
            self.waited_s += min(settled.held_from_s, first_s)
        prompt, output = settled.prompt_tokens, settled.output_tokens
        if not (_is_length(prompt) and _is_length(output)):
            return
        self.requests += 1
        self.prompt_tokens += prompt
        self.output_tokens += output
        said = settled.cached_tokens
        cached = said if _is_length(said) and said <= prompt else 0
        self.cached_tokens += cached
        self.read_tokens_squared += (prompt - cached) ** 2
        self.output_tokens_squared += output**2
        self.hold_s += max(0.0, settled.ended_s - settled.held_from_s)
        if first_s is not None and output > 1:
            self.decode_tokens += output - 1
            self.decode_s += max(0.0, settled.ended_s - first_s)

    def as_served(self) -> Served:
        """The counters as signals carry them."""
        return Served(**asdict(self))


class ServedTally:
    """Counters by pool; `late` and `refused_may_burst` are as `ModelSignal` has them."""

    def __init__(self) -> None:
        self.late = 0
        self.refused_may_burst = 0
        self._pools: dict[str, PoolCounts] = {}

    def note(self, pool: str, settled: Settled) -> None:
        """Add one request that a pool answered."""
        counts = self._pools.get(pool)
        if counts is None:
            counts = self._pools[pool] = PoolCounts()
        counts.add(settled)

    def read(self, pool: str) -> Served:
        """The counters of one pool so far."""
        counts = self._pools.get(pool)
        return Served() if counts is None else counts.as_served()


def _is_length(tokens: int | None) -> TypeGuard[int]:
    """Whether a replica's word on a length can be true: one absurd answer must not spoil a sum."""
    return tokens is not None and 0 <= tokens <= _TOKENS_MAX
