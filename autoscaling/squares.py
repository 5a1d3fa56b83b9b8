"""Sums of squares of what was answered: how much lengths vary.

Only what a gateway counts squares of is in them, with the sums they belong to, so that those of
older gateways falsify nothing. Pure.
"""

from dataclasses import dataclass

from deployments.signals import Served


@dataclass(frozen=True, slots=True)
class SquareSums:
    """Requests, the tokens read of their prompts and of their outputs, and the squares of both."""

    requests: float = 0.0
    read_tokens: float = 0.0
    read_squared: float = 0.0
    output_tokens: float = 0.0
    output_squared: float = 0.0

    @property
    def read_variation(self) -> float:
        """The squared coefficient of variation of what is read of a prompt."""
        return _find_variation(self.requests, self.read_tokens, self.read_squared)

    @property
    def output_variation(self) -> float:
        """The squared coefficient of variation of output tokens."""
        return _find_variation(self.requests, self.output_tokens, self.output_squared)

    def add(self, new: Served) -> "SquareSums":
        """Return them with what was answered; as they are where its squares weren't counted."""
        if new.read_tokens_squared <= 0 and new.output_tokens_squared <= 0:
            return self
        return SquareSums(
            self.requests + new.requests,
            self.read_tokens + new.prompt_tokens - new.cached_tokens,
            self.read_squared + new.read_tokens_squared,
            self.output_tokens + new.output_tokens,
            self.output_squared + new.output_tokens_squared,
        )

    def fade(self, share: float) -> "SquareSums":
        """Return a share of them."""
        return SquareSums(
            self.requests * share,
            self.read_tokens * share,
            self.read_squared * share,
            self.output_tokens * share,
            self.output_squared * share,
        )


def _find_variation(count: float, total: float, squared: float) -> float:
    """Return (mean of squares - mean^2) / mean^2, never negative; 0 of nothing."""
    return max(0.0, squared * count / total**2 - 1) if total > 0 else 0.0
