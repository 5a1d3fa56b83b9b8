"""A limit of money is reached while a burst goes on: no more nodes, and nobody at home notices.

Earns its three minutes: the brain asks for a replica that the guard refuses a node, Serve holds the
replica pending, and the operator asks why; only a whole cluster has all of them. The tests build on
each other, in this order, on one burst.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import read_cluster_file
from cluster.ledger import Ledger
from cluster.model import NodeRecord
from cluster.processes import MARK_CLUSTER, list_marked
from tests.e2e.served import TIDEGATE, Served, kill, start_serving
from tests.e2e.steady_load import SteadyLoad

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 3300
MODEL = "llama-3.1-8b-emulated"
# Two nodes at home and one rented have 24 slots; 32 streams at a time need a second rented one.
STREAMS = 32
TOKENS = 150  # 0.1 s each
OVER_THE_HOUR = "one more cloud_gpu: 3.722 $/h would be committed, over the limit of 2.0 $/h"
OVER_THE_DAY = r"one more cloud_gpu: 0\.\d\d \$ are spent and 0\.\d\d \$ would be with what is .*"
TICKS_S = 6.0
LOOK_PAUSE_S = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limit")


@pytest.fixture(scope="module")
def cluster_file(folder: Path) -> Path:
    """The embedded cluster, with money for one rented node: it costs 1.861 $/h."""
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    content["provider"]["state_dir"] = str(folder / "state")
    content["provider"]["limits"]["usd_per_hour"] = 2.0
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def serve_file(folder: Path) -> Path:
    """The shipped models, answered in order of arrival.

    With more streams than slots all the time, who is late once would be late for ever: others, in
    time, would always go first.
    """
    content = yaml.safe_load((ROOT / "deployments" / "serve-emulated.yaml").read_text())
    del content["applications"][0]["args"]["limits"]["in_time_ratio"]
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def served(folder: Path, cluster_file: Path, serve_file: Path) -> Iterator[Served]:
    started = start_serving(
        engine="emulated",
        port_offset=OFFSET,
        log=folder / "serve.log",
        cluster_file=cluster_file,
        serve_file=serve_file,
    )
    yield started
    kill(started)


@pytest.fixture(scope="module")
def home(served: Served) -> Iterator[SteadyLoad]:
    """Short requests of every data class; a third may be answered at home only."""
    with SteadyLoad(served, model=MODEL, streams=0, shorts=2) as load:
        yield load


@pytest.fixture(scope="module")
def burst(served: Served, home: SteadyLoad) -> Iterator[SteadyLoad]:
    with SteadyLoad(served, model=MODEL, streams=STREAMS, shorts=0, tokens=TOKENS) as load:
        yield load


class Watched:
    """The running cluster, as its operator can look at it."""

    def __init__(self, served: Served, cluster_file: Path, state_dir: Path) -> None:
        self._served = served
        self._cluster_file = cluster_file
        self._ledger = Ledger(state_dir / served.cluster / "ledger.db", reads_only=True)
        (self.file_on_head,) = state_dir.rglob("home/ray_bootstrap_config.yaml")

    def rented(self) -> list[NodeRecord]:
        """Every node ever asked of the cloud, ended ones included."""
        return [node for node in self._ledger.list_all() if node.site == "cloud"]

    def status(self, output: str) -> str:
        """What the command line says."""
        answer = subprocess.run(
            [TIDEGATE, "status", self._cluster_file, "--port-offset", str(OFFSET), "-o", output],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def decision(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.status("json"))["decision"]
        return found

    def refusals(self) -> list[str]:
        """Why no node is launched, in the record's words."""
        return [str(text) for text in self.decision().get("limits", ())]

    def autoscalers(self) -> list[int]:
        """The process that decides; its supervisor has `--stay`."""
        found = []
        for pid in list_marked(MARK_CLUSTER, self._served.cluster):
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"autoscaling.monitor" in command and b"--stay" not in command:
                    found.append(pid)
        return found

    def replace_autoscaler(self) -> None:
        """Kill it and wait for the first decisions of the next one."""
        (former,) = self.autoscalers()
        os.kill(former, signal.SIGKILL)
        assert wait_until(lambda: set(self.autoscalers()) - {former}, timeout_s=30, pause_s=0.5)
        killed_s = time.time()
        assert wait_until(lambda: self.decision()["decided_s"] > killed_s + TICKS_S, timeout_s=60)


