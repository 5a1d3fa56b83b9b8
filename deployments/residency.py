"""Where a request may go: decided from its data class and key, and proved by a permit.

Pure. This is the only module that can make a `Permit`; the one module that opens connections to
replicas demands one for the very request, class and site. A restricted request therefore has no
way to a site that isn't owned: it is offered none, and could open none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, Protocol, TypeVar

from deployments.refusals import InvalidRequestError, NotAllowedError

_MINT = object()


class DataClass(StrEnum):
    """How far a request's data may travel, least protected first."""

    PUBLIC = "public"
    INTERNAL = "internal"
    RESTRICTED = "restricted"


_STRICTNESS = {data_class: rank for rank, data_class in enumerate(DataClass)}


class Placed(Protocol):
    """Anything that stands on a site that is owned or not."""

    @property
    def owned(self) -> bool:
        """Whether the site is owned."""
        ...


PlacedT = TypeVar("PlacedT", bound=Placed)


@dataclass(frozen=True, slots=True)
class Clearance:
    """What one request may do: its class, its key's right to burst, and what it consists of."""

    request_id: str
    data_class: DataClass
    may_burst: bool
    body_sha256: str

    @property
    def may_leave_owned(self) -> bool:
        """Whether sites that aren't owned may answer."""
        return self.may_burst and self.data_class is not DataClass.RESTRICTED


class Permit:
    """The right to send one request's body to one site; made by `grant_permit` only."""

    __slots__ = ("body_sha256", "data_class", "is_owned", "request_id", "site")

    request_id: str
    data_class: DataClass
    body_sha256: str
    site: str
    is_owned: bool

    def __init__(
        self, clearance: Clearance, *, site: str, is_owned: bool, mint: object = None
    ) -> None:
        if mint is not _MINT:
            raise TypeError("A Permit comes from residency.grant_permit and nowhere else.")
        for name, value in (
            ("request_id", clearance.request_id),
            ("data_class", clearance.data_class),
            ("body_sha256", clearance.body_sha256),
            ("site", site),
            ("is_owned", is_owned),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A Permit can't be changed; {name} was to become {value!r}.")


def parse_data_class(text: str) -> DataClass:
    """The data class called `text`; an unknown name is refused, since a guess could loosen it."""
    try:
        return DataClass(text)
    except ValueError:
        raise InvalidRequestError(
            f"X-Data-Class must be one of {', '.join(DataClass)}.", "X-Data-Class", "unknown_class"
        ) from None


def decide_class(key_class: DataClass, stated: DataClass | None) -> DataClass:
    """The stricter of the key's class and the stated one: stating a class can only tighten."""
    if stated is None:
        return key_class
    return max(key_class, stated, key=_STRICTNESS.__getitem__)


def filter_allowed(places: Iterable[PlacedT], *, may_leave_owned: bool) -> tuple[PlacedT, ...]:
    """The places a request may use: all, or the owned ones."""
    return tuple(place for place in places if place.owned or may_leave_owned)


def grant_permit(clearance: Clearance, *, site: str, is_owned: bool) -> Permit:
    """The permit to send this request to `site`.

    Raises:
        NotAllowedError: the request may not leave owned sites and this one isn't owned.
    """
    if not is_owned and not clearance.may_leave_owned:
        raise NotAllowedError(
            f"{clearance.data_class.value} data of this key must stay on owned sites; "
            f"{site} is not owned.",
            code="site_not_allowed",
        )
    return Permit(clearance, site=site, is_owned=is_owned, mint=_MINT)
