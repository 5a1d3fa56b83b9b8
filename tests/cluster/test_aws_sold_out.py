"""What a refusal rules out, and for how long."""

import pytest

from cluster.backends.sold_out import Offering, SoldOutCache, list_affected
from cluster.model import SiteName

A1, A2 = Offering("g6", "a", "spot"), Offering("g5", "a", "spot")
B1, B2 = Offering("g6", "b", "spot"), Offering("g5", "b", "spot")
PAID = Offering("g6", "a", "on_demand")
KNOWN = [A1, B1, A2, B2, PAID]


@pytest.mark.parametrize(
    ("code", "affected"),
    [
        ("InsufficientInstanceCapacity", [A1]),
        ("UnfulfillableCapacity", [A1]),
        ("Unsupported", [A1]),
        ("ReservationCapacityExceeded", [A1]),
        ("VcpuLimitExceeded", [A1, B1]),
        ("MaxSpotInstanceCountExceeded", [A1, B1, A2, B2]),
        ("InsufficientFreeAddressesInSubnet", [A1, A2, PAID]),
    ],
)
def test_a_refusal_rules_out_what_its_code_speaks_of(code: str, affected: list[Offering]) -> None:
    assert list_affected(code, A1, KNOWN) == affected


def test_an_offering_is_asked_for_again_when_its_time_is_over() -> None:
    cache = SoldOutCache(SiteName("cloud"), keep_s=180)
    cache.mark([A1], code="Unsupported", now_s=1000)
    assert cache.until_s(A1, now_s=1179) == 1180
    assert cache.until_s(A1, now_s=1180) is None
    assert cache.until_s(B1, now_s=1000) is None
    assert [row.code for row in cache.list_rows(now_s=1000)] == ["Unsupported"]
    assert cache.list_rows(now_s=1180) == ()


def test_what_an_earlier_process_learned_counts_until_its_own_time_and_never_longer() -> None:
    """A row until 1100 stays so; one until 9999 (a wrong clock) is cut to 1000 + 180."""
    first = SoldOutCache(SiteName("cloud"), keep_s=180)
    first.mark([A1], code="x", now_s=920)
    first.mark([B1], code="x", now_s=9819)
    second = SoldOutCache(SiteName("cloud"), keep_s=180)
    second.recall(first.list_rows(now_s=1000), now_s=1000)
    assert second.until_s(A1, now_s=1000) == 1100
    assert second.until_s(B1, now_s=1000) == 1180
    other = SoldOutCache(SiteName("elsewhere"), keep_s=180)
    other.recall(first.list_rows(now_s=1000), now_s=1000)
    assert other.list_rows(now_s=1000) == ()
