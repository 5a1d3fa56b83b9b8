"""What may still be spent per hour, day and month. Pure: prices in, a verdict with its reason out.

Money counts against a day or month when it is spent, and from the moment of a launch also when it
is promised: every node to the end of its minimum lease, as far as that lies inside the window. The
laws, checked in tests/cluster/test_budget.py: an allowed launch never takes a commitment over a
limit, so that only what runs on after its minimum lease can; what costs nothing is always allowed;
an unknown price is never taken for zero; more spent never allows more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from cluster.spend import CHARGED_S_MIN, Usd, Window, day_window, month_window

UsdPerHour = Decimal | None
"""A price; None = unknown."""

Level = Literal["ok", "soft", "hard"]
"""soft = a warning: the limit's soft share is used; hard = nothing that costs may be launched."""

MoneyLimit = Literal["usd_per_hour", "usd_per_day", "usd_per_month"]

_HOUR: MoneyLimit = "usd_per_hour"
_DAY: MoneyLimit = "usd_per_day"
_MONTH: MoneyLimit = "usd_per_month"
_SPANS: Mapping[MoneyLimit, str] = {_HOUR: "h", _DAY: "day", _MONTH: "month"}
_LEVELS: tuple[Level, ...] = ("ok", "soft", "hard")
_S_PER_HOUR = Decimal(3600)
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class MoneyLimits:
    """How much money may be spent. None = no limit of that kind. `soft_ratio` is 0-1."""

    usd_per_hour: Decimal | None = None
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None
    soft_ratio: Decimal = Decimal("0.8")
    lease_s_min: float = 600.0


@dataclass(frozen=True, slots=True)
class Commitment:
    """One node that costs money, or may: launches in flight are among them."""

    usd_per_hour: UsdPerHour
    since_s: float


@dataclass(frozen=True, slots=True)
class SpendNow:
    """What is spent and committed at a moment. None = unknown, because a price is.

    `day_usd` and `month_usd` are what the present UTC day and month cost up to now.
    """

    now_s: float
    commitments: Sequence[Commitment] = ()
    day_usd: Usd = _ZERO
    month_usd: Usd = _ZERO


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How much of one limit is used. `used_usd` None = unknown.

    `spent_usd` is the part that is gone already. One node launched now would add its price times
    `charged_hours`: 1 for the hour's limit, the minimum lease or what is left of the window for
    the others.
    """

    limit: MoneyLimit
    limit_usd: Decimal
    used_usd: Usd
    spent_usd: Usd
    charged_hours: Decimal
    level: Level = "ok"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """How much of every limit is used, the hour's first. `nodes` counts those that cost."""

    uses: tuple[LimitUse, ...]
    burn_usd_per_hour: UsdPerHour
    nodes: int

    @property
    def level(self) -> Level:
        """The worst level of all limits."""
        return max((use.level for use in self.uses), key=_LEVELS.index, default="ok")


@dataclass(frozen=True, slots=True)
class BudgetVerdict:
    """Whether a launch fits. `after_usd_per_hour` None = unknown, because a price is.

    `limit` is the one that forbids it.
    """

    is_allowed: bool
    after_usd_per_hour: UsdPerHour
    reason: str
    limit: MoneyLimit | None = None


def sum_prices(prices: Sequence[UsdPerHour]) -> UsdPerHour:
    """Return the prices' sum, unknown as soon as one of them is."""
    known = [price for price in prices if price is not None]
    return sum(known, _ZERO) if len(known) == len(prices) else None


def budget_status(spend: SpendNow, limits: MoneyLimits) -> BudgetStatus:
    """Return how much of every limit is used, and in which words to say it."""
    costing = [one for one in spend.commitments if one.usd_per_hour != 0]
    burn = sum_prices([one.usd_per_hour for one in costing])
    words = f"{_count_nodes(len(costing))} {_say_usd(burn)}/h"
    uses: list[LimitUse] = []
    if limits.usd_per_hour is not None:
        uses.append(_use_of_hour(burn, limits, words))
    for limit, limit_usd, spent_usd, window in (
        (_DAY, limits.usd_per_day, spend.day_usd, day_window(spend.now_s)),
        (_MONTH, limits.usd_per_month, spend.month_usd, month_window(spend.now_s)),
    ):
        if limit_usd is None:
            continue
        promised_usd = _promised_usd(costing, window, spend.now_s, limits)
        unused = LimitUse(
            limit=limit,
            limit_usd=limit_usd,
            used_usd=sum_prices([spent_usd, promised_usd]),
            spent_usd=spent_usd,
            charged_hours=_promised_hours(spend.now_s, window, spend.now_s, limits),
        )
        reason = f"spent {_say_usd(spent_usd)} of {_say_limit(unused)}, {words}"
        uses.append(replace(unused, level=_level_of(unused, limits), reason=reason))
    return BudgetStatus(tuple(uses), burn_usd_per_hour=burn, nodes=len(costing))


