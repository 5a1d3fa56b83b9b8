"""Which offerings a cloud had none of, and until when they aren't asked for again. Pure.

An offering is an instance type in a zone on a market. What a refusal says about other offerings
depends on its code: an empty zone says nothing of its neighbour, a quota counts for the region.
Times are wall times, because what was learned outlives the process.

Source of codes and time: Karpenter, pkg/errors/errors.go and pkg/cache/cache.go (3 minutes).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.model import Market, SiteName, SoldOut

# This zone has none of this type on this market.
_OFFERING_CODES = {
    "InsufficientInstanceCapacity",
    "UnfulfillableCapacity",
    "Unsupported",
    "ReservationCapacityExceeded",
}
# The account's quota for the type's family is used up, in every zone of the region.
_TYPE_CODES = {"VcpuLimitExceeded", "InstanceLimitExceeded"}
# The account's quota for the market is used up, whatever the type.
_MARKET_CODES = {"MaxSpotInstanceCountExceeded", "MaxFleetCountExceeded"}
# The zone's subnet has no address left, whatever the type.
_ZONE_CODES = {"InsufficientFreeAddressesInSubnet"}

SOLD_OUT_CODES = frozenset(_OFFERING_CODES | _TYPE_CODES | _MARKET_CODES | _ZONE_CODES)


@dataclass(frozen=True, slots=True)
class Offering:
    """One thing that can be asked for."""

    instance_type: str
    zone: str
    market: Market

    def __str__(self) -> str:
        """Return it in words, as people see it."""
        return f"{self.instance_type} in {self.zone} ({self.market})"


def list_affected(code: str, refused: Offering, known: Iterable[Offering]) -> list[Offering]:
    """Return the offerings that a refusal of one of them rules out, itself included."""
    return [one for one in known if one == refused or _is_affected(code, refused, one)]


class SoldOutCache:
    """The refusals of one site. Each change replaces the whole table: readers need no lock."""

    def __init__(self, site: SiteName, *, keep_s: float) -> None:
        self._site = site
        self._keep_s = keep_s
        self._rows: dict[Offering, SoldOut] = {}

    def mark(self, offerings: Iterable[Offering], *, code: str, now_s: float) -> None:
        """Note that offerings were refused now."""
        until_s = now_s + self._keep_s
        fresh = {one: self._build_row(one, code, until_s) for one in offerings}
        self._rows = {**self._rows, **fresh}

    def recall(self, known: Sequence[SoldOut], *, now_s: float) -> None:
        """Take over what an earlier process had learned of this site.

        A time further off than one refusal lasts comes from a clock that was wrong, or from a
        longer setting: it is shortened.
        """
        latest_s = now_s + self._keep_s
        rows = {
            Offering(row.instance_type, row.zone, row.market): row
            for row in known
            if row.site == self._site
        }
        self._rows = {
            **{
                one: self._build_row(one, row.code, min(row.until_s, latest_s))
                for one, row in rows.items()
            },
            **self._rows,
        }

    def until_s(self, offering: Offering, *, now_s: float) -> float | None:
        """Return when the offering may be asked for again, None if it may be now."""
        row = self._rows.get(offering)
        return row.until_s if row is not None and row.until_s > now_s else None

    def list_rows(self, *, now_s: float) -> tuple[SoldOut, ...]:
        """Return what isn't asked for now, in a fixed order."""
        rows = [row for row in self._rows.values() if row.until_s > now_s]
        return tuple(sorted(rows, key=lambda row: (row.instance_type, row.zone, row.market)))

    def _build_row(self, offering: Offering, code: str, until_s: float) -> SoldOut:
        return SoldOut(
            site=self._site,
            instance_type=offering.instance_type,
            zone=offering.zone,
            market=offering.market,
            code=code,
            until_s=until_s,
        )


def _is_affected(code: str, refused: Offering, other: Offering) -> bool:
    if code in _ZONE_CODES:
        return other.zone == refused.zone
    if other.market != refused.market:
        return False
    if code in _TYPE_CODES:
        return other.instance_type == refused.instance_type
    return code in _MARKET_CODES
