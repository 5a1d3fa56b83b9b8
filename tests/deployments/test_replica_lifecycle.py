"""Replicas in a real Ray: placed by site, found by metadata, replaced when killed, leaving nothing.

Real Ray is the point: placement groups, the metadata's way through Serve's controller, and what
happens to an engine's processes when the actor above them is killed can't be shown without it.
Emulated: one Ray start, about 20 s. vLLM: two engine starts, on the engine of the contract suite.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.processes import MARK_REPLICA, list_marked
from tests.deployments.replica_hosts import (
    CONTEXT_TOKENS,
    MODEL,
    SLOTS,
    PoolHost,
    Replica,
    make_pool,
)

POOL = "onprem-cpu-owned"
GONE_S_MAX = 10.0
# In order: Serve asks the replica to stop, which ends its engine, and only then the replica goes.
TAKEN_DOWN_S_MAX = 45.0

pytestmark = pytest.mark.ray


def open_door(found: dict[str, Any]) -> Replica:
    metadata = found["metadata"]
    return Replica(
        url=metadata["url"], credential=metadata["credential"], engine=metadata["engine"]
    )


@pytest.fixture(scope="module")
def emulated_pools(open_pool_host: Callable[[dict[str, Any]], PoolHost]) -> PoolHost:
    """A pool on the only site there is, and one on a site without nodes."""
    pools = [
        make_pool(engine="emulated", engine_args={"gpu": "h100-8b"}),
        make_pool(engine="emulated", site="mars"),
    ]
    return open_pool_host({"name": MODEL, "context_tokens": CONTEXT_TOKENS, "pools": pools})


def test_a_replica_is_found_by_the_metadata_it_published(emulated_pools: PoolHost) -> None:
    found = emulated_pools.wait_for_replica(POOL, within_s=120)
    metadata = dict(found["metadata"])
    assert metadata.pop("url").startswith("http://")
    assert len(metadata.pop("credential")) >= 32
    assert metadata == {"site": "onprem", "owned": True, "pool": POOL, "engine": "emulated"}
    with open_door(found).client() as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == MODEL


def test_a_replica_is_reserved_on_its_own_site_only(emulated_pools: PoolHost) -> None:
    """Without the selector on the bundle the group of `mars` would be reserved on `onprem`."""
    emulated_pools.wait_for_replica(POOL, within_s=120)
    pools = emulated_pools.ask()
    (onprem,) = pools[POOL]["placement_groups"]
    (mars,) = pools["mars-cpu-owned"]["placement_groups"]
    assert onprem == {"bundles": [{"CPU": 2.0, "GPU": 1.0}], "state": "CREATED"}
    assert mars["state"] == "PENDING"
    assert pools["mars-cpu-owned"]["replicas"] == []


def test_a_killed_emulated_replica_is_replaced(emulated_pools: PoolHost) -> None:
    killed = emulated_pools.wait_for_replica(POOL, within_s=120)
    os.kill(killed["pid"], signal.SIGKILL)
    found = emulated_pools.wait_for_replica(POOL, other_than=killed["id"], within_s=60)
    assert found["metadata"]["credential"] != killed["metadata"]["credential"]
    with open_door(found).client() as client:
        assert client.get("/health").status_code == 200


@pytest.mark.vllm
def test_the_placement_group_is_the_one_llm_server_would_make(vllm_host: PoolHost) -> None:
    """Serve's group for our replica equals LLMServer's for the same configuration."""
    vllm_host.wait_for_replica(POOL)
    (group,) = vllm_host.ask()[POOL]["placement_groups"]
    expected = vllm_host.ask_llm_server()
    assert group["bundles"] == expected["bundles"]
    assert expected["strategy"] == "PACK"


@pytest.mark.vllm
def test_an_engine_that_dies_ends_its_streams_with_an_error_and_is_replaced(
    vllm_host: PoolHost,
) -> None:
    found = vllm_host.wait_for_replica(POOL)
    streams = [Stream(open_door(found)) for _ in range(SLOTS)]
    for stream in streams:
        stream.wait_for_text()
    mark, titles = vllm_host.find_engine()
    (core,) = [pid for pid, title in titles.items() if "EngineCore" in title]
    os.kill(core, signal.SIGKILL)
    killed_s = time.monotonic()
    for stream in streams:
        stream.join(GONE_S_MAX)
        assert stream.is_error_shown, stream.lines[-3:]
    assert_gone(mark, found["pid"], since_s=killed_s)
    vllm_host.wait_for_replica(POOL, other_than=found["id"])


@pytest.mark.vllm
def test_a_killed_vllm_replica_leaves_no_process_and_is_replaced(vllm_host: PoolHost) -> None:
    found = vllm_host.wait_for_replica(POOL)
    mark, titles = vllm_host.find_engine()
    assert len(titles) >= 2
    os.kill(found["pid"], signal.SIGKILL)
    assert_gone(mark, found["pid"], since_s=time.monotonic())
    replaced = vllm_host.wait_for_replica(POOL, other_than=found["id"])
    with open_door(replaced).client() as client:
        body = {"model": MODEL, "prompt": "The tide", "max_tokens": 4}
        assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.vllm
def test_a_pool_that_is_taken_down_leaves_no_process(vllm_host: PoolHost) -> None:
    found = vllm_host.wait_for_replica(POOL)
    mark, _ = vllm_host.find_engine()
    vllm_host.delete_pools()
    assert_gone(mark, found["pid"], since_s=time.monotonic(), within_s=TAKEN_DOWN_S_MAX)


def assert_gone(
    mark: str, replica_pid: int, *, since_s: float, within_s: float = GONE_S_MAX
) -> None:
    """Nothing of a replica is left soon after it was hit."""
    while left := [*list_marked(MARK_REPLICA, mark), *find_process(replica_pid)]:
        assert time.monotonic() < since_s + within_s, f"still there: {left}"
        time.sleep(0.1)


def find_process(pid: int) -> list[int]:
    """The process, unless it is gone or waits only to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return []
    return [] if state == "Z" else [pid]


class Stream(threading.Thread):
    """A long stream, read in a thread of its own until it ends, however it ends."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(daemon=True)
        self._replica = replica
        self.lines: list[str] = []
        self.is_cut = False
        self.start()

    def run(self) -> None:
        body = {
            "model": MODEL,
            "prompt": "Tell me a long story.",
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            with (
                self._replica.client() as client,
                client.stream("POST", "/v1/completions", json=body) as response,
            ):
                for line in response.iter_lines():
                    self.lines.extend([line] if line else [])
        except httpx.HTTPError:
            self.is_cut = True

    @property
    def is_error_shown(self) -> bool:
        return self.is_cut or any('"error"' in line for line in self.lines)

    def wait_for_text(self) -> None:
        deadline_s = time.monotonic() + 60
        while not self.lines:
            assert time.monotonic() < deadline_s
            assert self.is_alive()
            time.sleep(0.05)
