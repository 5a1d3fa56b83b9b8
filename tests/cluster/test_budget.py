"""The budget's laws hold for any prices and times, not only for those somebody thought of."""

from dataclasses import dataclass, replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.budget import (
    BudgetStatus,
    Commitment,
    MoneyLimits,
    SpendNow,
    add_launches,
    budget_status,
    decide_launch,
    decide_spend,
    sum_prices,
)
from cluster.spend import Charge, Window, cost_of

prices = st.decimals(min_value=0, max_value=100, places=3)
maybe_prices = st.one_of(st.none(), prices)
price_lists = st.lists(maybe_prices, max_size=6)
seconds = st.floats(min_value=0, max_value=4000).map(lambda moment: round(moment, 1))

DAY_S = 86_400.0
NOON_S = 10 * DAY_S + DAY_S / 2

LIMITS = MoneyLimits(
    usd_per_hour=Decimal(10), usd_per_day=Decimal(100), usd_per_month=Decimal(1000)
)
limits_any = st.builds(
    MoneyLimits,
    usd_per_hour=st.one_of(st.none(), prices),
    usd_per_day=st.one_of(st.none(), prices),
    usd_per_month=st.one_of(st.none(), prices),
    lease_s_min=seconds,
)
spend_any = st.builds(
    SpendNow,
    now_s=st.floats(min_value=0, max_value=1e9),
    commitments=st.lists(
        st.builds(Commitment, usd_per_hour=maybe_prices, since_s=st.floats(0, 1e9)), max_size=5
    ),
    day_usd=maybe_prices,
    month_usd=maybe_prices,
)


@given(spend=spend_any, asked=price_lists, limits=limits_any)
def test_an_allowed_launch_that_costs_keeps_every_limit(
    spend: SpendNow, asked: list[Decimal | None], limits: MoneyLimits
) -> None:
    status = budget_status(spend, limits)
    if decide_spend(status, asked).is_allowed and sum_prices(asked) != 0:
        for use in add_launches(status, asked).uses:
            assert use.used_usd is not None
            assert use.used_usd <= use.limit_usd


@given(spend=spend_any, asked=price_lists, limit=prices)
def test_an_unknown_price_is_never_taken_for_zero(
    spend: SpendNow, asked: list[Decimal | None], limit: Decimal
) -> None:
    for limits in (MoneyLimits(limit), MoneyLimits(usd_per_day=limit)):
        assert not decide_spend(budget_status(spend, limits), [*asked, None]).is_allowed


@pytest.mark.parametrize("unknown", ["day_usd", "month_usd", "commitments"])
def test_money_spent_or_committed_at_an_unknown_price_stops_launches_that_cost(
    unknown: str,
) -> None:
    known = SpendNow(now_s=NOON_S)
    hidden = (Commitment(None, NOON_S - 3600),) if unknown == "commitments" else None
    spend = replace(known, **{unknown: hidden})
    assert decide_spend(budget_status(known, LIMITS), [Decimal(1)]).is_allowed
    verdict = decide_spend(budget_status(spend, LIMITS), [Decimal(1)])
    assert not verdict.is_allowed
    assert "unknown price is never free" in verdict.reason


@given(spend=spend_any, count=st.integers(1, 5), limits=limits_any)
def test_what_costs_nothing_is_always_allowed(
    spend: SpendNow, count: int, limits: MoneyLimits
) -> None:
    assert decide_spend(budget_status(spend, limits), [Decimal(0)] * count).is_allowed


@given(spend=spend_any, more=prices, price=maybe_prices, asked=price_lists, limits=limits_any)
def test_more_spent_or_committed_never_allows_more(
    spend: SpendNow,
    more: Decimal,
    price: Decimal | None,
    asked: list[Decimal | None],
    limits: MoneyLimits,
) -> None:
    dearer = replace(
        spend,
        day_usd=None if spend.day_usd is None else spend.day_usd + more,
        month_usd=None if spend.month_usd is None else spend.month_usd + more,
        commitments=[*spend.commitments, Commitment(price, spend.now_s)],
    )
    before = decide_spend(budget_status(spend, limits), asked)
    after = decide_spend(budget_status(dearer, limits), asked)
    assert before.is_allowed or not after.is_allowed


@given(spend=spend_any, first=price_lists, asked=price_lists, limits=limits_any)
def test_planned_launches_weigh_like_those_in_flight(
    spend: SpendNow,
    first: list[Decimal | None],
    asked: list[Decimal | None],
    limits: MoneyLimits,
) -> None:
    flying = [Commitment(price, spend.now_s) for price in first]
    planned = add_launches(budget_status(spend, limits), first)
    flown = budget_status(replace(spend, commitments=[*spend.commitments, *flying]), limits)
    for one, other in zip(planned.uses, flown.uses, strict=True):
        assert (one.used_usd is None) == (other.used_usd is None)
        if one.used_usd is not None:
            assert one.used_usd == pytest.approx(other.used_usd)
    if sum_prices(asked) is None:
        assert planned.nodes == flown.nodes


