"""From the ledger's rows to what past nodes teach, beside the ticks and never in their way."""

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from autoscaling.node_history import NodeFigures
from autoscaling.node_history_reader import NodeHistoryReader, list_lives
from cluster.config import parse_cluster_config
from cluster.errors import StateError
from cluster.ledger import Intent, Ledger
from cluster.model import TAG_NOTICED, TAG_RELEASED, BootStage, NodeId, NodeTypeName, SiteName

NOON_S = 1_799_928_000.0
_WAIT_S = 5.0


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


def start(ledger: Ledger, name: str, *, is_head: bool = False) -> NodeId:
    intent = Intent(
        node_id=NodeId(name),
        site=SiteName("cloud"),
        node_type=NodeTypeName("cloud_gpu"),
        is_head=is_head,
        usd_per_hour=Decimal("1.5"),
        tags={},
        node_config={},
    )
    ledger.open_intents([intent], owner="o", check=lambda _: None)
    ledger.mark_launched(intent.node_id)
    return intent.node_id


class Reading:
    """A reader whose thread is waited for, so that each read sees what the last one began."""

    def __init__(self, ledger: Any, clock: Clock, content: dict[str, Any]) -> None:
        settings = parse_cluster_config(content)
        self.opened = threading.Semaphore(0)

        def open_ledger(_: object) -> Any:
            self.opened.release()
            return ledger

        self.reader = NodeHistoryReader(
            lambda: settings, open_ledger=open_ledger, now_s=clock, clock=clock
        )

    def read_now(self) -> NodeFigures:
        self.reader.read()
        pending = self.reader._pending
        if pending is not None:
            pending.exception(timeout=_WAIT_S)
        return self.reader.read()


def test_stages_in_the_ledger_become_a_cold_start_of_the_type(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    """Asked at noon, joined 40 s later, serving 95 s later."""
    node = start(ledger, "n")
    ledger.note_boot_stage(node, BootStage.JOINED, NOON_S + 40)
    ledger.note_boot_stage(node, BootStage.SERVING, NOON_S + 95)
    found = Reading(ledger, clock, cluster_content).read_now()
    assert found.cold_starts_s == {"cloud_gpu": 95.0}


def test_a_node_that_went_missing_or_had_a_notice_is_a_loss(ledger: Ledger, clock: Clock) -> None:
    """Five ends: found gone, stopped by itself, announced, sent home, and home before we looked.

    Ray ends on a node that is sent home before its site is told, which may find it stopped first.
    """
    names = ("gone", "stopped", "noticed", "home", "released")
    nodes = {name: start(ledger, name) for name in names}
    clock.now_s += 3600
    ledger.merge_tags(nodes["noticed"], {TAG_NOTICED: "true"})
    ledger.merge_tags(nodes["released"], {TAG_RELEASED: "true"})
    stopped = "stopped: it serves no more"
    whys = ("gone from its site", stopped, "terminated", "terminated", stopped)
    for name, why in zip(names, whys, strict=True):
        ledger.mark_closed(nodes[name], why=why)
    lives = list_lives(ledger.list_all(), [])
    lost = [name for name, life in zip(sorted(names), lives, strict=True) if life.is_lost]
    assert lost == ["gone", "noticed", "stopped"]


def test_heads_and_launches_that_came_to_nothing_teach_nothing(ledger: Ledger) -> None:
    start(ledger, "head", is_head=True)
    refused = start(ledger, "refused")
    ledger.mark_closed(refused, why="no capacity: InsufficientInstanceCapacity", never_ran=True)
    assert list_lives(ledger.list_all(), []) == []


def test_losses_per_hour_come_for_every_type_of_the_cluster_file(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    """Nothing has run: the prior of a node type on demand, one loss in a thousand hours."""
    found = Reading(ledger, clock, cluster_content).read_now()
    assert found.losses_per_hour["cloud_gpu"] == pytest.approx(0.001)
    assert found.cold_starts_s == {}


def test_a_read_is_begun_at_most_once_a_minute(
    ledger: Ledger, clock: Clock, cluster_content: dict[str, Any]
) -> None:
    reading = Reading(ledger, clock, cluster_content)
    reading.read_now()
    node = start(ledger, "n")
    ledger.note_boot_stage(node, BootStage.SERVING, NOON_S + 95)
    clock.now_s += 59
    assert reading.read_now().cold_starts_s == {}
    clock.now_s += 1
    assert reading.read_now().cold_starts_s == {"cloud_gpu": 95.0}


def test_a_ledger_that_hangs_holds_no_tick_up(
    clock: Clock, cluster_content: dict[str, Any]
) -> None:
    class Hanging:
        def __init__(self) -> None:
            self.may_go = threading.Event()

        def list_boot_records(self, **_: object) -> list[Any]:
            self.may_go.wait(_WAIT_S)
            return []

        def list_all(self) -> list[Any]:
            return []

    hanging = Hanging()
    reading = Reading(hanging, clock, cluster_content)
    assert reading.reader.read() == NodeFigures()
    assert reading.opened.acquire(timeout=_WAIT_S)
    clock.now_s += 600
    assert reading.reader.read() == NodeFigures()
    hanging.may_go.set()
    assert "cloud_gpu" in reading.read_now().losses_per_hour


def test_a_ledger_that_fails_leaves_what_was_known(
    ledger: Ledger,
    clock: Clock,
    cluster_content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading = Reading(ledger, clock, cluster_content)
    known = reading.read_now()

    def fail(**_: object) -> None:
        raise StateError("the store is away")

    monkeypatch.setattr(ledger, "list_boot_records", fail)
    clock.now_s += 60
    assert reading.read_now() == known
    assert "the store is away" in caplog.text