@pytest.fixture(scope="module")
def watched(served: Served, cluster_file: Path, folder: Path) -> Watched:
    return Watched(served, cluster_file, folder / "state")


def wait_until(
    is_true: Callable[[], object], *, timeout_s: float, pause_s: float = LOOK_PAUSE_S
) -> bool:
    """Whether it becomes true in time. A look with the command line is seconds of work: pause."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(pause_s)
    return False


def insist_nothing_changed(watched: Watched, *loads: SteadyLoad) -> None:
    """Insist on one rented node, still there, and on requests that end well meanwhile."""
    before = [len(load.ended) for load in loads]
    assert wait_until(
        lambda: all(
            len(load.ended) >= count + 10 for load, count in zip(loads, before, strict=True)
        ),
        timeout_s=90,
        pause_s=0.5,
    ), "requests must go on ending"
    assert [load.failed for load in loads] == [[]] * len(loads)
    (node,) = watched.rented()
    assert node.phase.value == "running", node


def test_a_burst_gets_the_one_node_that_the_hour_allows_and_status_says_why_no_other(
    watched: Watched, home: SteadyLoad, burst: SteadyLoad
) -> None:
    assert wait_until(lambda: OVER_THE_HOUR in watched.refusals(), timeout_s=150), (
        watched.decision()
    )
    assert wait_until(
        lambda: [node.phase.value for node in watched.rented()] == ["running"], timeout_s=60
    ), watched.rented()
    insist_nothing_changed(watched, home, burst)
    decision = watched.decision()
    assert decision["targets"][MODEL] == {"onprem-cpu-owned": 2, "cloud-cpu-on_demand": 2}
    assert decision["refusals"]["usd_per_hour"] >= 1


def test_the_table_of_status_shows_nodes_pools_money_and_the_refusal(
    watched: Watched, burst: SteadyLoad
) -> None:
    table = watched.status("table")
    (node,) = watched.rented()
    for shown in (node.node_id, "cloud-cpu-on_demand", "burst opening", f"limit   {OVER_THE_HOUR}"):
        assert str(shown) in table, table
    assert re.search(r"usd_per_hour .* 2\.0 .* 1\.86 .* soft .* 1 node burns 1\.86 \$/h", table), (
        table
    )


def test_the_limit_holds_when_the_autoscaler_is_killed_and_comes_back(
    watched: Watched, home: SteadyLoad, burst: SteadyLoad
) -> None:
    watched.replace_autoscaler()
    assert OVER_THE_HOUR in watched.refusals()
    insist_nothing_changed(watched, home, burst)


def test_what_the_day_has_cost_already_holds_back_a_launch_too_and_after_a_restart(
    watched: Watched, home: SteadyLoad, burst: SteadyLoad
) -> None:
    """The hour would allow a second node now; the first alone is promised 0.03 $ a minute."""
    content = read_cluster_file(watched.file_on_head)
    content["provider"]["limits"] |= {"usd_per_hour": 8.0, "usd_per_day": 0.02}
    watched.file_on_head.write_text(yaml.safe_dump(content), encoding="utf-8")

    def says_so() -> bool:
        return any(re.fullmatch(OVER_THE_DAY, text) for text in watched.refusals())

    assert wait_until(says_so, timeout_s=40), watched.decision()
    watched.replace_autoscaler()
    assert wait_until(says_so, timeout_s=30), watched.decision()
    assert any(text.startswith("usd_per_day is reached: spent ") for text in watched.refusals())
    insist_nothing_changed(watched, home, burst)
