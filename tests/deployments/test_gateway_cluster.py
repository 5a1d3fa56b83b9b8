"""The gateway on real Ray Serve: two gateways, an owned and a paid pool on nodes of their own.

It earns its minute: only here do Serve's slots, routers, HAProxy and the death of a gateway take
part. Engines are emulated. One cluster serves all tests of the module.
"""

import asyncio
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.processes import MARK_CLUSTER, MARK_NODE, end_marked, list_marked
from deployments.auth import create_key

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SLOTS = 8
ANSWER_TOKENS = 5
ANSWER_S = 1.0
"""An answer of the emulated engine: 0.3 s to the first token, then 0.1 s and a bit for each."""


def pool(site: str, *, owned: bool) -> dict[str, Any]:
    return {
        "site": site,
        "owned": owned,
        "accelerator": "cpu",
        "market": "owned" if owned else "on_demand",
        "engine": "emulated",
        "gpus_per_replica": 1,
        "slots": SLOTS,
        "min_replicas": 1,
        "max_replicas": 1,
        "engine_args": {"gpu": "demo"},
    }


class Cluster:
    """Two Ray nodes on this machine with the gateway on them."""

    def __init__(self, folder: Path) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self.folder = folder
        self.key = create_key(folder / "keys.yaml", tenant="lab")
        ports = _free_ports(12)
        self.base_url = f"http://127.0.0.1:{ports[0]}"
        self._http_port = ports[0]
        self._gcs_port = ports[1]
        self._ports = ports[4:]
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        haproxy = {
            "CONFIG_FILE_LOC": folder / "ha" / "haproxy.cfg",
            "SOCKET_PATH": folder / "ha" / "admin.sock",
            "SERVER_STATE_BASE": folder / "ha",
            "SERVER_STATE_FILE": folder / "ha" / "server-state",
            "METRICS_PORT": ports[2],
            "STATS_PORT": ports[3],
        }
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SPT_NOENV": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # Serve kills a proxy that takes longer to begin; a busy machine needs more than 5 s.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            **{f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in haproxy.items()},
            MARK_CLUSTER: self.name,
        }
        self._driver: subprocess.Popen[str] | None = None

    def start(self) -> None:
        head = ["--head", f"--port={self._gcs_port}", f"--temp-dir={self.folder / 'ray'}"]
        head += [
            "--include-dashboard=false",
            "--no-monitor",
            f"--ray-client-server-port={self._ports.pop()}",
        ]
        self._start_node("onprem", [*head, "--labels", "site=onprem,owned=true,accelerator=cpu"])
        address = f"127.0.0.1:{self._gcs_port}"
        self._start_node(
            "cloud",
            [
                f"--address={address}",
                "--labels",
                "site=cloud,owned=false,accelerator=cpu,market=on_demand",
            ],
        )
        pools = [pool("onprem", owned=True), pool("cloud", owned=False)]
        args = {
            "models": [{"name": "m", "context_tokens": 2048, "pools": pools}],
            "replicas": 2,
            "keys_file": str(self.folder / "keys.yaml"),
            "limits": {"wait_s_max": 60.0},
        }
        script = Path(__file__).with_name("run_gateway.py")
        self._driver = subprocess.Popen(
            [sys.executable, str(script), address, str(self._http_port), json.dumps(args)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "driver.log").open("w"),
            text=True,
        )
        assert self._read() == "ready"

    def ask(self, **question: Any) -> Any:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(question) + "\n")
        self._driver.stdin.flush()
        return self._read()

    def list_gateways(self) -> set[int]:
        return {
            pid
            for pid in list_marked(MARK_CLUSTER, self.name)
            if "ServeReplica:gateway" in " ".join(_command(pid))
        }

    def list_node(self, node: str) -> list[int]:
        return list_marked(MARK_NODE, f"{self.name}-{node}")

    def read_received(self, site: str) -> list[str]:
        """What the replicas of a site logged about the requests they received."""
        logs = self.folder.glob(f"ray/session_2*/logs/serve/replica_m_{site}*.log")
        lines = "".join(path.read_text() for path in logs).splitlines()
        return [line for line in lines if "request received" in line]

    def stop(self) -> None:
        if self._driver is not None:
            self._driver.kill()
            self._driver.wait()
        end_marked(MARK_CLUSTER, self.name)

    def _start_node(self, node: str, arguments: list[str]) -> None:
        mark = f"{self.name}-{node}"
        agents = {
            "dashboard-agent-listen-port": self._ports.pop(),
            "runtime-env-agent-port": self._ports.pop(),
            "metrics-export-port": self._ports.pop(),
        }
        ray = Path(sys.executable).with_name("ray")
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=4", "--num-gpus=1"]
        common += [f"--{name}={port}" for name, port in agents.items()]
        # Ray gives a node 30 s to start, whatever the machine; a busy one needs a second try.
        for _ in range(2):
            started = subprocess.run(
                [str(ray), "start", *common, "--disable-usage-stats", *arguments],
                env={**self._environment, MARK_NODE: mark},
                check=False,
                capture_output=True,
                text=True,
            )
            if started.returncode == 0:
                return
            end_marked(MARK_NODE, mark)
        raise AssertionError(started.stdout + started.stderr)

    def _read(self) -> Any:
        assert self._driver is not None
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        assert line, (self.folder / "driver.log").read_text()[-4000:]
        return json.loads(line)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray's sockets live in this folder and a socket's path is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="tg-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


