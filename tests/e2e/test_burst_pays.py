"""The cloud is opened only when that pays: not for a short rise, for one that goes on, and home.

Earns its five minutes: what arrives, what is answered, what a node costs and how long it takes come
from gateway, ledger and Ray, and only a whole cluster brings them to the brain. The tests build on
each other, in this order.

One owned replica with 8 slots answers 40 tokens in 4.7 s (`demo` of the GPU table: 0.1 s a token
and 0.002 s for each request beside it), so it begins 8 / 4.7 s = 1.7 requests a second; 0.3 a
second of them are room for keeping 10 s (ln 20 / 10 s). 2.5 a second are 1.1 too many. A cloud
replica with 4 slots begins 4 / 4.4 s = 0.9 of them. It costs 1.861 $/h x (50 s cold start + 20 s
lease) = 0.036 $, which is 7.2 late requests at 0.005 $ each. In its lease, on average 60 s away, it
begins 20 s x 0.9 = 18 requests in time if the rise still goes on then. A rise that has lasted d
seconds is still there 60 s later with chance d / (d + 60):

    25 s    18 x 25 / 85  =  5.3 requests at most, less than 7.2: nothing is rented
    80 s    18 x 80 / 140 = 10.3 requests: rented, at the latest
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import read_cluster_file
from cluster.ledger import Ledger
from cluster.model import NodePhase, NodeRecord
from tests.e2e.open_load import OpenLoad
from tests.e2e.served import TIDEGATE, Served, kill, start_serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 4200
MODEL = "llama-3.1-8b-emulated"
CLOUD_POOL = "cloud-cpu-on_demand"
TOKENS = 40
QUIET_RPS = 1.0
RISE_RPS = 2.5
SHORT_RISE_S = 25.0
# The brain plans with lengths it has seen: those of twenty answers at least.
LEARNING_REQUESTS = 25
COLD_START_S = 50.0
LEASE_S = 20.0
USD_PER_LATE_REQUEST = 0.005
BURST_S_MAX = 150.0
HOME_S_MAX = 90.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pays")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    started = start_serving(
        engine="emulated",
        port_offset=OFFSET,
        log=folder / "serve.log",
        cluster_file=write_cluster_file(folder),
        serve_file=write_serve_file(folder),
    )
    yield started
    kill(started)


def write_cluster_file(folder: Path) -> Path:
    """Return the embedded cluster with the times of the arithmetic above.

    Arrivals are remembered for less than five minutes, so that no trend is seen in them.
    """
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    content["provider"]["state_dir"] = str(folder / "state")
    content["provider"]["limits"]["lease_s_min"] = LEASE_S
    content["provider"]["burst"] |= {
        "history_s": 200.0,
        "cold_start_s": COLD_START_S,
        "min_lease_s": LEASE_S,
        "down_after_s": 5.0,
    }
    content["available_node_types"]["cloud_gpu"]["idle_timeout_s"] = 5
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def write_serve_file(folder: Path) -> Path:
    """Return one emulated model: an owned replica with 8 slots, one in the cloud with 4."""
    content = yaml.safe_load((ROOT / "deployments" / "serve-emulated.yaml").read_text())
    gateway, application, *_ = content["applications"]
    model = application["args"]
    model["objective"]["usd_per_late_request"] = USD_PER_LATE_REQUEST
    owned, cloud = model["pools"]
    owned["max_replicas"] = 1
    cloud |= {"max_replicas": 1, "slots": 4}
    # Who is late already comes last: nobody is sent away however long that takes.
    gateway["args"]["limits"] |= {"wait_s_max": 240.0, "waiting_max": 1000}
    gateway["args"]["models"] = [model]
    content["applications"] = [gateway, application]
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


class Watched:
    """The running cluster, as its operator looks at it and changes its file."""

    def __init__(self, served: Served, folder: Path) -> None:
        self._cluster_file = folder / "cluster.yaml"
        state_dir = folder / "state"
        self._ledger = Ledger(state_dir / served.cluster / "ledger.db", reads_only=True)
        (self._file_on_head,) = state_dir.rglob("home/ray_bootstrap_config.yaml")

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

    def switch(self, mode: str) -> None:
        """Change the mode in the cluster file on the head, and wait until it is in force."""
        content = read_cluster_file(self._file_on_head)
        content["provider"]["burst"]["mode"] = mode
        self._file_on_head.write_text(yaml.safe_dump(content), encoding="utf-8")
        assert wait_until(lambda: self.decision()["mode"] == mode, timeout_s=40), self.decision()


@pytest.fixture(scope="module")
def watched(served: Served, folder: Path) -> Watched:
    return Watched(served, folder)


@pytest.fixture(scope="module")
def learned(served: Served) -> None:
    """Enough answers for the brain to know how long they are, fewer than owned slots can take."""
    with OpenLoad(served, model=MODEL, rps=QUIET_RPS, tokens=TOKENS) as load:
        assert wait_until(lambda: len(load.streams) >= LEARNING_REQUESTS, timeout_s=60)
    assert load.failed == []


def wait_until(is_true: Callable[[], object], *, timeout_s: float) -> bool:
    """Whether it becomes true in time."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(1.0)
    return False


