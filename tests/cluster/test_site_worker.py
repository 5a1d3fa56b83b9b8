"""A site's steps, made one by one in simulated time: no thread, no waiting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.backends.fake import FakeBackend
from cluster.errors import BackendError, CredentialsError, NoCapacityError
from cluster.ledger import Intent, Ledger
from cluster.model import (
    BootStage,
    Instance,
    LaunchSpec,
    NodeId,
    NodePhase,
    NodeRecord,
    SiteName,
    SoldOut,
)
from cluster.owner import open_owner
from cluster.site_reconcile import Clock, Conduct, Reconciler
from cluster.site_worker import Launch, SetTags, SiteWorker, Terminate

SITE = SiteName("cloud")
JOIN_S_MAX = 900.0


class CloudBackend(FakeBackend):
    """A fake site that knows prices' beginnings, sells out and falls silent."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(now_s=clock, settle_s=30)
        self.is_silent = False
        self.rows: list[SoldOut] = []
        self.recalled: list[Sequence[SoldOut]] = []

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        return self.rows

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        self.recalled.append(known)

    def list_instances(self) -> list[Instance]:
        return [
            replace(one, launched_s=900.0, offering="g6 in a", is_silent=self.is_silent)
            for one in super().list_instances()
        ]


@dataclass
class Bench:
    """One site, its ledger and its clock. `wall_off_s` moves the wall clock alone."""

    folder: Path
    clock: Any
    new_spec: Callable[..., LaunchSpec]
    wall_off_s: float = 0.0
    is_leader: bool = True
    backend: CloudBackend = field(init=False)
    ledger: Ledger = field(init=False)
    worker: SiteWorker = field(init=False)

    def __post_init__(self) -> None:
        self.backend = CloudBackend(self.clock)
        self.ledger = Ledger(self.folder / "ledger.db", now_s=self.wall_s)
        self.restart()

    def wall_s(self) -> float:
        return self.clock.now_s + self.wall_off_s

    def restart(self, *, is_operator: bool = False) -> None:
        self.owner = open_owner()
        clock = Clock(wall_s=self.wall_s, ticks_s=self.clock)
        conduct = Conduct(self.owner, is_operator=is_operator, may_act=lambda: self.is_leader)
        reconciler = Reconciler(
            SITE,
            ledger=self.ledger,
            conduct=conduct,
            price_of=lambda _type: Decimal(2),
            join_s_max=JOIN_S_MAX,
            clock=clock,
        )
        self.worker = SiteWorker(
            SITE,
            backend=self.backend,
            ledger=self.ledger,
            reconciler=reconciler,
            conduct=conduct,
            clock=clock,
        )
        self.worker.look()

    def intend(self, node_id: str = "n-1") -> Launch:
        spec = self.new_spec(node_id)
        intent = Intent(
            node_id=spec.node_id,
            site=SITE,
            node_type=spec.node_type,
            is_head=False,
            usd_per_hour=Decimal(2),
            tags=spec.tags,
            node_config=spec.node_config,
        )
        self.ledger.open_intents([intent], owner=self.owner, check=lambda _books: None)
        return Launch(spec)

    def launch(self, node_id: str = "n-1") -> NodeRecord:
        self.worker.perform(self.intend(node_id))
        self.pass_s(1)
        return self.ledger.get(NodeId(node_id))

    def pass_s(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.worker.look()

    def record(self, node_id: str = "n-1") -> NodeRecord:
        return self.ledger.get(NodeId(node_id))

    def calls(self, name: str) -> int:
        return [one.name for one in self.backend.calls].count(name)


@pytest.fixture
def bench(tmp_path: Path, clock: Any, new_spec: Callable[..., LaunchSpec]) -> Bench:
    return Bench(tmp_path, clock, new_spec)


def test_a_running_node_gets_its_price_begin_its_offering_and_three_boot_stages(
    bench: Bench,
) -> None:
    record = bench.launch()
    assert (record.launched_s, record.offering) == (900.0, "g6 in a")
    stages = list(bench.ledger.boot_stages(record.node_id))
    assert stages == [BootStage.INTENDED, BootStage.ACCEPTED, BootStage.RUNNING]


def test_a_sold_out_type_is_held_until_its_site_may_be_asked_again(bench: Bench) -> None:
    bench.backend.fail_next("launch", NoCapacityError("none in zone a", retry_s=180))
    record = bench.launch()
    assert record.closed_why == "no capacity: none in zone a"
    (hold,) = bench.ledger.list_holds()
    assert (hold.node_type, hold.until_s, hold.why) == ("cloud_gpu", 1180.0, "none in zone a")
    assert bench.ledger.accrued_usd(0, 10_000) == 0
    bench.clock.now_s += 180
    assert bench.ledger.list_holds() == []


def test_what_is_sold_out_is_written_when_it_changes_and_given_back_at_the_next_start(
    bench: Bench,
) -> None:
    row = SoldOut(SITE, "g6.xlarge", "a", "spot", "InsufficientInstanceCapacity", 2000.0)
    bench.backend.rows = [row]
    bench.pass_s(1)
    assert bench.ledger.list_sold_out() == [row]
    bench.restart()
    assert bench.backend.recalled == [(), (row,)]


def test_refused_credentials_freeze_launches_and_are_logged_once_until_new_ones_work(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        bench.backend.fail_next("list_instances", CredentialsError("the token has expired"))
    for _ in range(4):
        bench.pass_s(1)
    record = bench.launch()
    assert record.closed_why == "launch failed: the token has expired"
    assert bench.calls("launch") == 0
    assert [one.why for one in bench.ledger.list_holds()] == ["the token has expired"]
    (listing,) = bench.ledger.list_listings()
    assert listing.error_kind == "CredentialsError"
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "site cloud: the token has expired"
    ]
    bench.pass_s(1)
    assert bench.ledger.list_holds() == []
    assert bench.launch("n-2").phase is NodePhase.RUNNING


def test_a_failed_launch_is_charged_until_its_site_can_be_believed_to_have_none(
    bench: Bench,
) -> None:
    """Whether it took effect is unknown: 30 s settle before the node counts as never there."""
    bench.backend.fail_next("launch", BackendError("connection reset"))
    assert bench.launch().phase is NodePhase.TERMINATING
    bench.pass_s(28)
    assert bench.record().phase is NodePhase.TERMINATING
    bench.pass_s(2)
    assert bench.record().closed_why == "launch failed: connection reset"


def test_a_node_that_does_not_join_in_time_is_ended_with_the_reason(bench: Bench) -> None:
    bench.launch()
    bench.pass_s(JOIN_S_MAX - 10)
    assert bench.record().phase is NodePhase.RUNNING
    bench.pass_s(20)
    bench.pass_s(1)
    assert bench.record().closed_why == "not joined within 900 s"
    assert bench.backend.list_instances() == []


@pytest.mark.parametrize("sign", ["tag", "stage"])
def test_a_node_that_has_joined_is_never_late(bench: Bench, sign: str) -> None:
    node_id = bench.launch().node_id
    if sign == "tag":
        bench.ledger.merge_tags(node_id, {"ray-node-status": "up-to-date"})
    else:
        bench.ledger.note_boot_stage(node_id, BootStage.JOINED, 1000.0)
    bench.pass_s(2 * JOIN_S_MAX)
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.RUNNING


def test_a_wall_clock_that_jumps_neither_ends_a_booting_node_nor_closes_an_unlisted_one(
    bench: Bench,
) -> None:
    bench.backend._list_lag_s = 20
    bench.launch()
    bench.wall_off_s = 3600
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.LAUNCHED
    bench.pass_s(20)
    assert bench.record().phase is NodePhase.RUNNING
    bench.restart()
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.RUNNING
    bench.wall_off_s = -7200
    bench.backend.stop_instance(NodeId("n-1"))
    bench.pass_s(1)
    bench.pass_s(1)
    assert bench.record().closed_why == "gone from its site"


def test_one_listing_that_misses_a_running_node_does_not_close_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.launch()
    with monkeypatch.context() as patched:
        patched.setattr(bench.backend, "list_instances", list)
        bench.pass_s(1)
    bench.pass_s(1)
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.RUNNING


def test_a_site_that_could_not_ask_a_node_changes_nothing_about_it(bench: Bench) -> None:
    bench.launch()
    bench.backend.is_silent = True
    bench.ledger.mark_terminating(NodeId("n-1"), owner=bench.owner)
    bench.pass_s(60)
    assert bench.record().phase is NodePhase.TERMINATING
    assert bench.calls("terminate") == 0
    assert bench.worker.silent == {"n-1"}
    bench.backend.is_silent = False
    bench.pass_s(1)
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.CLOSED


def test_without_the_lease_nothing_is_asked_of_the_site(bench: Bench) -> None:
    order = bench.intend()
    bench.is_leader = False
    before = len(bench.backend.calls)
    bench.worker.perform(order)
    bench.worker.perform(Terminate((NodeId("n-1"),)))
    bench.worker.perform(SetTags(NodeId("n-1"), {"a": "b"}))
    assert not bench.worker.look()
    assert len(bench.backend.calls) == before
    assert bench.record().phase is NodePhase.CLOSED


def test_several_tags_of_a_node_reach_its_site_in_one_call(bench: Bench) -> None:
    bench.launch()
    for status in ("syncing-files", "setting-up", "up-to-date"):
        bench.worker.perform(SetTags(NodeId("n-1"), {"ray-node-status": status}))
    bench.pass_s(1)
    assert bench.calls("set_tags") == 1
    (instance,) = bench.backend.list_instances()
    assert instance.spec.tags["ray-node-status"] == "up-to-date"
    assert not bench.worker.has_unsent_tags


def test_an_end_ordered_by_an_autoscaler_that_lost_its_lease_is_carried_out_by_the_next(
    bench: Bench,
) -> None:
    """Its process lives on, so after 30 s somebody else must do it. Ending twice does no harm."""
    bench.launch()
    bench.ledger.mark_terminating(NodeId("n-1"), owner=open_owner())
    bench.pass_s(29)
    assert bench.calls("terminate") == 0
    bench.pass_s(2)
    bench.pass_s(1)
    assert bench.record().phase is NodePhase.CLOSED
