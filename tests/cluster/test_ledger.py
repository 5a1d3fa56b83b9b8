import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.errors import NodeNotFoundError, SiteFullError, StateError
from cluster.ledger import Books, Intent, Ledger
from cluster.model import NodeId, NodePhase, NodeTypeName, SiteName

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
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "state" / "ledger.db")
    yield opened
    opened.close()


def test_an_intent_survives_the_process_that_wrote_it(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.db")
    first.open_intents([INTENT], owner="me", check=accept_all)
    first.merge_tags(INTENT.node_id, {"ray-node-status": "up-to-date"})
    first.close()
    (record,) = Ledger(tmp_path / "ledger.db").list_open()
    assert (record.node_id, record.phase) == ("n-1", NodePhase.INTENDED)
    assert record.usd_per_hour == Decimal("1.861")
    assert record.tags == {"ray-launch-request": "r1", "ray-node-status": "up-to-date"}


def test_intents_are_written_all_or_none(ledger: Ledger) -> None:
    def refuse(_books: Books) -> None:
        raise SiteFullError("full")

    with pytest.raises(SiteFullError):
        ledger.open_intents([INTENT], owner="me", check=refuse)
    assert ledger.list_open() == []


def test_two_launches_at_once_cannot_both_take_the_last_room(tmp_path: Path) -> None:
    """Eight threads, each with a ledger of its own, ask for one of three places."""

    def check(books: Books) -> None:
        if len(books.open_nodes) >= 3:
            raise SiteFullError("full")

    def launch(number: int) -> None:
        ledger = Ledger(tmp_path / "ledger.db")
        try:
            intent = replace(INTENT, node_id=NodeId(f"n-{number}"))
            ledger.open_intents([intent], owner="me", check=check)
        except SiteFullError:
            refused.append(number)

    refused: list[int] = []
    threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert len(Ledger(tmp_path / "ledger.db").list_open()) == 3


def test_an_unknown_node_is_an_error_that_names_it(ledger: Ledger) -> None:
    with pytest.raises(NodeNotFoundError, match="'n-9' must be a node of this cluster"):
        ledger.get(NodeId("n-9"))


def test_a_damaged_ledger_is_an_error_and_never_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all, but long enough to be read")
    with pytest.raises(StateError, match="must be a usable ledger; got: file is not a database"):
        Ledger(tmp_path / "ledger.db")


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