def decide_spend(status: BudgetStatus, asked: Sequence[UsdPerHour]) -> BudgetVerdict:
    """Return whether nodes at the asked prices may be launched within every limit."""
    added = sum_prices(asked)
    after = sum_prices([status.burn_usd_per_hour, added])
    if added == 0:
        return BudgetVerdict(is_allowed=True, after_usd_per_hour=after, reason="costs nothing")
    for use in status.uses:
        reason = _find_excess(use, added)
        if reason is not None:
            return BudgetVerdict(
                is_allowed=False, after_usd_per_hour=after, reason=reason, limit=use.limit
            )
    reason = f"{_say_usd(after)}/h would be committed, within every limit"
    return BudgetVerdict(is_allowed=True, after_usd_per_hour=after, reason=reason)


def decide_launch(
    *, committed: Sequence[UsdPerHour], asked: Sequence[UsdPerHour], limit_usd_per_hour: Decimal
) -> BudgetVerdict:
    """Return whether nodes at the asked prices may be launched within the hour's limit alone."""
    burn = sum_prices(committed)
    use = _use_of_hour(burn, MoneyLimits(limit_usd_per_hour), "committed")
    return decide_spend(BudgetStatus((use,), burn, nodes=len(committed)), asked)


def add_launches(status: BudgetStatus, asked: Sequence[UsdPerHour]) -> BudgetStatus:
    """Return the status once nodes at the asked prices are launched too, in the same moment.

    For plans of many launches: levels and reasons stay those of what exists.
    """
    added = sum_prices(asked)
    uses = tuple(
        replace(use, used_usd=sum_prices([use.used_usd, _cost_within(use, added)]))
        for use in status.uses
    )
    return BudgetStatus(
        uses=uses,
        burn_usd_per_hour=sum_prices([status.burn_usd_per_hour, added]),
        nodes=status.nodes + sum(price != 0 for price in asked),
    )


def _find_excess(use: LimitUse, added: UsdPerHour) -> str | None:
    """Return why a launch would break a limit, None if it doesn't."""
    if added is None or use.used_usd is None:
        where = "the asked node" if added is None else _name_unknown(use)
        return (
            f"the price of {where} is unknown, and an unknown price is never free: "
            "give its type a price in provider.node_types"
        )
    after = use.used_usd + added * use.charged_hours
    if after <= use.limit_usd:
        return None
    if use.limit == _HOUR:
        return f"{after} $/h would be committed, over the limit of {use.limit_usd} $/h"
    return (
        f"{_say_usd(use.spent_usd)} are spent and {_say_usd(after)} would be with what is promised "
        f"to nodes, over the limit of {_say_limit(use)}"
    )


def _name_unknown(use: LimitUse) -> str:
    return "a running node" if use.limit == _HOUR else f"a node that ran this {_SPANS[use.limit]}"


def _use_of_hour(burn: UsdPerHour, limits: MoneyLimits, words: str) -> LimitUse:
    limit_usd = limits.usd_per_hour or _ZERO
    unused = LimitUse(_HOUR, limit_usd, used_usd=burn, spent_usd=_ZERO, charged_hours=Decimal(1))
    return replace(
        unused, level=_level_of(unused, limits), reason=f"{words} of {_say_limit(unused)}"
    )


def _promised_usd(
    costing: Sequence[Commitment], window: Window, now_s: float, limits: MoneyLimits
) -> Usd:
    """Return what nodes will cost inside the window from now to the end of their minimum lease."""
    promised = [
        None
        if one.usd_per_hour is None
        else one.usd_per_hour * _promised_hours(one.since_s, window, now_s, limits)
        for one in costing
    ]
    return sum_prices(promised)


def _promised_hours(since_s: float, window: Window, now_s: float, limits: MoneyLimits) -> Decimal:
    lease_end_s = since_s + max(limits.lease_s_min, CHARGED_S_MIN)
    seconds = min(lease_end_s, window.until_s) - max(now_s, since_s)
    return Decimal(max(0.0, seconds)) / _S_PER_HOUR


def _cost_within(use: LimitUse, added: UsdPerHour) -> Usd:
    return None if added is None else added * use.charged_hours


def _level_of(use: LimitUse, limits: MoneyLimits) -> Level:
    if use.used_usd is None or use.used_usd >= use.limit_usd:
        return "hard"
    return "soft" if use.used_usd >= use.limit_usd * limits.soft_ratio else "ok"


def _count_nodes(count: int) -> str:
    return "1 node burns" if count == 1 else f"{count} nodes burn"


def _say_usd(usd: Usd) -> str:
    return "an unknown sum of $" if usd is None else f"{usd:.2f} $"


def _say_limit(use: LimitUse) -> str:
    return f"{use.limit_usd} $/{_SPANS[use.limit]}"
