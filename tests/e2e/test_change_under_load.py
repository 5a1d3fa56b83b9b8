"""The cluster file, engine arguments and the code change under load, and no request notices.

Earns its four minutes: Ray's launcher, the autoscaler, Serve's rolling update, HAProxy's hand-over
and our gateway's drain meet only in a whole cluster, and each of them could drop a request. One
cluster and one load serve the module; its tests build on each other, in this order. One stream is
longer than HAProxy leaves old connections by default, and lives through both replacements.
"""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
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
from infra.serve_api import ServeApi
from tests.e2e.served import TIDEGATE, Served, kill, start_serving
from tests.e2e.steady_load import SteadyLoad

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 4100
MODEL = "llama-3.1-8b-emulated"
GATEWAY = "ray::ServeReplica:gateway:Gateway"
LONG_TOKENS = 1300  # 0.1 s each and a little more: longer than 120 s
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
    kill(started)


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
        token_file = folder / "state" / served.cluster / "auth_token"
        self.api = ServeApi(f"http://127.0.0.1:{self.ports['dashboard']}", token_file)
        self._folder = folder

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
        """Return the limit that the autoscaler itself says it obeys; None while it says nothing."""
        try:
            metrics = httpx.get(f"http://127.0.0.1:{self.ports['autoscaler_metrics']}/metrics").text
        except httpx.TransportError:
            return None  # One process of it hands over to the next.
        name = 'tidegate_limit_usd{limit="usd_per_hour"}'
        return next(
            (float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name)),
            None,
        )

    def tidegate_deploy(
        self, change: Callable[[dict[str, Any]], None]
    ) -> subprocess.CompletedProcess[str]:
        """Change the serve file and put it into force."""
        content = yaml.safe_load((ROOT / "deployments" / "serve-emulated.yaml").read_text())
        change(content)
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return self._type("tidegate", "deploy", str(file))

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


def find_autoscalers(served: Served) -> set[int]:
    """Return the autoscaler's processes, as `pkill -f` finds them."""
    wanted = "autoscaling.monitor --gcs-address"
    return {pid for pid, command in list_commands(served) if wanted in command}


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


def test_a_new_limit_in_the_cluster_file_is_in_force_without_a_restart_of_what_serves(
    served: Served, load: SteadyLoad, operator: Operator
) -> None:
    insist_on_more(load)
    assert operator.hourly_limit() == 4.0
    gateways = find_replicas(served, GATEWAY)
    operator.edit(usd_per_hour=2.5)
    answer = operator.ray_up()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert wait_until(lambda: operator.hourly_limit() == 2.5, timeout_s=60)
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


def test_new_engine_arguments_and_slots_replace_every_replica_and_gateway(
    served: Served, load: SteadyLoad, operator: Operator
) -> None:
    load.begin_long(LONG_TOKENS)
    insist_on_more(load)

    def change(content: dict[str, Any]) -> None:
        for pool in content["applications"][0]["args"]["models"][0]["pools"]:
            pool |= {"slots": 7, "engine_args": {"gpu": "demo", "answer_tokens": 65}}
        content["applications"][1]["args"] = content["applications"][0]["args"]["models"][0]

    insist_on_replacement(served, load, operator, change)


def test_a_bad_serve_file_is_refused_before_anything_is_sent(
    load: SteadyLoad, operator: Operator
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["applications"][1]["args"]["pools"][0]["slots"] = -3

    answer = operator.tidegate_deploy(change)
    assert answer.returncode == 1
    assert "pools.0.slots" in answer.stderr
    assert {status for status, _ in operator.api.statuses().values()} == {"RUNNING"}
    insist_on_more(load)


def test_a_serve_file_that_only_the_builder_finds_bad_leaves_the_old_replicas_answering(
    load: SteadyLoad, operator: Operator
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["applications"][1]["args"]["pools"][0]["engine_args"] = {"gpu": "abacus"}

    old = load.replicas_since(max(0, len(load.ended) - 20))
    answer = operator.tidegate_deploy(change)
    assert answer.returncode == 1
    said = " ".join(answer.stderr.split())
    assert "what ran before goes on answering" in said
    assert "abacus" in said
    count = len(load.ended)
    insist_on_more(load)
    assert load.replicas_since(count) & old


def test_new_code_on_the_nodes_is_taken_up_by_replacing_every_process_of_ours(
    served: Served, load: SteadyLoad, operator: Operator
) -> None:
    """What stands for a new wheel here: the release named in the serve file changes.

    Nodes of one machine share one installation, so no wheel is installed.
    """

    def change(content: dict[str, Any]) -> None:
        for application in content["applications"]:
            application["runtime_env"] = {"env_vars": {"TIDEGATE_RELEASE": "2"}}

    (old_autoscaler,) = find_autoscalers(served)
    os.kill(old_autoscaler, signal.SIGTERM)
    insist_on_replacement(served, load, operator, change)
    assert len(find_autoscalers(served) - {old_autoscaler}) == 1
    releases = [read_release(pid) for pid in find_replicas(served, GATEWAY)]
    assert "TIDEGATE_RELEASE=2" in releases


def test_no_request_failed_and_the_long_stream_ended_well(load: SteadyLoad) -> None:
    load.stop()
    sys.stdout.write(f"{len(load.ended)} requests, {len(load.failed)} failed\n")
    assert load.failed == []
    assert [one.kind for one in load.ended if one.is_long] == [f"stream of {LONG_TOKENS} tokens"]


def insist_on_replacement(
    served: Served,
    load: SteadyLoad,
    operator: Operator,
    change: Callable[[dict[str, Any]], None],
) -> None:
    """Deploy, and insist that every old process is replaced while requests go on."""
    old_replicas = load.replicas_since(0)
    old_gateways = find_replicas(served, GATEWAY)
    answer = operator.tidegate_deploy(change)
    assert answer.returncode == 0, answer.stderr
    insist_on_more(load)
    count = len(load.ended)
    insist_on_more(load)
    assert load.replicas_since(count).isdisjoint(old_replicas)
    assert find_replicas(served, GATEWAY) - old_gateways


def read_release(pid: int) -> str | None:
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((entry for entry in environment if entry.startswith("TIDEGATE_RELEASE=")), None)