@dataclass(frozen=True, slots=True)
class Wish:
    """A launch somebody asks for, and how long the node runs if it is allowed."""

    at_s: float
    runs_s: float
    usd_per_hour: Decimal


wishes = st.lists(
    st.builds(Wish, at_s=seconds, runs_s=seconds, usd_per_hour=prices), max_size=12
).map(lambda found: sorted(found, key=lambda wish: wish.at_s))


@given(asked=wishes, limit=prices, start_s=st.sampled_from([NOON_S, NOON_S + DAY_S / 2 - 2000]))
def test_a_day_costs_no_more_than_its_limit_and_what_ran_on_after_its_minimum_lease(
    asked: list[Wish], limit: Decimal, start_s: float
) -> None:
    """Launches at any times, some just before midnight, each node running any time."""
    limits = MoneyLimits(usd_per_day=limit, lease_s_min=600.0)
    charges: list[Charge] = []
    for wish in asked:
        now_s = start_s + wish.at_s
        spend = _spend_at(now_s, charges)
        if decide_spend(budget_status(spend, limits), [wish.usd_per_hour]).is_allowed:
            charges.append(Charge("cloud", wish.usd_per_hour, now_s, now_s + wish.runs_s))
    for day in (10, 11):
        window = Window(day * DAY_S, (day + 1) * DAY_S)
        # What the evening before started is outside what today's verdicts could prevent.
        todays = [one for one in charges if one.since_s >= window.since_s]
        late = [
            replace(one, since_s=one.since_s + 600.0)
            for one in todays
            if one.until_s is not None and one.until_s > one.since_s + 600.0
        ]
        spent_usd = cost_of(todays, window, now_s=12 * DAY_S)
        late_usd = sum(_cost_without_minimum(one, window) for one in late)
        assert spent_usd is not None
        assert spent_usd <= limit + late_usd + Decimal("1e-9")


def _cost_without_minimum(charge: Charge, window: Window) -> Decimal:
    until_s = min(charge.until_s or 0.0, window.until_s)
    seconds = Decimal(max(0.0, until_s - charge.since_s))
    return (charge.usd_per_hour or Decimal(0)) * seconds / 3600


def _spend_at(now_s: float, charges: list[Charge]) -> SpendNow:
    day_s = now_s - now_s % DAY_S
    running = [one for one in charges if one.until_s is not None and one.until_s > now_s]
    return SpendNow(
        now_s=now_s,
        commitments=[Commitment(one.usd_per_hour, one.since_s) for one in running],
        day_usd=cost_of(
            [one if one not in running else replace(one, until_s=None) for one in charges],
            Window(day_s, day_s + DAY_S),
            now_s=now_s,
        ),
    )


@given(committed=price_lists, asked=price_lists, limit=prices)
def test_the_hours_limit_alone_decides_as_it_does_among_others(
    committed: list[Decimal | None], asked: list[Decimal | None], limit: Decimal
) -> None:
    nodes = [Commitment(price, NOON_S) for price in committed]
    status = budget_status(SpendNow(NOON_S, nodes), MoneyLimits(limit))
    alone = decide_launch(committed=committed, asked=asked, limit_usd_per_hour=limit)
    assert alone == decide_spend(status, asked)


def _status(spent: str, *burning: str) -> BudgetStatus:
    """The day's limit is 100 $; nodes started an hour ago, so their leases are over."""
    nodes = [Commitment(Decimal(price), NOON_S - 3600) for price in burning]
    spend = SpendNow(now_s=NOON_S, commitments=nodes, day_usd=Decimal(spent))
    return budget_status(spend, MoneyLimits(usd_per_day=Decimal(100)))


@pytest.mark.parametrize(
    ("spent", "level"), [("79.99", "ok"), ("80", "soft"), ("99.99", "soft"), ("100", "hard")]
)
def test_a_limit_warns_from_its_soft_share_on(spent: str, level: str) -> None:
    assert _status(spent).level == level


def test_a_status_says_what_is_spent_and_what_burns() -> None:
    (use,) = _status("81.2", "1.86", "1.86", "1.86").uses
    assert use.reason == "spent 81.20 $ of 100 $/day, 3 nodes burn 5.58 $/h"


def test_a_refusal_says_what_would_be_spent_and_which_limit_forbids_it() -> None:
    """99.90 $ are spent; ten minutes at 1.861 $/h are 0.31 $."""
    verdict = decide_spend(_status("99.9"), [Decimal("1.861")])
    assert (verdict.is_allowed, verdict.limit) == (False, "usd_per_day")
    assert verdict.reason == (
        "99.90 $ are spent and 100.21 $ would be with what is promised to nodes, "
        "over the limit of 100 $/day"
    )


def test_the_minimum_lease_counts_only_as_far_as_the_day_lasts() -> None:
    """One minute before midnight, a node at 60 $/h can cost this day 1 $ at most."""
    spend = SpendNow(now_s=11 * DAY_S - 60, day_usd=Decimal(99))
    status = budget_status(spend, MoneyLimits(usd_per_day=Decimal(100)))
    assert decide_spend(status, [Decimal(60)]).is_allowed
    assert not decide_spend(status, [Decimal("60.01")]).is_allowed
