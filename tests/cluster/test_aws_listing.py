"""How far EC2's listings are believed: the rule stands in cluster/backends/aws_listing.py."""

from dataclasses import replace

from cluster.backends.aws_listing import Ec2Instance, Sightings
from cluster.backends.aws_tags import render_tags
from tests.cluster.aws_rig import build_aws_spec

ONE = Ec2Instance(
    instance_id="i-1",
    state="running",
    tags=render_tags(build_aws_spec()),
    instance_type="g6.2xlarge",
    zone="us-east-1a",
    image="ami-1",
    address="10.0.0.1",
    launched_s=1.0,
)
TWO = replace(ONE, instance_id="i-2")


def list_ids(sightings: Sightings, answered: list[Ec2Instance], now_s: float) -> dict[str, bool]:
    """Return the ids that count as there, each with whether it is silent."""
    believed = sightings.take_listing(answered, now_s=now_s)
    return {one.found.instance_id: one.is_silent for one in believed}


def test_an_instance_that_is_missing_counts_as_there_for_three_listings_and_the_settle_time() -> (
    None
):
    sightings = Sightings(settle_s=60)
    assert list_ids(sightings, [ONE, TWO], 0) == {"i-1": False, "i-2": False}
    assert list_ids(sightings, [TWO], 10) == {"i-1": True, "i-2": False}
    assert list_ids(sightings, [TWO], 20) == {"i-1": True, "i-2": False}
    # Three listings, but only 59 s.
    assert list_ids(sightings, [TWO], 69) == {"i-1": True, "i-2": False}
    assert list_ids(sightings, [TWO], 70) == {"i-2": False}


def test_two_listings_are_not_enough_however_long_they_are_apart() -> None:
    sightings = Sightings(settle_s=60)
    list_ids(sightings, [ONE], 0)
    assert list_ids(sightings, [], 10) == {"i-1": True}
    assert list_ids(sightings, [], 1000) == {"i-1": True}
    assert list_ids(sightings, [], 1001) == {}


def test_an_instance_that_comes_back_is_missing_from_the_beginning_next_time() -> None:
    sightings = Sightings(settle_s=0)
    for now_s, answered in enumerate([[ONE], [], [], [ONE], [], []]):
        assert "i-1" in list_ids(sightings, answered, now_s)
    assert list_ids(sightings, [], 6) == {}


def test_an_instance_that_is_said_to_end_is_gone_at_once_and_for_good() -> None:
    """An old listing that still shows it running doesn't bring it back."""
    sightings = Sightings(settle_s=60)
    list_ids(sightings, [ONE], 0)
    assert list_ids(sightings, [replace(ONE, state="shutting-down")], 1) == {}
    assert list_ids(sightings, [ONE], 2) == {}


def test_an_instance_whose_end_was_accepted_is_gone_though_listings_lag() -> None:
    sightings = Sightings(settle_s=60)
    list_ids(sightings, [ONE, TWO], 0)
    sightings.note_ended(["i-1"], now_s=1)
    assert list_ids(sightings, [ONE, TWO], 2) == {"i-2": False}


def test_an_instance_just_launched_is_there_before_any_listing_holds_it() -> None:
    sightings = Sightings(settle_s=60)
    sightings.note(ONE)
    assert list_ids(sightings, [], 0) == {"i-1": True}
    assert list_ids(sightings, [ONE], 1) == {"i-1": False}
