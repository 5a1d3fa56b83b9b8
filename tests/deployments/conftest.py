"""Engines every test of this folder may ask for."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.models import ensure_smollm2
from tests.deployments.replica_hosts import (
    CONTEXT_TOKENS,
    MODEL,
    EmulatedHost,
    PoolHost,
    Replica,
    make_pool,
)


@pytest.fixture(scope="session")
def emulated_host() -> Iterator[EmulatedHost]:
    host = EmulatedHost()
    thread = threading.Thread(target=host.loop.run_forever, daemon=True)
    thread.start()
    yield host
    for server in host.servers:
        asyncio.run_coroutine_threadsafe(server.stop(grace_s=1), host.loop).result(10)
    host.loop.call_soon_threadsafe(host.loop.stop)
    thread.join(10)
    host.loop.close()


@pytest.fixture(scope="session")
def open_pool_host() -> Iterator[Callable[[dict[str, Any]], PoolHost]]:
    """Opens a PoolHost, one at a time; all are closed at the end."""
    hosts: list[PoolHost] = []

    def open_host(model: dict[str, Any]) -> PoolHost:
        hosts.append(PoolHost(model))
        return hosts[-1]

    yield open_host
    for host in hosts:
        host.close()


@pytest.fixture(scope="session")
def vllm_host(open_pool_host: Callable[[dict[str, Any]], PoolHost]) -> PoolHost:
    """A pool with one real vLLM replica; one engine for the whole session."""
    weights = ensure_smollm2(lambda _share, _step: None)
    return open_pool_host(
        {
            "name": MODEL,
            "weights": str(weights),
            "context_tokens": CONTEXT_TOKENS,
            "pools": [
                make_pool(engine="vllm"),
            ],
        }
    )


@pytest.fixture(scope="session")
def vllm_replica(vllm_host: PoolHost) -> Replica:
    replica = vllm_host.wait_for_replica("onprem-cpu-owned")
    metadata = replica["metadata"]
    return Replica(url=metadata["url"], credential=metadata["credential"], engine="vllm")
