"""The client's rate limit and its patience."""

from dataclasses import replace

import pytest

from cluster.backends.aws_client import CallLimits, Ec2Client, TokenBucket
from cluster.errors import BackendError, CredentialsError
from tests.cluster.aws_rig import QUICK, REGION, Ec2Rig
from tests.cluster.conftest import ManualClock


def test_a_bucket_lets_a_burst_of_twice_the_rate_through_and_then_the_rate() -> None:
    """At 2 calls/s: 4 at once, then one each half second; after 10 s of quiet 4 again."""
    clock = ManualClock()
    waits: list[float] = []

    def sleep(wait_s: float) -> None:
        waits.append(round(wait_s, 3))
        clock.now_s += wait_s

    bucket = TokenBucket(2.0, now_s=clock, sleep=sleep)
    for _ in range(6):
        bucket.take()
    assert waits == [0.5, 0.5]
    clock.now_s += 10
    for _ in range(5):
        bucket.take()
    assert waits == [0.5, 0.5, 0.5]


def test_those_who_wait_at_the_same_time_wait_one_after_another() -> None:
    waits: list[float] = []
    bucket = TokenBucket(2.0, now_s=ManualClock(), sleep=waits.append)
    for _ in range(7):
        bucket.take()
    assert waits == [0.5, 1.0, 1.5]


def test_a_call_by_default_ends_within_the_minute_that_a_backend_may_block() -> None:
    limits = CallLimits()
    assert limits.total_s + limits.connect_s + limits.read_s < 60


def test_no_try_begins_after_the_deadline(ec2: Ec2Rig) -> None:
    """Each try hangs for 0.5 s and 0.7 s are given: there is time for at most two."""
    ec2.faults.add("hang", seconds=3)
    limits = replace(QUICK, read_s=0.5, total_s=0.7, tries_max=50)
    client = Ec2Client(REGION, endpoint_url=ec2.faults.url, calls_per_s=100, limits=limits)
    with pytest.raises(BackendError, match="must answer describe_instances"):
        client.call("describe_instances")
    assert 1 <= len(ec2.faults.calls) <= 2


def test_calls_that_share_a_deadline_share_the_time(ec2: Ec2Rig) -> None:
    ec2.faults.add("throttle")
    client = Ec2Client(REGION, endpoint_url=ec2.faults.url, calls_per_s=100, limits=QUICK)
    with pytest.raises(BackendError):
        client.call("describe_instances", until_s=0.0)
    assert len(ec2.faults.calls) == 1


@pytest.mark.parametrize(
    "code", ["AuthFailure", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch"]
)
def test_what_speaks_of_credentials_is_told_as_such_and_not_tried_again(
    ec2: Ec2Rig, code: str
) -> None:
    ec2.faults.add("error", code=code, status=401)
    client = Ec2Client(REGION, endpoint_url=ec2.faults.url, calls_per_s=100, limits=QUICK)
    with pytest.raises(CredentialsError, match=code):
        client.call("describe_instances")
    assert len(ec2.faults.calls) == 1
