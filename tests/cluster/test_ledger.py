import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.errors import CredentialsError, NodeNotFoundError, SiteFullError, StateError
from cluster.ledger import Books, Intent, Ledger
from cluster.ledger_sites import Hold, Listing
from cluster.model import (
    BootStage,
    Cordon,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    NodePhase,
    NodeTypeName,
    SiteName,
    SoldOut,
)
from tests.cluster.ledger_places import LedgerPlace

INTENT = Intent(
    node_id=NodeId("n-1"),
    site=SiteName("cloud"),
    node_type=NodeTypeName("cloud_gpu"),
    is_head=False,
    usd_per_hour=Decimal("1.861"),
    tags={"ray-launch-request": "r1"},
    node_config={"a": [1]},
)


def accept_all(_books: Books) -> None:
    return None


@pytest.fixture
def ledger(ledger_place: LedgerPlace) -> Ledger:
    return ledger_place.open()


def test_an_intent_survives_the_process_that_wrote_it(ledger_place: LedgerPlace) -> None:
    first = ledger_place.open()
    first.open_intents([INTENT], owner="me", check=accept_all)
    first.merge_tags(INTENT.node_id, {"ray-node-status": "up-to-date"})
    first.close()
    (record,) = ledger_place.open().list_open()
    assert (record.node_id, record.phase) == ("n-1", NodePhase.INTENDED)
    assert record.usd_per_hour == Decimal("1.861")
    assert record.tags == {"ray-launch-request": "r1", "ray-node-status": "up-to-date"}


def test_intents_are_written_all_or_none(ledger: Ledger) -> None:
    def refuse(_books: Books) -> None:
        raise SiteFullError("full")

    with pytest.raises(SiteFullError):
        ledger.open_intents([INTENT], owner="me", check=refuse)
    assert ledger.list_open() == []


def test_two_launches_at_once_cannot_both_take_the_last_room(ledger_place: LedgerPlace) -> None:
    """Eight threads, each with a ledger of its own, ask for one of three places."""

    def check(books: Books) -> None:
        if len(books.open_nodes) >= 3:
            raise SiteFullError("full")

    def launch(number: int) -> None:
        ledger = ledger_place.open()
        intent = replace(INTENT, node_id=NodeId(f"n-{number}"))
        while True:
            try:
                ledger.open_intents([intent], owner="me", check=check)
            except SiteFullError:
                refused.append(number)
            except StateError:
                # A crowded machine held a thread up inside its transaction: it asks again.
                continue
            return

    refused: list[int] = []
    threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert len(ledger_place.open().list_open()) == 3


def test_an_unknown_node_is_an_error_that_names_it(ledger: Ledger) -> None:
    with pytest.raises(NodeNotFoundError, match="'n-9' must be a node of this cluster"):
        ledger.get(NodeId("n-9"))


def test_a_damaged_ledger_is_an_error_and_never_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all, but long enough to be read")
    with pytest.raises(StateError, match="must be a usable ledger; got: file is not a database"):
        Ledger(tmp_path / "ledger.db")


def test_a_reader_sees_what_others_write_and_writes_nothing(ledger_place: LedgerPlace) -> None:
    writer = ledger_place.open()
    reader = ledger_place.open(reads_only=True)
    writer.open_intents([INTENT], owner="me", check=accept_all)
    assert [node.node_id for node in reader.list_open()] == ["n-1"]
    with pytest.raises(StateError, match=r"read-?only"):
        reader.mark_launched(INTENT.node_id)
    assert writer.get(INTENT.node_id).phase is NodePhase.INTENDED


def test_a_reader_of_a_place_without_a_ledger_is_told_what_to_do(
    ledger_place: LedgerPlace,
) -> None:
    with pytest.raises(StateError, match="`ray up`"):
        ledger_place.open(reads_only=True)


def test_a_node_is_charged_from_its_launch_to_its_end(ledger_place: LedgerPlace) -> None:
    """Intended at 1,000 s, charged by its site from 1,400 s to 5,000 s: one hour at 1.861 $/h."""
    ledger = ledger_place.open()
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger.mark_running(INTENT.node_id, address="a", launched_s=1400.0, offering="g6 in a")
    ledger.mark_running(INTENT.node_id, address="b")
    ledger.mark_running(INTENT.node_id, address="b", launched_s=1500.0)
    ledger_place.now_s = 6000.0
    ledger.mark_closed(INTENT.node_id, why="terminated", ended_s=5000.0)
    assert ledger.accrued_usd(0.0, 1e9) == Decimal("1.861")
    record = ledger.get(INTENT.node_id)
    assert (record.launched_s, record.ended_s, record.offering) == (1400.0, 5000.0, "g6 in a")


def test_a_closed_node_stays_as_it_was_when_it_closed(ledger: Ledger) -> None:
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger.mark_closed(INTENT.node_id, why="no capacity: none left", never_ran=True)
    before = ledger.get(INTENT.node_id)
    ledger.mark_running(INTENT.node_id, address="a", launched_s=1400.0, offering="g6 in a")
    assert ledger.get(INTENT.node_id) == before


