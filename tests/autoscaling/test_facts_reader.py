"""What a tick learns from the ledger, and that a ledger which hangs or fails never holds it up."""

import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from autoscaling.facts import NodeFact, SiteFacts
from autoscaling.facts_reader import FactsReader
from autoscaling.guard import Held
from cluster.config import parse_cluster_config
from cluster.errors import CredentialsError, StateError
from cluster.ledger import Intent, Ledger
from cluster.model import Cordon, NodeId, NodeTypeName, SiteName
from cluster.notices import Notice

NOON_S = 1_799_928_000.0
CLOUD, GPU = SiteName("cloud"), NodeTypeName("cloud_gpu")


class Clock:
    def __init__(self) -> None:
        self.now_s = NOON_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db", now_s=clock)
    yield opened
    opened.close()


def read_with(ledger: Any, clock: Clock, content: dict[str, Any], **options: Any) -> FactsReader:
    settings = parse_cluster_config(content)
    notices = options.pop("notices", ())
    return FactsReader(
        lambda: settings,
        lambda: notices,
        open_ledger=lambda _: ledger,
        now_s=clock,
        **{"wait_s": 5.0, **options},
    )


def open_node(ledger: Ledger, name: str = "n") -> NodeId:
    intent = Intent(
        node_id=NodeId(name),
        site=CLOUD,
        node_type=GPU,
        is_head=False,
        usd_per_hour=Decimal("1.5"),
        tags={},
        node_config={},
    )
    ledger.open_intents([intent], owner="o", check=lambda _: None)
    return intent.node_id


def test_nodes_holds_notices_and_money_come_as_one_value(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    """Two hours at 1.5 USD are 3 of 3.5 USD a day: over the soft share of 0.8."""
    cluster_content["provider"]["limits"]["usd_per_day"] = 3.5
    node = open_node(ledger)
    ledger.set_cordon(node, Cordon.DRAINING)
    ledger.hold_type(CLOUD, GPU, NOON_S + 7380, "InsufficientInstanceCapacity")
    clock.now_s += 7200
    notices = (Notice("n", "abc", "interruption", NOON_S, 120.0),)
    facts = read_with(ledger, clock, cluster_content, notices=notices).read()
    assert facts.nodes == {"n": NodeFact(NOON_S, Cordon.DRAINING)}
    assert facts.noticed == {"n"}
    why = "is sold out until 14:03:00 UTC: InsufficientInstanceCapacity"
    assert facts.holds == {"cloud_gpu": Held("sold_out", why)}
    (warning,) = facts.warnings
    assert warning.startswith("usd_per_day is nearly reached: spent 3.00 $ of 3.5 $/day")


def test_a_site_that_does_not_know_our_credentials_is_asked_for_nothing(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    ledger.note_listing(CLOUD, NOON_S, CredentialsError("RequestExpired"))
    facts = read_with(ledger, clock, cluster_content).read()
    assert set(facts.holds) == {"cloud_gpu", "cloud_dear"}
    assert facts.holds["cloud_gpu"].limit == "credentials"
    assert "RequestExpired" in facts.holds["cloud_gpu"].text


class Stuck:
    """A ledger whose answers wait for an event, or fail."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None
        self.reads = 0

    def list_open(self) -> Any:
        self.reads += 1
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        return self.ledger.list_open()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)


def test_a_ledger_that_hangs_is_asked_once_and_costs_a_tick_its_bound_at_most(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    """Ten ticks over a minute: the last facts stay, their age is said, one read is under way."""
    open_node(ledger)
    stuck = Stuck(ledger)
    reader = read_with(stuck, clock, cluster_content, wait_s=0.05)
    while not reader.read().nodes:
        time.sleep(0.01)
    stuck.free.clear()
    before = stuck.reads
    began_s = time.monotonic()
    facts = SiteFacts()
    for _ in range(10):
        clock.now_s += 6
        facts = reader.read()
    assert time.monotonic() - began_s < 10 * 2
    assert stuck.reads - before == 1
    assert set(facts.nodes) == {"n"}
    assert facts.warnings == ("the ledger was last read 60 s ago: no answer yet",)
    stuck.free.set()
    while reader.read().warnings:
        time.sleep(0.01)


def test_a_ledger_that_fails_leaves_the_last_facts_and_says_why(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    stuck = Stuck(ledger)
    stuck.error = StateError("the file is gone")
    reader = read_with(stuck, clock, cluster_content)
    assert reader.read().warnings == ("the ledger hasn't been read yet: the file is gone",)
    stuck.error = None
    open_node(ledger)
    assert set(reader.read().nodes) == {"n"}
    stuck.error = StateError("the file is gone")
    assert reader.read().warnings == ()
    clock.now_s += 30
    facts = reader.read()
    assert facts.warnings == ("the ledger was last read 30 s ago: the file is gone",)
    assert set(facts.nodes) == {"n"}
