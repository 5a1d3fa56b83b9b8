"""The whole embedded cluster with emulated engines: residency under load, bad input, kills, ports.

Earns its minutes: these promises span gateway, Serve, autoscaler and launcher, and only a cluster
started by `tidegate serve` has them all. One cluster is shared by the module.
"""

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cluster.processes import MARK_CLUSTER, list_marked
from tests.e2e.served import Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

MODEL = "llama-3.1-8b-emulated"


def wait_until(is_true: Callable[[], bool], *, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(0.3)
    return False


def ask(emulated: Served, *, max_tokens: int = 4, data_class: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {emulated.key}"}
    if data_class:
        headers["X-Data-Class"] = data_class
    body = {
        "model": MODEL,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "hello"}],
    }
    return httpx.post(
        f"{emulated.url}/v1/chat/completions", json=body, headers=headers, timeout=120
    )


def answers(emulated: Served) -> bool:
    try:
        return ask(emulated).status_code == 200
    except httpx.HTTPError:
        return False


def find_process(emulated: Served, title: str) -> int:
    """The cluster's process whose title begins so; marks tell it from neighbours."""
    for pid in list_marked(MARK_CLUSTER, emulated.cluster):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        if command.startswith(title) or (title in command and title.startswith("autoscaling")):
            return pid
    raise AssertionError(f"no process {title!r} in {emulated.cluster}")


def test_a_quiet_request_stays_on_the_owned_site(emulated: Served) -> None:
    answer = ask(emulated)
    assert answer.status_code == 200
    assert answer.headers["x-tidegate-site"] == "onprem"
    assert answer.headers["x-tidegate-engine"] == "emulated"


def test_the_gateway_answers_without_a_key_only_about_its_health(emulated: Served) -> None:
    assert httpx.get(f"{emulated.url}/health").status_code == 200
    assert httpx.get(f"{emulated.url}/v1/models").status_code == 401


def test_a_killed_gateway_is_replaced(emulated: Served) -> None:
    killed = find_process(emulated, "ray::ServeReplica:gateway:Gateway")
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: answers(emulated), timeout_s=60)
    assert find_process(emulated, "ray::ServeReplica:gateway:Gateway") != killed


def test_a_killed_replica_is_replaced(emulated: Served) -> None:
    title = f"ray::ServeReplica:{MODEL}:onprem-cpu-owned"
    killed = find_process(emulated, title)
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: answers(emulated), timeout_s=90)
    assert find_process(emulated, title) != killed


def test_a_killed_autoscaler_is_replaced_within_ten_seconds(emulated: Served) -> None:
    def autoscalers() -> list[int]:
        return [
            pid
            for pid in list_marked(MARK_CLUSTER, emulated.cluster)
            if b"autoscaling.monitor" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and b"--stay" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    before = autoscalers()
    assert len(before) == 1
    os.kill(before[0], signal.SIGKILL)
    assert wait_until(lambda: len(autoscalers()) == 1 and autoscalers() != before, timeout_s=10)
    assert answers(emulated)


def test_mixed_load_keeps_restricted_requests_at_home_and_loses_none(emulated: Served) -> None:
    """200 requests, a third restricted, against 8 to 16 owned slots and up to 16 cloud slots.

    Each takes about 0.5 s + 12 tokens x 0.1 s = 1.7 s, so all need about 200 x 1.7 / 16 = 21 s.
    """
    answers = asyncio.run(send_mixed(emulated, count=200))
    by_status = Counter(answer.status_code for answer in answers)
    assert by_status == {200: 200}
    sites_of_restricted = Counter(
        answer.headers["x-tidegate-site"]
        for answer in answers
        if answer.headers["x-tidegate-data-class"] == "restricted"
    )
    assert set(sites_of_restricted) == {"onprem"}
    assert sites_of_restricted["onprem"] == 67


async def send_mixed(emulated: Served, *, count: int) -> list[httpx.Response]:
    classes = ["restricted", "public", "internal"]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=emulated.url, timeout=180, limits=limits) as client:
        return await asyncio.gather(
            *(
                client.post(
                    "/v1/chat/completions",
                    json={
                        "model": MODEL,
                        "max_tokens": 12,
                        "messages": [{"role": "user", "content": "hello"}],
                    },
                    headers={
                        "Authorization": f"Bearer {emulated.key}",
                        "X-Data-Class": classes[number % 3],
                    },
                )
                for number in range(count)
            )
        )


def test_no_client_port_listens_on_a_worker_node(emulated: Served) -> None:
    """Serve's entry is on the head's loopback only; workers have addresses of their own."""
    port = int(emulated.url.rsplit(":", 1)[1])
    for address in ("127.0.1.2", "127.0.1.3", "127.0.1.4"):
        with socket.socket() as probe:
            probe.settimeout(1)
            assert probe.connect_ex((address, port)) != 0, address