def test_a_node_whose_site_says_nothing_is_charged_from_its_intent_up_to_now(
    ledger_place: LedgerPlace,
) -> None:
    ledger = ledger_place.open()
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger_place.now_s = 1000.0 + 7200.0
    assert ledger.accrued_usd(0.0, 1e9) == Decimal("3.722")
    assert ledger.spend_by_site(0.0, 1e9) == {"cloud": Decimal("3.722")}


def test_a_node_that_never_ran_costs_nothing(ledger_place: LedgerPlace) -> None:
    ledger = ledger_place.open()
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger_place.now_s = 5000.0
    ledger.mark_closed(INTENT.node_id, why="no capacity", never_ran=True)
    assert ledger.accrued_usd(0.0, 1e9) == 0


def test_a_node_is_committed_from_its_intent_until_it_is_closed(ledger: Ledger) -> None:
    committed = []
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    committed.append(len(ledger.spend_now().commitments))
    ledger.mark_launched(INTENT.node_id)
    committed.append(len(ledger.spend_now().commitments))
    ledger.mark_terminating(INTENT.node_id, owner="me")
    committed.append(len(ledger.spend_now().commitments))
    ledger.mark_closed(INTENT.node_id, why="terminated")
    assert committed == [1, 1, 1]
    assert ledger.spend_now().commitments == ()


def test_a_clock_that_steps_back_makes_no_money(ledger_place: LedgerPlace) -> None:
    ledger = ledger_place.open()
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger_place.now_s = 10.0
    spend = ledger.spend_now()
    assert (spend.day_usd, spend.month_usd) == (0, 0)
    assert [one.usd_per_hour for one in spend.commitments] == [Decimal("1.861")]


def test_an_adopted_node_is_charged_from_when_its_site_launched_it(
    ledger_place: LedgerPlace, new_spec: Callable[..., LaunchSpec]
) -> None:
    ledger = ledger_place.open()
    found = Instance(
        new_spec("n-7"),
        InstanceState.RUNNING,
        launched_s=400.0,
        offering="host-3",
        cordon=Cordon.DRAINING,
    )
    ledger.adopt(found, usd_per_hour=Decimal(6), owner="me")
    assert ledger.accrued_usd(0.0, 1e9) == Decimal(1)
    record = ledger.get(NodeId("n-7"))
    assert (record.offering, record.cordon) == ("host-3", Cordon.DRAINING)


def test_a_cordon_is_remembered_until_it_is_taken_off(ledger: Ledger) -> None:
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    for cordon in (Cordon.CORDONED, Cordon.DRAINING, None):
        ledger.set_cordon(INTENT.node_id, cordon)
        assert ledger.get(INTENT.node_id).cordon is cordon


def test_boot_stages_keep_the_time_they_were_first_reached(ledger_place: LedgerPlace) -> None:
    ledger = ledger_place.open()
    ledger.open_intents([INTENT], owner="me", check=accept_all)
    ledger_place.now_s = 1001.0
    ledger.mark_launched(INTENT.node_id)
    ledger_place.now_s = 1030.0
    ledger.mark_running(INTENT.node_id, address="a")
    ledger.note_boot_stage(INTENT.node_id, BootStage.JOINED, 1090.0)
    ledger.note_boot_stage(INTENT.node_id, BootStage.JOINED, 2000.0)
    assert ledger.boot_stages(INTENT.node_id) == {
        BootStage.INTENDED: 1000.0,
        BootStage.ACCEPTED: 1001.0,
        BootStage.RUNNING: 1030.0,
        BootStage.JOINED: 1090.0,
    }
    latest = ledger.list_boot_records(since_s=1030.0)
    assert [(one.node_type, one.site, one.stage, one.at_s) for one in latest] == [
        ("cloud_gpu", "cloud", BootStage.RUNNING, 1030.0),
        ("cloud_gpu", "cloud", BootStage.JOINED, 1090.0),
    ]


SOLD_OUT = SoldOut(
    site=SiteName("cloud"),
    instance_type="g6.2xlarge",
    zone="us-east-1a",
    market="spot",
    code="InsufficientInstanceCapacity",
    until_s=1180.0,
)


def test_sold_out_offerings_outlive_the_process_and_end_by_themselves(
    ledger_place: LedgerPlace,
) -> None:
    other = replace(SOLD_OUT, zone="us-east-1b", until_s=2000.0)
    ledger_place.open().replace_sold_out(SiteName("cloud"), [other, SOLD_OUT])
    ledger = ledger_place.open()
    assert ledger.list_sold_out() == [SOLD_OUT, other]
    ledger_place.now_s = 1180.0
    assert ledger.list_sold_out() == [other]


def test_one_sites_sold_out_offerings_replace_only_its_own(ledger: Ledger) -> None:
    elsewhere = replace(SOLD_OUT, site=SiteName("west"))
    ledger.replace_sold_out(SiteName("cloud"), [SOLD_OUT])
    ledger.replace_sold_out(SiteName("west"), [elsewhere])
    ledger.replace_sold_out(SiteName("cloud"), [])
    assert ledger.list_sold_out() == [elsewhere]


