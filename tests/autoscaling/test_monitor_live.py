"""Our monitor in a real Ray cluster: where demand goes, and that the monitor survives and ends.

Earns its seconds (one head for all tests) because Ray builds the requests, calls the scheduler and
launches through the real provider here; the seat is private interface that only a run can check.
Nodes are fake: they are launched and never join. TIDEGATE_LOCAL_FIRST_REPEATS=20 repeats the two
local-first trials twenty times instead of three.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from deployments.signals import (
    Blackboard,
    GatewaySignals,
    ModelSignal,
    PoolSignal,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

REPEATS = int(os.environ.get("TIDEGATE_LOCAL_FIRST_REPEATS", "3"))


@ray.remote(num_gpus=1, num_cpus=0)
class Worker:
    pass


@pytest.fixture
def calm(live_head: Any, wait: Any) -> Iterator[None]:
    """Both types are at zero before and after."""

    def is_calm() -> bool:
        return all(node.closed_s is not None for node in live_head.launched())

    wait(is_calm, timeout_s=60, why="all nodes gone before the test")
    yield
    wait(is_calm, timeout_s=60, why="all nodes gone after the test")


def states(record: dict[str, Any]) -> list[str]:
    return [node["state"] for node in record["nodes"]]


def new_types(live_head: Any, seen: set[str]) -> list[str]:
    return sorted(node.node_type for node in live_head.launched() if node.node_id not in seen)


def seen_nodes(live_head: Any) -> set[str]:
    return {node.node_id for node in live_head.launched()}


@pytest.mark.parametrize("trial", range(REPEATS))
def test_an_actor_with_one_gpu_gets_an_on_prem_node(
    live_head: Any, calm: None, wait: Any, trial: int
) -> None:
    """Stock Ray launches the 1-GPU cloud type here, because the actor fills it."""
    seen = seen_nodes(live_head)
    actor = Worker.remote()
    found = wait(lambda: new_types(live_head, seen), timeout_s=60, why="a launch")
    assert found == ["onprem_gpu"]
    ray.kill(actor)


@pytest.mark.parametrize("trial", range(REPEATS))
def test_it_does_so_beside_a_cloud_group_an_infeasible_and_a_refused_request(
    live_head: Any, calm: None, wait: Any, pool_group: Any, trial: int
) -> None:
    """The group is the one LLMServer asks for, bound to the cloud; `dear` costs 90 of 4 USD/h."""
    seen = seen_nodes(live_head)
    infeasible = Worker.options(label_selector={"site": "mars"}).remote()
    refused = Worker.options(resources={"dear": 1}).remote()
    group = pool_group("cloud")
    actor = Worker.remote()
    wait(lambda: len(new_types(live_head, seen)) >= 2, timeout_s=60, why="two launches")
    asked_s = time.time()
    wait(lambda: live_head.decision()["decided_s"] > asked_s + 3, timeout_s=30, why="more ticks")
    assert new_types(live_head, seen) == ["cloud_gpu", "onprem_gpu"]
    limits = live_head.decision()["limits"]
    assert any("91.5 $/h would be committed, over the limit of 4" in text for text in limits)
    for left in (infeasible, refused, actor):
        ray.kill(left)
    remove_placement_group(group)


def test_with_on_prem_full_the_next_actor_gets_a_cloud_node(
    live_head: Any, calm: None, wait: Any
) -> None:
    """Two nodes of four GPUs hold eight actors, the ninth goes to the cloud."""
    seen = seen_nodes(live_head)
    actors = [Worker.remote() for _ in range(9)]
    wait(lambda: len(new_types(live_head, seen)) >= 3, timeout_s=60, why="three launches")
    assert new_types(live_head, seen) == ["cloud_gpu", "onprem_gpu", "onprem_gpu"]
    for actor in actors:
        ray.kill(actor)


def test_ray_status_shows_what_our_scheduler_launched(
    live_head: Any, calm: None, wait: Any
) -> None:
    actor = Worker.remote()
    status = wait(
        lambda: found if "onprem_gpu" in (found := live_head.status()) else None,
        timeout_s=30,
        why="the pending node in `ray status`",
    )
    assert "Pending:" in status
    ray.kill(actor)


def test_the_brain_reads_signals_and_writes_targets_and_a_record(
    live_head: Any, calm: None, wait: Any
) -> None:
    board = Blackboard.from_address(live_head.address)
    publish(board, live_head)
    targets = wait(
        lambda: board.get_targets() if publish(board, live_head) else None,
        timeout_s=30,
        why="targets for the app",
    )
    assert targets.replicas == {"live": {"onprem-cpu-owned": 1, "cloud-cpu-on_demand": 0}}
    record = wait(
        lambda: found if states(found := live_head.decision()) == ["HEAD"] else None,
        timeout_s=20,
        why="a record of the head alone",
    )
    assert record["burst"] == "closed"
    assert "every pool is at its minimum" in record["reasons"][0]


def test_a_killed_autoscaler_is_replaced_and_goes_on(live_head: Any, calm: None, wait: Any) -> None:
    before, seen = live_head.autoscaler_pid(), seen_nodes(live_head)
    os.kill(before, signal.SIGKILL)
    actor = Worker.remote()
    wait(lambda: new_types(live_head, seen), timeout_s=60, why="a launch by the new process")
    assert live_head.autoscaler_pid() not in (None, before)
    assert "going on from the last decision record: live" in live_head.log()
    ray.kill(actor)


def test_an_autoscaler_that_starts_with_a_bad_cluster_file_uses_the_last_good_copy(
    live_head: Any, calm: None, wait: Any
) -> None:
    before, seen = live_head.autoscaler_pid(), seen_nodes(live_head)
    good = live_head.config_file.read_text()
    live_head.config_file.write_text(good[: len(good) // 2])
    try:
        os.kill(before, signal.SIGKILL)
        actor = Worker.remote()
        wait(lambda: new_types(live_head, seen), timeout_s=60, why="a launch by the new process")
        assert live_head.autoscaler_pid() not in (None, before)
        wait(
            lambda: any("as kept in" in text for text in live_head.decision()["limits"]),
            timeout_s=20,
            why="a record that says so",
        )
        assert "the former one stays in force, as kept in" in live_head.log()
        ray.kill(actor)
    finally:
        live_head.config_file.write_text(good)
    wait(
        lambda: not any("as kept in" in text for text in live_head.decision()["limits"]),
        timeout_s=20,
        why="a record without it",
    )


def test_a_killed_supervisor_takes_its_autoscaler_with_it_and_both_are_replaced(
    live_head: Any, wait: Any
) -> None:
    supervisor, autoscaler = live_head.supervisor_pid(), live_head.autoscaler_pid()
    os.kill(supervisor, signal.SIGKILL)
    wait(
        lambda: (
            live_head.autoscaler_pid() not in (None, autoscaler)
            and live_head.supervisor_pid() not in (None, supervisor)
        ),
        timeout_s=30,
        why="a new supervisor with a new autoscaler",
    )


def test_a_second_supervisor_for_the_same_session_ends_by_itself(live_head: Any, wait: Any) -> None:
    supervisor = live_head.supervisor_pid()
    live_head.start_autoscaler()
    wait(lambda: len(live_head.processes("--stay")) == 2, timeout_s=10, why="a second supervisor")
    wait(lambda: len(live_head.processes("--stay")) == 1, timeout_s=40, why="its end")
    assert live_head.supervisor_pid() == supervisor


def test_an_autoscaler_that_was_stopped_for_longer_than_its_lease_ends_when_it_wakes(
    live_head: Any, wait: Any
) -> None:
    """A second one waits, acts 15 s after the first fell silent, and is waited for in turn."""
    first = live_head.autoscaler_pid()
    second = live_head.start_second_autoscaler()
    wait(lambda: live_head.decision().get("waiting"), timeout_s=60, why="a waiting process")
    assert "another autoscaler holds the lease: this one waits" in live_head.log()
    os.kill(first, signal.SIGSTOP)
    stopped_s = time.time()
    wait(
        lambda: live_head.decision()["decided_s"] > stopped_s + 5,
        timeout_s=60,
        why="decisions of the second",
    )
    os.kill(first, signal.SIGCONT)
    wait(
        lambda: first not in live_head.processes("autoscaling.monitor --gcs-address"),
        timeout_s=20,
        why="the end of the first",
    )
    assert "no longer the one that acts" in live_head.log()
    wait(lambda: live_head.decision().get("waiting"), timeout_s=60, why="its successor, waiting")
    second.kill()
    second.wait()
    killed_s = time.time()
    wait(
        lambda: live_head.decision()["decided_s"] > killed_s + 3,
        timeout_s=60,
        why="decisions of the successor",
    )


def test_nothing_is_left_ten_seconds_after_the_gcs_is_gone(live_head: Any, wait: Any) -> None:
    """The last test: it ends the cluster."""
    ray.shutdown()
    (gcs,) = live_head.processes("gcs_server")
    os.kill(gcs, signal.SIGKILL)
    wait(
        lambda: not live_head.processes("autoscaling.monitor"),
        timeout_s=10,
        why="the end of supervisor and autoscaler",
    )


@pytest.fixture
def pool_group() -> Any:
    """Asks for the placement group of a pool's replica at a site, as Ray's LLMServer makes it."""

    def ask(site: str) -> Any:
        # Half a minute of imports that only this needs, once Ray is connected: without, making
        # the options starts a cluster of its own.
        from ray.llm._internal.serve.core.server import llm_server  # noqa: PLC0415 - see above
        from ray.serve.llm import LLMConfig  # noqa: PLC0415 - as above

        config = LLMConfig(model_loading_config={"model_id": "m", "model_source": "/nonexistent"})
        options = llm_server.LLMServer.get_deployment_options(config)
        bundles = options["placement_group_bundles"]
        assert any(bundle.get("GPU") for bundle in bundles)
        return placement_group(
            bundles,
            strategy=options["placement_group_strategy"],
            bundle_label_selector=[{"site": site}] * len(bundles),
        )

    return ask


def publish(board: Blackboard, live_head: Any) -> bool:
    """Say what an idle gateway says; whether the brain has answered."""
    pools = tuple(
        PoolSignal(
            pool=f"{site}-cpu-{market}",
            site=site,
            owned=market == "owned",
            accelerator="cpu",
            market=market,
            gpus_per_replica=1,
            slots_per_replica=4,
            min_replicas=int(market == "owned"),
            max_replicas=2,
            replicas_running=int(market == "owned"),
            streams_running=0,
            kv_use_ratio=0.0,
        )
        for site, market in (("onprem", "owned"), ("cloud", "on_demand"))
    )
    model = ModelSignal("live", "live", 0, 0, 0, 0, 0.0, pools)
    board.put_signals(GatewaySignals("g", time.time(), (model,)))
    targets = board.get_targets()
    return targets is not None and "live" in targets.replicas
