"""The budget's laws hold for any prices, not only for those somebody thought of."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from cluster.budget import (
    committed_prices,
    decide_launch,
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


def test_a_launch_in_flight_and_a_node_being_ended_are_committed_and_a_closed_one_is_not() -> None:
    nodes = [replace(NODE, phase=phase) for phase in NodePhase]
    assert committed_prices(nodes) == [Decimal(2)] * 4
