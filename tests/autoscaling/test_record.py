"""The decision record: readable by people, and enough for the next process to go on from."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from autoscaling.record import (
    Change,
    NodeSummary,
    SchedulerReport,
    Surroundings,
    add_changes,
    build_record,
    find_burst_state,
    list_news,
    read_changes,
    read_memory,
)
from autoscaling.snapshot import Decision, ModelView, PoolView, Reason, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory

CLOUD_NODE = NodeSummary("n1", "cloud_gpu", "cloud", is_owned=False, state="RAY_RUNNING")
REPORT = SchedulerReport(
    nodes=(CLOUD_NODE,),
    reasons=("launch 1 x cloud_gpu for {GPU: 1} at site=cloud",),
    limits=("site cloud is full: 2 of 2 nodes",),
    refusals={"site": 1},
    usd_per_hour=Decimal("1.861"),
)


def decide(
    planned: int, *, observed: int, closing_since_s: float | None = None
) -> tuple[Decision, Snapshot]:
    pool = PoolView(
        name="cloud",
        site="cloud",
        market="spot",
        slots=4,
        replicas_min=0,
        replicas_max=2,
        observed=observed,
    )
    known = PoolMemory(planned, observed, closing_since_s=closing_since_s)
    memory = {"m": ModelMemory({"cloud": known})}
    decision = Decision((), (Reason("hold", "m", "held"),), (), 1.0, memory)
    return decision, Snapshot(5.0, (ModelView("m", (pool,)),), memory)


def test_the_record_is_json_with_the_names_others_read() -> None:
    decision, snapshot = decide(1, observed=1)
    record = json.loads(json.dumps(build_record(decision, snapshot, REPORT)))
    memory = record.pop("memory")
    assert record == {
        "decided_s": 5.0,
        "mode": "act",
        "targets": {"m": {"cloud": 1}},
        "closing": {},
        "burst": "open",
        "reasons": ["m: held", "launch 1 x cloud_gpu for {GPU: 1} at site=cloud"],
        "unmet": [],
        "changes": [],
        "codes": [["hold", "m"]],
        "limits": ["site cloud is full: 2 of 2 nodes"],
        "refusals": {"site": 1},
        "usd_per_hour": "1.861",
        "nodes": [
            {
                "id": "n1",
                "type": "cloud_gpu",
                "site": "cloud",
                "state": "RAY_RUNNING",
                "cordon": None,
                "noticed": False,
            }
        ],
        "is_leader": True,
        "waiting": None,
        "tick_s": {"brain": 0.0, "scheduler": 0.0},
        "learned": {"cold_starts_s": {}, "losses_per_hour": {}},
        "shadow": None,
    }
    assert read_memory({"memory": memory}) == decision.memory


def test_the_last_changes_stay_in_the_record_and_holds_do_not() -> None:
    """Eight of them: a raise of a while ago still tells why money is being spent."""
    decision, snapshot = decide(1, observed=1)
    changes: tuple[Change, ...] = ()
    for now_s in range(20):
        reasons = (Reason("raise", "m/cloud", f"raise {now_s}"), Reason("hold", "m", "held"))
        raised = replace(decision, reasons=reasons)
        changes = add_changes(changes, raised, now_s=float(now_s))
    around = Surroundings(changes=add_changes(changes, decision, now_s=20.0))
    record = json.loads(json.dumps(build_record(decision, snapshot, REPORT, around)))
    assert len(record["changes"]) == 8
    assert record["changes"][-1] == {"at_s": 19.0, "why": "m/cloud: raise 19"}
    assert read_changes(record) == changes


def test_a_record_that_is_not_ours_gives_no_memory() -> None:
    with pytest.raises(ValueError, match="planned"):
        read_memory({"memory": {"m": {"pools": {"cloud": {"planned": "many"}}}}})


@pytest.mark.parametrize(
    ("planned", "observed", "closing_since_s", "report", "state"),
    [
        (0, 0, None, SchedulerReport(), "closed"),
        (1, 0, None, SchedulerReport(), "opening"),
        (1, 1, None, REPORT, "open"),
        (1, 1, 4.0, REPORT, "closing"),
        (0, 1, None, REPORT, "closing"),
        (0, 0, None, REPORT, "closing"),
    ],
)
def test_the_burst_is_closed_only_when_its_last_node_is_gone(
    planned: int, observed: int, closing_since_s: float | None, report: SchedulerReport, state: str
) -> None:
    decision, snapshot = decide(planned, observed=observed, closing_since_s=closing_since_s)
    assert find_burst_state(decision, snapshot, report) == state


def test_a_reason_is_news_once_though_its_numbers_change() -> None:
    before = [Reason("hold", "m", "held with 1 streams")]
    after = [Reason("hold", "m", "held with 2 streams"), Reason("full", "m", "full")]
    assert list_news(after, before) == [after[1]]