def test_a_rise_shorter_than_the_cold_start_launches_nothing(
    served: Served, learned: None, watched: Watched
) -> None:
    """2.5 requests a second for 25 s: 62 in all, of which owned slots begin 42; 20 must wait."""
    reasons: list[str] = []
    is_over = threading.Event()

    def note_reasons() -> None:
        """Look each second: a bin of arrivals may close after the rise, and say so for 10 s."""
        while not is_over.wait(1.0):
            reasons.extend(watched.decision()["reasons"])

    with ThreadPoolExecutor(1) as beside:
        noted = beside.submit(note_reasons)
        try:
            with OpenLoad(served, model=MODEL, rps=RISE_RPS, tokens=TOKENS) as load:
                time.sleep(SHORT_RISE_S)
        finally:
            is_over.set()
        noted.result()
    assert load.failed == []
    assert load.sites == {"onprem"}
    assert any(f"one more of {CLOUD_POOL} would cost $0.04 against" in why for why in reasons), (
        reasons
    )
    assert watched.rented() == []


def test_shadow_mode_launches_nothing_and_says_what_a_rise_that_goes_on_would_have_had(
    watched: Watched, rise: OpenLoad
) -> None:
    """The rise is that of the next test: 80 s of it are enough for a wish, and launch nothing."""

    def would_rent() -> bool:
        figures = watched.decision()["shadow"]["models"][MODEL]
        return bool(figures["pools"].get(CLOUD_POOL, {}).get("replicas")) and figures["usd"] > 0

    assert wait_until(would_rent, timeout_s=BURST_S_MAX), watched.decision()
    decision = watched.decision()
    assert decision["targets"][MODEL][CLOUD_POOL] == 0
    figures = decision["shadow"]["models"][MODEL]
    assert figures["usd_per_hour"] == pytest.approx(1.861)
    assert 0 <= figures["ttft_mean_then_s"] <= figures["ttft_mean_s"]
    assert figures["late_then"] <= figures["late"]
    table = " ".join(watched.status("table").split())
    for shown in (f"would run 1 {CLOUD_POOL}", "$1.86/h", "mean TTFT"):
        assert shown in table, table
    assert watched.rented() == []
    assert rise.sites == {"onprem"}


def test_a_rise_that_goes_on_is_met_by_one_node_which_goes_home(
    watched: Watched, rise: OpenLoad
) -> None:
    watched.switch("act")
    assert wait_until(lambda: "cloud" in rise.sites, timeout_s=BURST_S_MAX), watched.decision()
    assert [node.phase for node in watched.rented()] == [NodePhase.RUNNING]
    rise.stop()
    assert rise.failed == []
    assert wait_until(
        lambda: [node.phase for node in watched.rented()] == [NodePhase.CLOSED],
        timeout_s=HOME_S_MAX,
    ), (watched.rented(), watched.decision())
    assert watched.decision()["burst"] == "closed"


@pytest.fixture(scope="module")
def rise(served: Served, watched: Watched) -> Iterator[OpenLoad]:
    """A rise that goes on for as long as the test that ends it says; it begins in shadow mode."""
    watched.switch("shadow")
    with OpenLoad(served, model=MODEL, rps=RISE_RPS, tokens=TOKENS) as load:
        yield load
