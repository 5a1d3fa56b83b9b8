"""Engines to test against: emulated ones in this process, and pools on a Ray of their own."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.processes import (
    KEEP_MARKS_READABLE,
    MARK_CLUSTER,
    MARK_REPLICA,
    end_marked,
    list_marked,
)
from deployments.emulated_app import build_emulated_app
from deployments.emulated_wire import Served
from deployments.gpu_performance import find_row
from deployments.replica_http import ReplicaIdentity, ReplicaServer

RUN_POOL = Path(__file__).with_name("run_pool.py")
MODEL = "smollm2-135m"
CONTEXT_TOKENS = 512
SLOTS = 4
_ENGINE_SEEN_S_MAX = 30.0
START_S_MAX = 420.0


def make_pool(*, engine: str, site: str = "onprem", **changes: Any) -> dict[str, Any]:
    """A pool of one replica on owned nodes of `site`."""
    pool = {"site": site, "owned": True, "accelerator": "cpu", "market": "owned"}
    limits = {"slots": SLOTS, "min_replicas": 1, "max_replicas": 1}
    return {**pool, **limits, "engine": engine, **changes}


@dataclass(frozen=True)
class Replica:
    """A replica's door, as its metadata describes it."""

    url: str
    credential: str
    engine: str

    def client(self, **headers: str) -> httpx.Client:
        """A client the replica admits, sending internal data unless `headers` say otherwise."""
        base = {
            "Authorization": f"Bearer {self.credential}",
            "X-Tidegate-Data-Class": "internal",
            "X-Request-Id": "test",
        }
        return httpx.Client(base_url=self.url, headers={**base, **headers}, timeout=120)


@dataclass
class EmulatedHost:
    """Emulated replicas on an event loop in a thread of this process."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    servers: list[ReplicaServer] = field(default_factory=list)

    def start(self, *, gpu: str, is_owned: bool = True, slots: int = SLOTS) -> Replica:
        """Return a replica that answers now."""
        identity = ReplicaIdentity(
            pool="pool", engine="emulated", site="site", is_owned=is_owned, slots=slots
        )
        served = Served(model=MODEL, context_tokens=CONTEXT_TOKENS, answer_tokens=16)

        async def open_server() -> ReplicaServer:
            app = build_emulated_app(find_row(gpu).to_performance(), served=served, slots=slots)
            server = ReplicaServer(app, identity=identity, host="127.0.0.1")
            server.start()
            return server

        server = asyncio.run_coroutine_threadsafe(open_server(), self.loop).result(10)
        self.servers.append(server)
        return Replica(url=server.url, credential=identity.credential, engine="emulated")


class PoolHost:
    """Pools on a one-node Ray in a process of its own; nothing of it outlives `close()`."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._mark = f"pool-test-{os.getpid()}-{time.monotonic_ns()}"
        self._folder = tempfile.mkdtemp(prefix="tg-")
        self._log = Path(self._folder) / "run_pool.log"
        environment = {
            **os.environ,
            **KEEP_MARKS_READABLE,
            MARK_CLUSTER: self._mark,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_EC2_METADATA_DISABLED": "true",
            "TIDEGATE_TEST_RAY_DIR": self._folder,
        }
        self._process = subprocess.Popen(
            [sys.executable, RUN_POOL, json.dumps(model)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        self.pools = self._read()

    def ask(self) -> dict[str, Any]:
        """What the pools look like now."""
        self.pools = self._ask("pools")
        return self.pools

    def ask_llm_server(self) -> dict[str, Any]:
        """The placement group `ray.serve.llm.LLMServer` would make for the first pool."""
        return self._ask("llm server")

    def delete_pools(self) -> None:
        """Begin to take every pool down, as an operator would."""
        self._ask("delete")

    def find_engine(self) -> tuple[str, dict[int, str]]:
        """The mark of the one engine that runs here, and the titles of its processes by id.

        Asks /proc again until EngineCore is among them: a process can be met between two titles.
        """
        deadline_s = time.monotonic() + _ENGINE_SEEN_S_MAX
        while True:
            found = self._list_engines()
            if len(found) == 1:
                ((mark, titles),) = found.items()
                if any("EngineCore" in title for title in titles.values()):
                    return mark, titles
            assert time.monotonic() < deadline_s, f"one engine expected: {found}\n{self.tail()}"
            time.sleep(0.1)

    def _list_engines(self) -> dict[str, dict[int, str]]:
        found: dict[str, dict[int, str]] = {}
        for pid in list_marked(MARK_CLUSTER, self._mark):
            try:
                environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
                title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            for text in environment:
                if text.startswith(f"{MARK_REPLICA}="):
                    found.setdefault(text.partition("=")[2], {})[pid] = title
        return found

    def wait_for_replica(
        self, pool: str, *, other_than: str | None = None, within_s: float = START_S_MAX
    ) -> dict[str, Any]:
        """The pool's replica once it takes requests; `other_than` is the id of one that died."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            for replica in self.pools[pool]["replicas"]:
                if replica["metadata"] and replica["id"] != other_than:
                    return dict(replica)
            time.sleep(0.5)
            self.ask()
        raise AssertionError(f"no replica within {within_s} s: {self.pools}\n{self.tail()}")

    def tail(self) -> str:
        """The end of the log, for failures."""
        return self._log.read_text()[-4000:]

    def close(self) -> None:
        """Stop everything, whatever state it is in."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        end_marked(MARK_CLUSTER, self._mark)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line.removeprefix("ANSWER ")))
        raise AssertionError(f"the pool host ended: {self._process.wait()}\n{self.tail()}")
