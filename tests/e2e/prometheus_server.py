"""Debian's Prometheus on a loopback port, ended by its id; and questions to it."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_START_S_MAX = 20.0
_STOP_S_MAX = 20.0


@dataclass(frozen=True)
class PrometheusServer:
    """One that answers."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series an expression gives now; fails with Prometheus' own words."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=10).json()
        assert answer["status"] == "success", f"{expr}\n{answer}"
        return list(answer["data"]["result"])

    def targets(self) -> dict[str, list[str]]:
        """Health of the targets by job."""
        answer = httpx.get(f"{self.url}/api/v1/targets", timeout=10).json()
        found: dict[str, list[str]] = {}
        for target in answer["data"]["activeTargets"]:
            said = f"{target['health']} {target['scrapeUrl']} {target['lastError']}".strip()
            found.setdefault(target["labels"]["job"], []).append(said)
        return found


@contextmanager
def run_prometheus(folder: Path, configuration: str) -> Iterator[PrometheusServer]:
    """Start it with this configuration; it keeps its data in the folder."""
    file = folder / "prometheus.yml"
    file.write_text(configuration)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={file}", f"--web.listen-address={address}"),
                *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server = PrometheusServer(f"http://{address}")
        is_ready = wait_until(
            lambda: process.poll() is not None or _is_ready(server), timeout_s=_START_S_MAX
        )
        assert is_ready, log.read_text()
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_true: Callable[[], bool], *, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(0.5)
    return False


def _is_ready(server: PrometheusServer) -> bool:
    try:
        return httpx.get(f"{server.url}/-/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
