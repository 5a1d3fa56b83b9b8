"""The budget's laws hold for any prices, not only for those somebody thought of."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from cluster.budget import (
    affordable_count,
    committed_prices,
    decide_launch,
    spent_usd,
    sum_prices,
)
from cluster.model import NodeId, NodePhase, NodeRecord, NodeTypeName, SiteName

prices = st.decimals(min_value=0, max_value=100, places=3)
maybe_prices = st.one_of(st.none(), prices)
price_lists = st.lists(maybe_prices, max_size=6)

NODE = NodeRecord(
    node_id=NodeId("cloud_gpu-1"),
    site=SiteName("cloud"),
    node_type=NodeTypeName("cloud_gpu"),
    phase=NodePhase.RUNNING,
    is_head=False,
    usd_per_hour=Decimal(2),
    tags={},
    address=None,
    owner="",
    intended_s=1000.0,
    changed_s=1000.0,
)


@given(committed=price_lists, asked=price_lists, limit=prices)
def test_an_allowed_launch_that_costs_never_takes_the_commitment_over_the_limit(
    committed: list[Decimal | None], asked: list[Decimal | None], limit: Decimal
) -> None:
    verdict = decide_launch(committed=committed, asked=asked, limit_usd_per_hour=limit)
    if verdict.is_allowed and sum_prices(asked) != 0:
        assert verdict.after_usd_per_hour is not None
        assert verdict.after_usd_per_hour <= limit


@given(committed=price_lists, asked=price_lists, limit=prices)
def test_an_unknown_price_is_never_taken_for_zero(
    committed: list[Decimal | None], asked: list[Decimal | None], limit: Decimal
) -> None:
    verdict = decide_launch(committed=committed, asked=[*asked, None], limit_usd_per_hour=limit)
    assert not verdict.is_allowed


@given(committed=price_lists, count=st.integers(1, 5), limit=prices)
def test_what_costs_nothing_is_always_allowed(
    committed: list[Decimal | None], count: int, limit: Decimal
) -> None:
    free = [Decimal(0)] * count
    assert decide_launch(committed=committed, asked=free, limit_usd_per_hour=limit).is_allowed


@given(committed=price_lists, asked=price_lists, more=prices, limit=prices)
def test_committing_more_never_allows_more(
    committed: list[Decimal | None], asked: list[Decimal | None], more: Decimal, limit: Decimal
) -> None:
    before = decide_launch(committed=committed, asked=asked, limit_usd_per_hour=limit)
    after = decide_launch(committed=[*committed, more], asked=asked, limit_usd_per_hour=limit)
    assert before.is_allowed or not after.is_allowed


@given(committed=price_lists, price=maybe_prices, asked=st.integers(0, 10), limit=prices)
def test_the_affordable_count_is_the_largest_that_is_allowed(
    committed: list[Decimal | None], price: Decimal | None, asked: int, limit: Decimal
) -> None:
    count = affordable_count(
        committed=committed, price=price, limit_usd_per_hour=limit, asked=asked
    )
    assert 0 <= count <= asked

    def is_allowed(number: int) -> bool:
        return decide_launch(
            committed=committed, asked=[price] * number, limit_usd_per_hour=limit
        ).is_allowed

    assert is_allowed(count)
    assert count == asked or not is_allowed(count + 1)


def test_a_launch_in_flight_and_a_node_being_ended_are_committed_and_a_closed_one_is_not() -> None:
    nodes = [replace(NODE, phase=phase) for phase in NodePhase]
    assert committed_prices(nodes) == [Decimal(2)] * 4


def test_a_node_costs_from_its_intent_to_its_end() -> None:
    """2 $/h from 1000 s to 2800 s is half an hour: 1 $; a window of 900 s of it: 0.50 $."""
    ended = replace(NODE, phase=NodePhase.CLOSED, closed_s=2800.0)
    assert spent_usd([ended], from_s=0, to_s=10_000) == 1
    assert spent_usd([ended], from_s=1900, to_s=10_000) == Decimal("0.5")
    assert spent_usd([NODE], from_s=0, to_s=2800) == 1
    assert spent_usd([ended], from_s=5000, to_s=10_000) == 0


def test_spend_is_unknown_as_soon_as_one_price_is() -> None:
    unknown = replace(NODE, usd_per_hour=None)
    assert spent_usd([NODE, unknown], from_s=0, to_s=2800) is None
