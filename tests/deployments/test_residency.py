"""Residency: a class can only tighten, and only residency makes permits."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.refusals import InvalidRequestError, NotAllowedError
from deployments.residency import (
    Clearance,
    DataClass,
    Permit,
    decide_class,
    filter_allowed,
    grant_permit,
    parse_data_class,
)

CLASSES = list(DataClass)


@dataclasses.dataclass(frozen=True)
class Place:
    owned: bool


def clearance(data_class: DataClass, *, may_burst: bool = True) -> Clearance:
    return Clearance("request-1", data_class, may_burst, "0" * 64)


@given(st.sampled_from(CLASSES), st.none() | st.sampled_from(CLASSES))
def test_a_stated_class_never_loosens_the_keys(key: DataClass, stated: DataClass | None) -> None:
    decided = decide_class(key, stated)
    assert CLASSES.index(decided) >= CLASSES.index(key)
    assert decided in {key, stated}


def test_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="must be one of public, internal, restricted"):
        parse_data_class("Restricted")


@given(
    data_class=st.sampled_from(CLASSES),
    may_burst=st.booleans(),
    places=st.lists(st.builds(Place, owned=st.booleans())),
)
def test_a_place_is_allowed_exactly_when_a_permit_for_it_is_granted(
    data_class: DataClass, *, may_burst: bool, places: list[Place]
) -> None:
    request = clearance(data_class, may_burst=may_burst)
    allowed = filter_allowed(places, may_leave_owned=request.may_leave_owned)
    for place in places:
        if place in allowed:
            permit = grant_permit(request, site="s", is_owned=place.owned)
            assert (permit.request_id, permit.is_owned) == ("request-1", place.owned)
        else:
            with pytest.raises(NotAllowedError, match="must stay on owned sites"):
                grant_permit(request, site="s", is_owned=place.owned)


@pytest.mark.parametrize("may_burst", [True, False])
def test_restricted_data_never_leaves_owned_sites(*, may_burst: bool) -> None:
    request = clearance(DataClass.RESTRICTED, may_burst=may_burst)
    assert not request.may_leave_owned
    assert filter_allowed([Place(owned=False)], may_leave_owned=request.may_leave_owned) == ()


def test_a_key_that_may_not_burst_stays_on_owned_sites_whatever_its_class() -> None:
    assert not clearance(DataClass.PUBLIC, may_burst=False).may_leave_owned


def test_nobody_but_residency_makes_a_permit() -> None:
    with pytest.raises(TypeError, match="comes from residency"):
        Permit(clearance(DataClass.PUBLIC), site="cloud", is_owned=False)


def test_a_permit_cannot_be_turned_into_one_for_another_site() -> None:
    permit = grant_permit(clearance(DataClass.RESTRICTED), site="onprem", is_owned=True)
    with pytest.raises(AttributeError, match="can't be changed"):
        permit.site = "cloud"