async def chat(
    client: httpx.AsyncClient, *, data_class: str, stream: bool = False, max_tokens: int = 0
) -> httpx.Response:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": max_tokens or ANSWER_TOKENS,
        "stream": stream,
    }
    headers = {"X-Data-Class": data_class}
    return await client.post("/v1/chat/completions", json=body, headers=headers)


def open_client(cluster: Cluster) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=cluster.base_url,
        headers={"Authorization": f"Bearer {cluster.key}"},
        timeout=120,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )


def is_whole(response: httpx.Response) -> bool:
    text = response.text.strip()
    ended = text.endswith("data: [DONE]") if text.startswith("data:") else text.endswith("}")
    return response.status_code == 200 and ended and '"finish_reason":"length"' in text


async def test_under_saturation_nothing_is_lost_and_nothing_restricted_leaves(
    cluster: Cluster,
) -> None:
    """200 at once on 16 slots; three in ten are restricted."""
    dice = random.Random(2)
    classes = ["restricted" if dice.random() < 0.3 else "internal" for _ in range(200)]
    async with open_client(cluster) as client:
        responses = await asyncio.gather(
            *(chat(client, data_class=one, stream=dice.random() < 0.7) for one in classes)
        )
    assert [response.status_code for response in responses] == [200] * 200
    assert all(is_whole(response) for response in responses)
    sites = {
        (one, response.headers["x-tidegate-site"])
        for one, response in zip(classes, responses, strict=True)
    }
    assert sites == {("internal", "onprem"), ("internal", "cloud"), ("restricted", "onprem")}
    at_cloud = cluster.read_received("cloud")
    assert len(at_cloud) + len(cluster.read_received("onprem")) == 200
    assert at_cloud
    assert all("class=internal" in line for line in at_cloud)


async def test_below_owned_capacity_restricted_requests_are_answered_at_once(
    cluster: Cluster,
) -> None:
    """0.8 x 8 slots / 1 s = 6.4 requests a second for 5 s, half of them restricted."""
    period_s = ANSWER_S / (0.8 * SLOTS)
    async with open_client(cluster) as client:
        tasks = []
        for number in range(32):
            data_class = "restricted" if number % 2 else "internal"
            tasks.append(asyncio.create_task(chat(client, data_class=data_class)))
            await asyncio.sleep(period_s)
        responses = await asyncio.gather(*tasks)
    restricted = [response for number, response in enumerate(responses) if number % 2]
    answered = [response for response in restricted if response.status_code == 200]
    assert len(answered) >= 0.95 * len(restricted)
    assert {response.headers["x-tidegate-site"] for response in answered} == {"onprem"}


