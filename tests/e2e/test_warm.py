"""Two models on one owned GPU: both answer, by turns, and never are both engines awake.

Earns its two minutes: the shares of a GPU are Ray's, a replica's turn begins inside Serve, the
gateway must find who is awake and the brain must hear who waits; no smaller part has all of them.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from cluster.config import read_cluster_file
from tests.e2e.served import Served, kill, start_serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 4000
MODELS = ("llama-3.1-8b-emulated", "smollm2-135m-emulated")
HAS_MEMORY = {"starting", "awake", "leaving", "waking"}
# What the engines say on the board, ten times a second, until stdin closes.
WATCH = """
import json, select, sys, time
from deployments.signals import Blackboard
from deployments.warm_board import WarmBoard
board = WarmBoard(Blackboard.from_address(sys.argv[1]).gcs_client)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    found = {r.app: [r.state, list(r.gpus)] for r in board.list_reports()}
    print(json.dumps([time.time(), found]), flush=True)
"""


def write_serve_file(folder: Path) -> Path:
    """Both models with one engine each, that wakes in 1 s, on halves of the same GPU."""
    content = yaml.safe_load((ROOT / "deployments" / "serve-emulated.yaml").read_text())
    for application in content["applications"]:
        for model in application["args"].get("models", [application["args"]]):
            (pool,) = (pool for pool in model["pools"] if pool["owned"])
            pool |= {"gpu_shares": 2, "min_replicas": 1, "max_replicas": 1}
            pool["engine_args"] = {"gpu": "demo", "wake_s": 1.0}
            model["pools"] = [pool]
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def write_cluster_file(folder: Path) -> Path:
    """The embedded cluster with a single owned GPU."""
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    content["provider"]["state_dir"] = str(folder / "state")
    content["available_node_types"]["onprem_gpu"]["max_workers"] = 1
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


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


def ask(served: Served, model: str, *, tokens: int = 8) -> tuple[int, float]:
    """Return the status and the seconds of one request."""
    body = {
        "model": model,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "hello"}],
    }
    began_s = time.monotonic()
    answer = httpx.post(
        f"{served.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {served.key}", "X-Data-Class": "restricted"},
        timeout=120,
    )
    return answer.status_code, time.monotonic() - began_s


class Watch:
    """What both engines said while the block ran."""

    def __init__(self, served: Served, folder: Path) -> None:
        token = folder / "state" / served.cluster / "auth_token"
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCH, f"127.0.1.1:{6399 + OFFSET}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        )
        self.seen: list[tuple[float, dict[str, Any]]] = []

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        said, _ = self._process.communicate(timeout=60)
        self.seen = [json.loads(line) for line in said.splitlines()]


def test_two_models_answer_on_one_gpu_and_are_never_both_awake(
    served: Served, folder: Path
) -> None:
    """By turns, then both at once: four requests each, of which one model's wait for the other's.

    The samples are what the engines say of themselves: at most one has memory of the GPU in each.
    """
    with Watch(served, folder) as watch:
        for model in MODELS * 3:
            status, seconds = ask(served, model)
            print(f"{model}: {status} after {seconds:.1f} s")  # noqa: T201 - for who looks
            assert status == 200
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda model: ask(served, model, tokens=40), MODELS * 4))
        assert [status for status, _ in answers] == [200] * 8

    gpus = {gpu for _, found in watch.seen for _, on in found.values() for gpu in on}
    assert len(gpus) == 1
    users = [
        {app for app, (state, _) in found.items() if state in HAS_MEMORY} for _, found in watch.seen
    ]
    assert max(map(len, users)) == 1
    assert set().union(*users) == set(MODELS)
