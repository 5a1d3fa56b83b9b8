"""The last check before a launch, on real books: hour, day and month, over a restart as well."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ProviderSettings, parse_provider_section
from cluster.errors import BudgetExceededError
from cluster.ledger import Books, Intent, Ledger
from cluster.limits import check_budget, money_limits
from cluster.model import NodeId, NodeTypeName, SiteName

NOON_S = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
HOUR_S = 3600.0
INTENT = Intent(
    node_id=NodeId("n-1"),
    site=SiteName("cloud"),
    node_type=NodeTypeName("cloud_gpu"),
    is_head=False,
    usd_per_hour=Decimal(2),
    tags={},
    node_config={},
)


@dataclass
class Clock:
    now_s: float = NOON_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def new_settings(cluster_content: dict[str, Any]) -> Callable[..., ProviderSettings]:
    def build(**limits: Any) -> ProviderSettings:
        provider = cluster_content["provider"]
        provider["limits"] = {"launches_per_tick": 2, "usd_per_hour": 100, **limits}
        return parse_provider_section(provider)

    return build


def launch(ledger: Ledger, settings: ProviderSettings, node_id: str) -> None:
    intents = [replace(INTENT, node_id=NodeId(node_id))]

    def check(books: Books) -> None:
        check_budget(settings, books, intents)

    ledger.open_intents(intents, owner="me", check=check)


def test_a_days_limit_counts_what_ran_and_what_is_promised_and_ends_with_the_day(
    tmp_path: Path, new_settings: Callable[..., ProviderSettings]
) -> None:
    """2 $/h for 5 hours are 10 $, a minimum lease of 30 minutes is 1 $, the limit is 11.50 $."""
    settings, clock = new_settings(usd_per_day=11.5, lease_s_min=1800), Clock()
    ledger = Ledger(tmp_path / "ledger.db", now_s=clock)
    launch(ledger, settings, "n-1")
    clock.now_s += 5 * HOUR_S
    ledger.mark_closed(NodeId("n-1"), why="terminated")
    launch(ledger, settings, "n-2")
    with pytest.raises(BudgetExceededError, match=r"10.00 \$ are spent and 12.00 \$ would be"):
        launch(ledger, settings, "n-3")
    clock.now_s = NOON_S + 12 * HOUR_S
    ledger.mark_closed(NodeId("n-2"), why="terminated")
    launch(ledger, settings, "n-3")


def test_a_months_limit_counts_the_days_before(
    tmp_path: Path, new_settings: Callable[..., ProviderSettings]
) -> None:
    settings, clock = new_settings(usd_per_month=50), Clock()
    ledger = Ledger(tmp_path / "ledger.db", now_s=clock)
    launch(ledger, settings, "n-1")
    clock.now_s += 25 * HOUR_S
    with pytest.raises(BudgetExceededError, match=r"over the limit of 50 \$/month"):
        launch(ledger, settings, "n-2")


def test_limits_hold_over_a_restart(
    tmp_path: Path, new_settings: Callable[..., ProviderSettings]
) -> None:
    settings, clock = new_settings(usd_per_day=10), Clock()
    first = Ledger(tmp_path / "ledger.db", now_s=clock)
    launch(first, settings, "n-1")
    clock.now_s += 5 * HOUR_S
    first.close()
    with pytest.raises(BudgetExceededError, match=r"over the limit of 10 \$/day"):
        launch(Ledger(tmp_path / "ledger.db", now_s=clock), settings, "n-2")


def test_a_limit_that_is_reached_ends_no_node(
    tmp_path: Path, new_settings: Callable[..., ProviderSettings]
) -> None:
    settings, clock = new_settings(usd_per_day=10), Clock()
    ledger = Ledger(tmp_path / "ledger.db", now_s=clock)
    launch(ledger, settings, "n-1")
    clock.now_s += 8 * HOUR_S
    with pytest.raises(BudgetExceededError):
        launch(ledger, settings, "n-2")
    assert [node.node_id for node in ledger.list_open()] == ["n-1"]


def test_a_node_of_unknown_price_stops_launches_until_its_type_has_a_price(
    tmp_path: Path, new_settings: Callable[..., ProviderSettings]
) -> None:
    settings, clock = new_settings(usd_per_day=10), Clock()
    ledger = Ledger(tmp_path / "ledger.db", now_s=clock)
    hidden = replace(INTENT, node_type=NodeTypeName("old_gpu"), usd_per_hour=None)
    ledger.open_intents([hidden], owner="me", check=lambda _books: None)
    clock.now_s += 60
    assert ledger.accrued_usd(NOON_S, clock.now_s) is None
    with pytest.raises(BudgetExceededError, match=r"give its type a price in provider\.node_types"):
        launch(ledger, settings, "n-2")
    ledger.set_missing_prices({NodeTypeName("old_gpu"): Decimal(3), INTENT.node_type: Decimal(9)})
    launch(ledger, settings, "n-2")
    assert [node.usd_per_hour for node in ledger.list_open()] == [Decimal(3), Decimal(2)]


def test_settings_reach_decisions_as_exact_decimals(
    new_settings: Callable[..., ProviderSettings],
) -> None:
    limits = money_limits(new_settings(soft_ratio=0.8, usd_per_day=0.1).limits)
    assert (limits.soft_ratio, limits.usd_per_day) == (Decimal("0.8"), Decimal("0.1"))
