"""What the metadata client makes of a service that is healthy, silent, broken or skewed."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from cluster.errors import BackendError
from cluster.imds import MetadataService
from tests.cluster.fake_imds import FakeImds, run_fake_imds

NOW_S = 1_800_000_000.0


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    with run_fake_imds() as service:
        yield service


@pytest.fixture
def metadata(imds: FakeImds) -> MetadataService:
    return MetadataService(imds.endpoint, now_s=lambda: NOW_S)


def at(offset_s: float) -> str:
    return datetime.fromtimestamp(NOW_S + offset_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_nothing_is_announced_while_the_service_says_404(metadata: MetadataService) -> None:
    assert metadata.find_interruption() is None
    assert metadata.has_rebalance_advice() is False


def test_an_interruption_is_so_many_seconds_away(imds: FakeImds, metadata: MetadataService) -> None:
    imds.announce(at(110))
    assert metadata.find_interruption() == 110


@pytest.mark.parametrize(
    ("offset_s", "left_s"), [(600, 120), (-600, 0)], ids=["clock behind", "clock ahead"]
)
def test_a_skewed_clock_never_gives_more_than_two_minutes_nor_less_than_none(
    imds: FakeImds, metadata: MetadataService, offset_s: float, left_s: float
) -> None:
    imds.announce(at(offset_s))
    assert metadata.find_interruption() == left_s


def test_the_services_own_clock_corrects_a_machine_that_is_ten_minutes_ahead(
    imds: FakeImds, metadata: MetadataService
) -> None:
    """The notice is for 9 min 0 s ago here; by the service's clock it is 60 s away."""
    imds.date_s = NOW_S - 600
    imds.announce(at(-540))
    assert metadata.find_interruption() == 60


@pytest.mark.parametrize("body", ["", "soon", "[]", '{"action": "terminate"}'])
def test_a_notice_nobody_can_read_still_is_one(
    imds: FakeImds, metadata: MetadataService, body: str
) -> None:
    imds.answers["/latest/meta-data/spot/instance-action"] = body
    assert metadata.find_interruption() == 120


def test_an_action_that_leaves_the_machine_running_is_no_interruption(
    imds: FakeImds, metadata: MetadataService
) -> None:
    imds.announce(at(60), action="noop")
    assert metadata.find_interruption() is None


def test_the_token_is_kept_and_fetched_anew_when_it_is_refused(
    imds: FakeImds, metadata: MetadataService
) -> None:
    imds.advise()
    assert [metadata.has_rebalance_advice() for _ in range(3)] == [True, True, True]
    assert imds.tokens == 1
    imds.tokens = 7
    assert metadata.has_rebalance_advice() is True
    assert imds.tokens == 8


def test_a_service_that_is_down_or_broken_is_an_error_that_names_it(imds: FakeImds) -> None:
    gone = MetadataService("http://127.0.0.1:9", now_s=lambda: NOW_S)
    with pytest.raises(BackendError, match="127\\.0\\.0\\.1:9 must answer"):
        gone.find_interruption()
    imds.status = 503
    with pytest.raises(BackendError, match="got 503"):
        MetadataService(imds.endpoint, now_s=lambda: NOW_S).find_interruption()


def test_the_environment_names_the_service_or_forbids_to_ask_it(imds: FakeImds) -> None:
    environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.endpoint}
    metadata = MetadataService.from_environment(environment, now_s=lambda: NOW_S)
    assert metadata is not None
    assert metadata.find_interruption() is None
    assert imds.asked == ["/latest/meta-data/spot/instance-action"]
    off = environment | {"AWS_EC2_METADATA_DISABLED": "true"}
    assert MetadataService.from_environment(off, now_s=lambda: NOW_S) is None
