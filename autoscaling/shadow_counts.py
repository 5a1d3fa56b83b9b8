"""What gateways have counted of a model, and what is new of it since a look. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.signals import ModelSignal


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests that arrived, were late or were refused; first tokens, and the seconds until them.

    `waited_s` is the part of `ttft_s` before there was a slot.
    """

    arrived: int = 0
    late: int = 0
    refused_may_burst: int = 0
    first_tokens: int = 0
    ttft_s: float = 0.0
    waited_s: float = 0.0

    @property
    def own_ttft_s(self) -> float:
        """The mean time to the first token that isn't waiting for a slot; 0 = none seen."""
        if not self.first_tokens:
            return 0.0
        return max(0.0, self.ttft_s - self.waited_s) / self.first_tokens


def count(part: ModelSignal) -> Counted:
    """Return what one gateway has counted since it started."""
    served = [pool.served for pool in part.pools]
    return Counted(
        arrived=part.arrived,
        late=part.late,
        refused_may_burst=part.refused_may_burst,
        first_tokens=sum(one.first_tokens for one in served),
        ttft_s=sum(one.ttft_s for one in served),
        waited_s=sum(one.waited_s for one in served),
    )


def find_new(before: Counted | None, now: Counted) -> Counted:
    """Return what was counted since; nothing of a gateway seen first, all of one that restarted."""
    if before is None:
        return Counted()
    if now.arrived < before.arrived or now.first_tokens < before.first_tokens:
        return now
    return Counted(
        arrived=now.arrived - before.arrived,
        late=max(0, now.late - before.late),
        refused_may_burst=max(0, now.refused_may_burst - before.refused_may_burst),
        first_tokens=now.first_tokens - before.first_tokens,
        ttft_s=max(0.0, now.ttft_s - before.ttft_s),
        waited_s=max(0.0, now.waited_s - before.waited_s),
    )


def add_up(counts: Iterable[Counted]) -> Counted:
    """Return the sum."""
    total = Counted()
    for one in counts:
        total = Counted(
            arrived=total.arrived + one.arrived,
            late=total.late + one.late,
            refused_may_burst=total.refused_may_burst + one.refused_may_burst,
            first_tokens=total.first_tokens + one.first_tokens,
            ttft_s=total.ttft_s + one.ttft_s,
            waited_s=total.waited_s + one.waited_s,
        )
    return total