def test_a_hold_lasts_until_its_time_or_until_it_is_lifted(ledger_place: LedgerPlace) -> None:
    ledger, cloud = ledger_place.open(), SiteName("cloud")
    ledger.hold_type(cloud, NodeTypeName("a"), 1100.0, "sold out")
    ledger.hold_type(cloud, NodeTypeName("b"), 1200.0, "sold out")
    ledger.hold_type(cloud, NodeTypeName("b"), 1300.0, "sold out again")
    assert [hold.node_type for hold in ledger.list_holds()] == ["a", "b"]
    ledger_place.now_s = 1250.0
    assert ledger.list_holds() == [Hold(cloud, NodeTypeName("b"), 1300.0, "sold out again")]
    ledger.lift_hold(cloud, NodeTypeName("b"))
    ledger.lift_hold(cloud, NodeTypeName("b"))
    assert ledger.list_holds() == []


def test_looks_at_a_site_keep_the_last_good_one_and_what_fails_now(ledger: Ledger) -> None:
    cloud = SiteName("cloud")
    assert ledger.list_listings() == []
    ledger.note_listing(cloud, 1000.0)
    ledger.note_listing(cloud, 1010.0, CredentialsError("expired"))
    assert ledger.list_listings() == [
        Listing(cloud, 1000.0, failed_s=1010.0, error="expired", error_kind="CredentialsError")
    ]
    ledger.note_listing(cloud, 1011.0)
    assert ledger.list_listings() == [Listing(cloud, 1011.0, failed_s=1010.0)]


def test_good_looks_every_second_are_written_every_five(ledger: Ledger) -> None:
    written = []
    for second in range(12):
        ledger.note_listing(SiteName("cloud"), 1000.0 + second)
        (listing,) = ledger.list_listings()
        written.append(listing.listed_s)
    assert sorted(set(written)) == [1000.0, 1005.0, 1010.0]


def test_a_look_after_the_clock_was_set_back_is_written(ledger: Ledger) -> None:
    ledger.note_listing(SiteName("cloud"), 1000.0)
    ledger.note_listing(SiteName("cloud"), 400.0)
    assert [one.listed_s for one in ledger.list_listings()] == [400.0]


class LedgerLife(RuleBasedStateMachine):
    """Any order of calls leaves the ledger with what a plain dictionary of phases would hold."""

    def __init__(self) -> None:
        super().__init__()
        # Each run has a file in memory of its own; the laws don't depend on where it is.
        self.clock_s = 0.0
        self.ledger = Ledger(Path(":memory:"), now_s=self._now_s)
        self.phases: dict[str, NodePhase] = {}

    def _now_s(self) -> float:
        self.clock_s += 1.0
        return self.clock_s

    @rule()
    def launch(self) -> None:
        node_id = NodeId(f"n-{len(self.phases)}")
        intent = replace(INTENT, node_id=node_id)
        self.ledger.open_intents([intent], owner="me", check=accept_all)
        self.phases[node_id] = NodePhase.INTENDED

    @rule(data=st.data(), asked=st.sampled_from(list(NodePhase)[1:]))
    def move(self, data: st.DataObject, asked: NodePhase) -> None:
        if not self.phases:
            return
        node_id = NodeId(data.draw(st.sampled_from(sorted(self.phases))))
        origins = {
            NodePhase.LAUNCHED: {NodePhase.INTENDED},
            NodePhase.RUNNING: {NodePhase.INTENDED, NodePhase.LAUNCHED},
            NodePhase.TERMINATING: set(NodePhase) - {NodePhase.CLOSED},
            NodePhase.CLOSED: set(NodePhase),
        }
        self._ask(node_id, asked)
        if self.phases[node_id] in origins[asked]:
            self.phases[node_id] = asked

    def _ask(self, node_id: NodeId, asked: NodePhase) -> None:
        if asked is NodePhase.LAUNCHED:
            self.ledger.mark_launched(node_id)
        elif asked is NodePhase.RUNNING:
            self.ledger.mark_running(node_id, address="a")
        elif asked is NodePhase.TERMINATING:
            self.ledger.mark_terminating(node_id, owner="me")
        else:
            self.ledger.mark_closed(node_id, why="test")

    @invariant()
    def open_nodes_are_those_not_closed(self) -> None:
        listed = {record.node_id: record.phase for record in self.ledger.list_open()}
        expected = {
            node_id: phase
            for node_id, phase in self.phases.items()
            if phase is not NodePhase.CLOSED
        }
        assert listed == expected

    @invariant()
    def a_closed_node_has_an_end_and_a_reason(self) -> None:
        for record in self.ledger.list_all():
            assert (record.closed_s is None) == (record.phase is not NodePhase.CLOSED)
            assert (record.closed_why is None) == (record.closed_s is None)

    def teardown(self) -> None:
        self.ledger.close()


TestLedgerLife = LedgerLife.TestCase
TestLedgerLife.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
