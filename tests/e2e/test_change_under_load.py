"""The cluster file changes under load, well or badly, and no request notices.

Earns its three minutes: Ray's launcher, the autoscaler and the request path meet only in a whole
cluster. One cluster and one load serve the module; its tests build on each other, in this order.
"""

import contextlib
import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.config import read_cluster_file
from cluster.processes import MARK_CLUSTER, list_marked
from infra.ray_cli import ray_environment
from tests.e2e.served import TIDEGATE, Served, finish, start_serving
from tests.e2e.steady_load import SteadyLoad

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 3700
MODEL = "llama-3.1-8b-emulated"
GATEWAY = "ray::ServeReplica:gateway:Gateway"
CHANGE_S_MAX = 300.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("change")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    started = start_serving(
        engine="emulated",
        port_offset=OFFSET,
        log=folder / "serve.log",
        cluster_file=write_cluster_file(folder),
    )
    yield started
    finish(started)


@pytest.fixture(scope="module")
def load(served: Served) -> Iterator[SteadyLoad]:
    with SteadyLoad(served, model=MODEL, streams=4, shorts=2) as running:
        yield running


def write_cluster_file(folder: Path) -> Path:
    """Return the embedded cluster with room for a replacement beside each replica."""
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    content["provider"]["state_dir"] = str(folder / "state")
    content["available_node_types"]["onprem_gpu"]["resources"] = {"CPU": 8, "GPU": 3}
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


class Operator:
    """What a person changes, and where they look afterwards."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.cluster_file = folder / "state" / "run" / served.cluster / "cluster.yaml"
        self.settings = read_cluster_file(self.cluster_file)
        self.ports = self.settings["provider"]["ports"]

    def edit(self, *, usd_per_hour: float) -> None:
        """Change a limit in the cluster file."""
        changed = copy.deepcopy(self.settings)
        changed["provider"]["limits"]["usd_per_hour"] = usd_per_hour
        self.cluster_file.write_text(yaml.safe_dump(changed), encoding="utf-8")

    def ray_up(self) -> subprocess.CompletedProcess[str]:
        """Bring the cluster up to date with its file, without a restart."""
        return self._type("ray", "up", "-y", "--no-restart", "--no-config-cache")

    def tidegate_status(self) -> dict[str, Any]:
        answer = self._type("tidegate", "status", "-o", "json")
        assert answer.returncode == 0, answer.stderr
        status: dict[str, Any] = json.loads(answer.stdout)
        return status

    def hourly_limit(self) -> float | None:
        """Return the limit that the autoscaler itself says it obeys."""
        metrics = httpx.get(f"http://127.0.0.1:{self.ports['autoscaler_metrics']}/metrics").text
        name = 'tidegate_limit_usd{limit="usd_per_hour"}'
        return next(
            (float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name)),
            None,
        )

    def _type(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TIDEGATE.parent / command, *arguments, self.cluster_file],
            env=ray_environment(),
            capture_output=True,
            text=True,
            timeout=CHANGE_S_MAX,
            check=False,
        )


@pytest.fixture(scope="module")
def operator(served: Served, folder: Path) -> Operator:
    return Operator(served, folder)


def wait_until(is_true: Callable[[], bool], *, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(0.5)
    return False


def find_replicas(served: Served, title: str) -> set[int]:
    """Return the processes of a deployment's replicas."""
    return {pid for pid, command in list_commands(served) if command.startswith(title)}


def list_commands(served: Served) -> Iterator[tuple[int, str]]:
    """Yield the cluster's processes with their command lines; one may end meanwhile."""
    for pid in list_marked(MARK_CLUSTER, served.cluster):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            yield pid, command.replace(b"\0", b" ").decode()


def insist_on_more(load: SteadyLoad, count: int = 20) -> None:
    """Insist that requests go on ending, and that none failed."""
    before = len(load.ended)
    assert wait_until(lambda: len(load.ended) >= before + count, timeout_s=60), load.failed
    assert load.failed == []


def test_a_new_limit_in_the_cluster_file_is_in_force_without_a_restart(
    served: Served, load: SteadyLoad, operator: Operator
) -> None:
    insist_on_more(load)
    assert operator.hourly_limit() == 4.0
    gateways = find_replicas(served, GATEWAY)
    operator.edit(usd_per_hour=2.5)
    answer = operator.ray_up()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert wait_until(lambda: operator.hourly_limit() == 2.5, timeout_s=20)
    insist_on_more(load)
    assert find_replicas(served, GATEWAY) == gateways


def test_ray_up_refuses_a_file_that_breaks_a_rule(load: SteadyLoad, operator: Operator) -> None:
    operator.edit(usd_per_hour=-1)
    answer = operator.ray_up()
    operator.edit(usd_per_hour=2.5)
    assert answer.returncode != 0
    assert "usd_per_hour" in answer.stdout + answer.stderr
    insist_on_more(load)
    assert operator.hourly_limit() == 2.5


@pytest.mark.parametrize("mistake", ["truncated", "against a rule"])
def test_a_bad_file_on_the_head_leaves_the_former_in_force_and_says_so(
    mistake: str, load: SteadyLoad, operator: Operator, folder: Path
) -> None:
    (head_file,) = (folder / "state").rglob("home/ray_bootstrap_config.yaml")
    good = head_file.read_text()
    bad = good[: len(good) // 2] if mistake == "truncated" else good.replace(": 2.5", ": -1")
    head_file.write_text(bad)
    try:
        problem = "can't be used, the former one stays in force"
        assert wait_until(
            lambda: problem in json.dumps(operator.tidegate_status()), timeout_s=30
        ), operator.tidegate_status()
        assert operator.hourly_limit() == 2.5
        logs = [log.read_text() for log in (folder / "state").rglob("logs/monitor.log")]
        assert any(problem in log for log in logs)
        insist_on_more(load)
    finally:
        head_file.write_text(good)
    assert wait_until(lambda: problem not in json.dumps(operator.tidegate_status()), timeout_s=30)


def test_no_request_failed(load: SteadyLoad) -> None:
    load.stop()
    assert len(load.ended) > 0
    assert load.failed == []
