"""The head's Ray is killed and comes back by itself; a gateway on another node never notices.

Earns its minutes because the keeper, Ray's persistent control store, Serve's recovery and our
gateway meet only here: what stays available while the head is away is a promise to operators.
"""

import asyncio
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.config import read_cluster_file
from cluster.processes import MARK_CLUSTER, list_marked
from tests.e2e.served import Served, kill, start_serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OFFSET = 4300
BACK_S_MAX = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("head")


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
    """Return the embedded cluster with a persistent control store and a keeper on the head."""
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    stop, start_ray, start_autoscaler = content["head_start_ray_commands"]
    script = f"""
        export RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$HOME/gcs
        mkdir -p $HOME/gcs
        {start_ray}
        {start_autoscaler}
    """
    keep = f"python -m cluster.head_keeper --gcs-port $TIDEGATE_PORT_GCS {shlex.quote(script)}"
    content["head_start_ray_commands"] = [stop, keep]
    content["provider"]["state_dir"] = str(folder / "state")
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def write_serve_file(folder: Path) -> Path:
    """Return the emulated applications with two gateways, one of them away from the head."""
    content = yaml.safe_load((ROOT / "deployments" / "serve-emulated.yaml").read_text())
    content["http_options"]["host"] = "0.0.0.0"
    # One on a node at most: the second node has one of them.
    content["applications"][0]["args"] |= {"is_on_head": False, "replicas": 2}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def find_gateway(state_dir: Path) -> str:
    """Return where the gateway off the head listens: Serve chose the port and told HAProxy."""
    (config,) = state_dir.rglob("haproxy.cfg")
    address = re.search(
        r"server SERVE_REPLICA_gateway-\S+ (127\.0\.1\.[2-9]:\d+) ", config.read_text()
    )
    assert address is not None, config.read_text()
    return f"http://{address[1]}"


async def ask(client: httpx.AsyncClient, url: str) -> str:
    """Return the status of one short request, or what kept it from having one."""
    body = {
        "model": "llama-3.1-8b-emulated",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "hello"}],
    }
    try:
        return str((await client.post(f"{url}/v1/chat/completions", json=body)).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


async def stream(client: httpx.AsyncClient, url: str) -> list[str]:
    """Return the lines of one long stream."""
    body = {
        "model": "llama-3.1-8b-emulated",
        "max_tokens": 600,
        "stream": True,
        "messages": [{"role": "user", "content": "hello"}],
    }
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        return [line async for line in answer.aiter_lines() if line]


def kill_heads_ray(cluster: str) -> None:
    """Kill the control store and the head's raylet, as a crash would."""
    (gcs,) = [pid for pid in list_marked(MARK_CLUSTER, cluster) if read_name(pid) == "gcs_server"]
    node = read_node(gcs)
    for pid in list_marked(MARK_CLUSTER, cluster):
        if read_name(pid) in {"gcs_server", "raylet"} and read_node(pid) == node:
            os.kill(pid, signal.SIGKILL)


def read_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def read_node(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(entry for entry in environment if entry.startswith("TIDEGATE_NODE="))


async def test_a_killed_head_comes_back_and_a_gateway_elsewhere_loses_no_request(
    served: Served, folder: Path
) -> None:
    """Requests every half second from before the kill until the head's own entry answers again."""
    headers = {"Authorization": f"Bearer {served.key}"}
    gateway = find_gateway(folder / "state")
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        assert await ask(client, gateway) == "200"
        assert await ask(client, served.url) == "200"
        streaming = asyncio.create_task(stream(client, gateway))
        await asyncio.sleep(1.0)
        kill_heads_ray(served.cluster)
        killed_s = time.monotonic()
        elsewhere, entry = [], []
        # The first answers may still come from the dying entry: it must fail before it is back.
        while not (entry and entry[-1] == "200" and set(entry) != {"200"}):
            assert time.monotonic() - killed_s < BACK_S_MAX, entry
            elsewhere.append(await ask(client, gateway))
            entry.append(await ask(client, served.url))
            await asyncio.sleep(0.5)
        back_s = time.monotonic() - killed_s
        sys.stdout.write(f"the head's entry answered again {back_s:.1f} s after the kill\n")
        assert set(elsewhere) == {"200"}
        assert (await streaming)[-1] == "data: [DONE]"
