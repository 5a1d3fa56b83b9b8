"""What may still be spent per hour. Pure: prices in, a verdict with its reason out.

The laws, checked in tests/cluster/test_budget.py: an allowed launch never takes the commitment
over the limit; what costs nothing is always allowed; an unknown price is never taken for zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from cluster.model import NodePhase, NodeRecord

UsdPerHour = Decimal | None
"""A price; None = unknown."""


@dataclass(frozen=True, slots=True)
class BudgetVerdict:
    """Whether a launch fits. `after_usd_per_hour` None = unknown, because a price is."""

    is_allowed: bool
    after_usd_per_hour: UsdPerHour
    reason: str


def committed_prices(records: Sequence[NodeRecord]) -> list[UsdPerHour]:
    """Return the price of everything that may cost money now, launches in flight included."""
    return [record.usd_per_hour for record in records if record.phase is not NodePhase.CLOSED]


def sum_prices(prices: Sequence[UsdPerHour]) -> UsdPerHour:
    """Return the prices' sum, unknown as soon as one of them is."""
    known = [price for price in prices if price is not None]
    return sum(known, Decimal(0)) if len(known) == len(prices) else None


def decide_launch(
    *, committed: Sequence[UsdPerHour], asked: Sequence[UsdPerHour], limit_usd_per_hour: Decimal
) -> BudgetVerdict:
    """Return whether nodes at the asked prices may be launched on top of what is committed."""
    added, after = sum_prices(asked), sum_prices([*committed, *asked])
    if added == 0:
        return BudgetVerdict(is_allowed=True, after_usd_per_hour=after, reason="costs nothing")
    if added is None or after is None:
        where = "the asked node" if added is None else "a running node"
        reason = f"the price of {where} is unknown, and an unknown price is never free"
        return BudgetVerdict(is_allowed=False, after_usd_per_hour=None, reason=reason)
    is_allowed = after <= limit_usd_per_hour
    relation = "within" if is_allowed else "over"
    reason = f"{after} $/h would be committed, {relation} the limit of {limit_usd_per_hour} $/h"
    return BudgetVerdict(is_allowed=is_allowed, after_usd_per_hour=after, reason=reason)