async def test_slots_one_gateway_freed_are_found_by_the_other(cluster: Cluster) -> None:
    """Twice as many as there are owned slots, all restricted: two rounds, whoever serves them."""
    async with open_client(cluster) as client:
        started_s = time.monotonic()
        responses = await asyncio.gather(
            *(chat(client, data_class="restricted") for _ in range(2 * SLOTS))
        )
        took_s = time.monotonic() - started_s
    assert all(response.status_code == 200 for response in responses)
    assert took_s < 4 * ANSWER_S


def test_the_python_handle_follows_the_same_rules(cluster: Cluster) -> None:
    question = {"key": cluster.key, "data_class": "restricted", "max_tokens": 3}
    reply = cluster.ask(do="chat", **question)
    assert reply["headers"]["X-Tidegate-Site"] == "onprem"
    assert reply["body"]["choices"][0]["message"]["content"].startswith("[emulated]")
    chunks = cluster.ask(do="stream", **question)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    wrong = cluster.ask(do="chat", **(question | {"key": "wrong"}))
    assert wrong["refused"]["error"]["code"] == "invalid_api_key"


def test_every_gateway_tells_the_autoscaler_what_it_sees(cluster: Cluster) -> None:
    assert len(cluster.ask(do="signals")) >= 2


def test_no_port_on_the_cloud_node_lets_a_client_in(cluster: Cluster) -> None:
    """Each listening port of the node is asked with a valid key: Ray's and the engine's refuse."""
    ports = set()
    for pid in cluster.list_node("cloud"):
        connections = psutil.Process(pid).net_connections(kind="tcp")
        ports |= {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
        assert "haproxy" not in " ".join(_command(pid))
    assert ports
    assert [port for port in sorted(ports) if _lets_in(port, cluster.key)] == []


async def test_a_killed_gateways_slots_are_free_within_ten_seconds_and_it_is_replaced(
    cluster: Cluster,
) -> None:
    """One of two dies while both hold every owned slot with streams of half a minute.

    A slot without a request is freed after 4 s, seen at most 1 s later; the rest is for a busy
    machine and for the round of requests that proves it.
    """
    before = cluster.list_gateways()
    async with open_client(cluster) as client:
        streams = [
            asyncio.create_task(chat(client, data_class="restricted", stream=True, max_tokens=300))
            for _ in range(SLOTS)
        ]
        await asyncio.sleep(2)
        killed_s = time.monotonic()
        os.kill(min(before), signal.SIGKILL)
        await asyncio.sleep(1)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        while not await _fill_owned(client):  # noqa: ASYNC110 - the cluster tells nobody
            await asyncio.sleep(0.2)
        freed_s = time.monotonic() - killed_s
        while len(after := cluster.list_gateways()) < len(before) or min(before) in after:
            assert time.monotonic() - killed_s < 60
            await asyncio.sleep(0.5)
    assert freed_s < 10 + 2 * ANSWER_S


async def _fill_owned(client: httpx.AsyncClient) -> bool:
    """Whether as many restricted requests as there are slots are answered in one round."""
    started_s = time.monotonic()
    calls = [chat(client, data_class="restricted") for _ in range(SLOTS)]
    responses = await asyncio.gather(*calls, return_exceptions=True)
    is_answered = all(
        isinstance(response, httpx.Response) and response.status_code == 200
        for response in responses
    )
    return is_answered and time.monotonic() - started_s < 2.5 * ANSWER_S


def _lets_in(port: int, key: str) -> bool:
    """Whether a client's request is answered there; Ray's metrics port says 200 to any path."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key}"}
    try:
        response = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=headers, timeout=5
        )
    except httpx.HTTPError:
        return False
    return "choices" in response.text


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
