"""Money is added up exactly, whatever clocks do, and an unknown price is never free."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.spend import Charge, Window, cost_by_site, cost_of, day_window, month_window

moments = st.floats(min_value=0, max_value=10_000).map(lambda moment: round(moment, 3))
prices = st.decimals(min_value=0, max_value=100, places=3)
charges = st.builds(
    Charge,
    site=st.sampled_from(["onprem", "cloud"]),
    usd_per_hour=prices,
    since_s=moments,
    until_s=st.one_of(st.none(), moments),
)
EVER = Window(0.0, 1e9)
NOW_S = 5000.0


def at(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


def test_an_hour_costs_the_price_of_an_hour() -> None:
    assert cost_of([Charge("cloud", Decimal("1.861"), 0.0, 3600.0)], EVER, now_s=NOW_S) == Decimal(
        "1.861"
    )


def test_less_than_a_minute_is_charged_as_a_minute() -> None:
    """10 s at 3.60 $/h: 60 s are billed, 0.06 $."""
    assert cost_of([Charge("cloud", Decimal("3.6"), 100.0, 110.0)], EVER, now_s=NOW_S) == Decimal(
        "0.06"
    )


def test_only_what_lies_inside_the_window_counts() -> None:
    """From 1,800 s to 5,400 s at 2 $/h; the window ends at 3,600 s, half an hour later."""
    charge = Charge("cloud", Decimal(2), 1800.0, 5400.0)
    assert cost_of([charge], Window(0.0, 3600.0), now_s=NOW_S) == Decimal(1)


def test_a_node_that_still_runs_is_charged_up_to_now() -> None:
    assert cost_of([Charge("cloud", Decimal(2), 1800.0)], EVER, now_s=9000.0) == Decimal(4)


@given(
    rows=st.lists(charges, max_size=5),
    cuts=st.lists(moments, min_size=3, max_size=3).map(sorted),
)
def test_the_parts_of_a_span_add_up_to_the_whole(rows: list[Charge], cuts: list[float]) -> None:
    early, middle, late = cuts
    whole = cost_of(rows, Window(early, late), now_s=NOW_S)
    parts = [
        cost_of(rows, Window(early, middle), now_s=NOW_S),
        cost_of(rows, Window(middle, late), now_s=NOW_S),
    ]
    assert whole is not None
    assert None not in parts
    assert sum(part for part in parts if part is not None) == pytest.approx(whole)


@given(rows=st.lists(charges, max_size=5), since_s=moments, until_s=moments, now_s=moments)
def test_clocks_that_step_back_never_make_spend_negative(
    rows: list[Charge], since_s: float, until_s: float, now_s: float
) -> None:
    cost = cost_of(rows, Window(since_s, until_s), now_s=now_s)
    assert cost is not None
    assert cost >= 0


@given(rows=st.lists(charges, max_size=5), since_s=st.floats(0, NOW_S - 1))
def test_a_charged_node_of_unknown_price_makes_the_sum_unknown(
    rows: list[Charge], since_s: float
) -> None:
    unknown = Charge("cloud", None, since_s, None)
    assert cost_of([*rows, unknown], EVER, now_s=NOW_S) is None


def test_an_unknown_price_outside_the_window_does_no_harm() -> None:
    unknown = Charge("cloud", None, 0.0, 100.0)
    assert cost_of([unknown], Window(100.0, 200.0), now_s=NOW_S) == 0


def test_one_sites_unknown_price_leaves_the_others_sum_known() -> None:
    rows = [Charge("b", None, 0.0, 3600.0), Charge("a", Decimal(2), 0.0, 3600.0)]
    assert cost_by_site(rows, EVER, now_s=NOW_S) == {"a": Decimal(2), "b": None}


@pytest.mark.parametrize(
    ("now_s", "day", "month"),
    [
        (
            at(2026, 2, 28, 23, 59),
            (at(2026, 2, 28), at(2026, 3, 1)),
            (at(2026, 2, 1), at(2026, 3, 1)),
        ),
        (at(2026, 12, 31), (at(2026, 12, 31), at(2027, 1, 1)), (at(2026, 12, 1), at(2027, 1, 1))),
        (at(2028, 2, 29, 12), (at(2028, 2, 29), at(2028, 3, 1)), (at(2028, 2, 1), at(2028, 3, 1))),
    ],
    ids=["end of February", "end of year", "leap day"],
)
def test_windows_are_utc_days_and_months(
    now_s: float, day: tuple[float, float], month: tuple[float, float]
) -> None:
    assert (day_window(now_s), month_window(now_s)) == (Window(*day), Window(*month))
