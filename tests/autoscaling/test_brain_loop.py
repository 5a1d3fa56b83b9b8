"""The brain's edge over a blackboard in memory: acts, records, goes on after a restart."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoscaling.brain_loop import build_policy
from autoscaling.node_history import NodeFigures
from autoscaling.snapshot import BurstPolicy
from cluster.config import BurstSettings
from cluster.notices import Notice, encode_notice
from deployments.signals import GatewaySignals, ModelSignal, Targets
from tests.autoscaling.brain_bench import POOLS, Bench


@pytest.fixture
def bench(cluster_content: dict[str, Any]) -> Bench:
    return Bench(cluster_content)


def test_waiting_requests_open_the_cloud_on_the_board(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert bench.ticks(3, waiting=2) == {"onprem": 1, "cloud": 1}
    record = bench.board.get_decision()
    assert record is not None
    assert (record["burst"], record["targets"]) == ("opening", {"m": {"onprem": 1, "cloud": 1}})
    assert "brain: m/cloud: 0 to 1 replicas: 2 waiting without a slot in sight" in caplog.messages


def test_a_hold_is_logged_once_though_its_numbers_change(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.ticks(5)
    assert len(caplog.messages) == 1


def test_a_new_process_goes_on_where_the_killed_one_stopped(bench: Bench) -> None:
    """Its lease too: a minute after the raise, whoever looks."""
    bench.ticks(3, waiting=2)
    bench.restart()
    assert bench.ticks(50) == {"onprem": 1, "cloud": 1}


def test_a_new_process_without_signals_leaves_the_numbers(bench: Bench) -> None:
    bench.ticks(3, waiting=2)
    bench.restart()
    bench.now_s += 60
    assert bench.ticks(5, waiting=None) == {"onprem": 1, "cloud": 1}


def test_a_record_nobody_can_read_costs_only_the_memory(bench: Bench) -> None:
    bench.ticks(3, waiting=2)
    bench.board.put_decision({"memory": {"m": "nonsense"}})
    bench.restart()
    assert bench.ticks(3) == {"onprem": 1, "cloud": 1}


def test_without_any_knowledge_targets_on_the_board_stay(bench: Bench) -> None:
    bench.board.put_targets(Targets(1.0, {"other": {"cloud": 1}}))
    bench.ticks(1, waiting=None)
    assert bench.board.get_targets() == Targets(1.0, {"other": {"cloud": 1}})


def test_signals_nobody_can_read_hold_the_numbers_while_their_gateway_lives(bench: Bench) -> None:
    bench.ticks(3, waiting=2)
    for _ in range(100):
        bench.memory.values[b"signals/odd"] = b"{}"
        assert bench.ticks(1) == {"onprem": 1, "cloud": 1}
    assert bench.ticks(100) == {"onprem": 1, "cloud": 0}


def test_a_gateway_that_is_long_gone_is_taken_off_the_board(bench: Bench) -> None:
    bench.board.put_signals(GatewaySignals("dead", bench.now_s))
    bench.ticks(121)
    assert [report.gateway for report in bench.board.list_signals()] == ["g"]


def test_targets_another_process_wrote_meanwhile_are_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.ticks(1)
    theirs = Targets(2.0, {"m": {"onprem": 1, "cloud": 2}})
    read = _read_then(bench.board.get_targets, lambda: bench.board.put_targets(theirs))
    monkeypatch.setattr(bench.board, "get_targets", read)
    bench.now_s += 1
    bench.brain.tick()
    assert bench.board.get_targets() == theirs


def _read_then(read: Callable[[], Any], meanwhile: Callable[[], None]) -> Callable[[], Any]:
    """Reads once, then somebody else writes."""
    done: list[bool] = []

    def both() -> Any:
        found = read()
        if not done:
            done.append(True)
            meanwhile()
        return replace(found)

    return both


def test_a_notice_is_known_until_its_node_must_be_gone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    notice = Notice("cloud-1", "abc", "interruption", bench.now_s, 120.0)
    bench.memory.values[b"notices/cloud-1"] = encode_notice(notice)
    bench.memory.values[b"notices/odd"] = b"{}"
    bench.ticks(3)
    assert bench.brain.notices == (notice,)
    assert caplog.text.count("cloud-1 has a notice of interruption") == 1
    assert b"notices/odd" not in bench.memory.values
    bench.now_s += 1801
    bench.ticks(1)
    assert bench.brain.notices == ()
    assert b"notices/cloud-1" not in bench.memory.values


def test_the_nodes_that_serve_are_those_gateways_count_replicas_on(bench: Bench) -> None:
    pools = (replace(POOLS[0], ray_nodes=("a", "b")), replace(POOLS[1], ray_nodes=("c",)))
    model = ModelSignal("m", "m", 0, 0, 0, 0, 0.0, pools)
    bench.board.put_signals(GatewaySignals("g", bench.now_s, (model,)))
    bench.ticks(1, waiting=None)
    assert bench.brain.serving == {"a", "b", "c"}


def test_the_record_says_what_a_person_must_mend_and_who_waits(bench: Bench) -> None:
    bench.problems = ("the cluster file can't be used",)
    bench.board.put_waiting("another", at_s=bench.now_s)
    bench.ticks(1)
    record = bench.board.get_decision()
    assert record is not None
    assert (record["limits"][0], record["waiting"]) == (bench.problems[0], "another")
    bench.problems = ()
    bench.ticks(20)
    record = bench.board.get_decision()
    assert record is not None
    assert (record["limits"], record["waiting"]) == ([], None)


def test_every_brain_setting_of_the_cluster_file_reaches_the_policy() -> None:
    """A setting left out keeps the brain's own default, so the two name the same numbers."""
    changed = BurstSettings(starting_s_max=900, slack_ratio_max=0.5)
    assert build_policy(changed) == BurstPolicy(starting_s_max=900, slack_ratio_max=0.5)
    assert build_policy(BurstSettings()) == BurstPolicy()


def test_why_something_changed_is_told_for_long_and_across_a_restart(bench: Bench) -> None:
    """The raise was ten seconds ago, in another process."""
    bench.ticks(3, waiting=2)
    bench.restart()
    bench.ticks(10, waiting=2)
    record = bench.board.get_decision()
    assert record is not None
    (change,) = record["changes"]
    assert change["why"].startswith("m/cloud: 0 to 1 replicas: 2 waiting without a slot in sight")
    assert change["at_s"] == 1003.0


def test_what_past_nodes_teach_is_in_the_record(bench: Bench) -> None:
    figures = NodeFigures({"cloud_gpu": 95.0}, {"cloud_gpu": 0.05, "onprem_gpu": 0.001})
    bench.sources = replace(bench.sources, read_node_figures=lambda: figures)
    bench.restart()
    bench.ticks(3, waiting=2)
    record = bench.board.get_decision()
    assert record is not None
    assert record["learned"] == {
        "cold_starts_s": {"cloud_gpu": 95.0},
        "losses_per_hour": {"cloud_gpu": 0.05, "onprem_gpu": 0.001},
    }
