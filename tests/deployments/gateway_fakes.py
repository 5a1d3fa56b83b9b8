"""A pool and a replica without Ray: real decisions, real HTTP on loopback, no engine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from deployments.pools import ReplicaAddress, SeenReplica, SlotLostError
from deployments.replica_http import ReplicaIdentity, ReplicaServer
from deployments.spec import PoolSpec


async def until(is_true: Callable[[], bool]) -> None:
    """Return once `is_true`, within a second."""
    async with asyncio.timeout(1):
        while not is_true():  # noqa: ASYNC110 - what is awaited tells nobody when it happens
            await asyncio.sleep(0.002)


def make_pool_spec(*, site: str, owned: bool, slots: int = 2) -> PoolSpec:
    """A pool with boring defaults."""
    return PoolSpec(
        site=site,
        owned=owned,
        accelerator="cpu",
        market="owned" if owned else "on_demand",
        engine="emulated",
        slots=slots,
        min_replicas=0,
        max_replicas=4,
    )


def make_address(spec: PoolSpec, **changes: Any) -> ReplicaAddress:
    """The address of a replica of this pool that nobody will connect to."""
    base = {
        "url": "http://127.0.0.1:9",
        "site": spec.site,
        "owned": spec.owned,
        "pool": spec.name,
        "engine": "emulated",
        "credential": "credential",
    }
    return ReplicaAddress(**(base | changes))


@dataclass
class FakePool:
    """A pool whose replicas are whatever a test puts there; it counts slots as replicas do.

    `foreign` are slots other gateways hold; `heard` is what we were last told, and when. `broken`
    replicas raise what nobody foresaw.
    """

    spec: PoolSpec
    addresses: dict[str, ReplicaAddress] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    heard_s: float = 0.0
    broken: set[str] = field(default_factory=set)
    asleep: set[str] = field(default_factory=set)
    looks: int = 0
    refused: int = 0

    def add(self, replica_id: str, address: ReplicaAddress | None = None) -> None:
        """Let a replica run."""
        self.addresses[replica_id] = address or make_address(self.spec)

    def list_replicas(self) -> Sequence[SeenReplica]:
        """The replicas as a gateway sees them."""
        return [
            SeenReplica(
                name,
                address,
                self.heard.get(name, 0),
                self.heard_s,
                is_awake=name not in self.asleep,
            )
            for name, address in self.addresses.items()
        ]

    @asynccontextmanager
    async def hold(self, replica_id: str) -> AsyncIterator[str]:
        """Hold a slot as a replica would grant it."""
        await asyncio.sleep(0)
        if replica_id in self.broken:
            raise LookupError(replica_id)
        busy = self.taken.get(replica_id, 0) + self.foreign.get(replica_id, 0)
        if replica_id not in self.addresses or busy >= self.spec.slots:
            self._hear(replica_id)
            self.refused += 1
            raise SlotLostError(replica_id)
        self.taken[replica_id] = self.taken.get(replica_id, 0) + 1
        self._hear(replica_id)
        try:
            yield f"slot-{replica_id}"
        finally:
            self.taken[replica_id] -= 1
            self._hear(replica_id)

    async def look(self, replica_ids: Sequence[str]) -> None:
        """Tell how busy the replicas really are."""
        self.looks += 1
        await asyncio.sleep(0)
        if self.broken:
            raise LookupError
        for replica_id in replica_ids:
            if replica_id in self.addresses:
                self._hear(replica_id)

    def _hear(self, replica_id: str) -> None:
        self.heard_s = time.monotonic()
        self.heard[replica_id] = self.taken.get(replica_id, 0) + self.foreign.get(replica_id, 0)


class ScriptedReplica:
    """An engine's HTTP application that does what its `script` says, one step per request.

    Steps: answer, hang (one event, then silence), cut (one event, then the connection closes),
    close (no byte at all), silent (never answers), error (status 500), refuse (status 400).
    The last step repeats.
    """

    def __init__(self, *script: str) -> None:
        self.script = list(script) or ["answer"]
        self.seen: list[dict[str, Any]] = []
        self.aborted = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _read(receive)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append({"path": scope["path"], "headers": headers, "body": body})
        gone = asyncio.create_task(self._watch(receive))
        try:
            await self._act(step, body, send, gone)
        finally:
            gone.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.aborted.set()

    async def _act(self, step: str, body: Any, send: Any, gone: Awaitable[None]) -> None:
        if step == "close":
            raise ConnectionError
        if step == "silent":
            await gone
        elif step in {"error", "refuse"}:
            refusal = {"error": {"message": "the context is 2048 tokens"}}
            await _send_json(send, 500 if step == "error" else 400, refusal)
        elif not body.get("stream"):
            await _send_json(send, 200, _WHOLE)
        else:
            await self._stream(step, body, send, gone)

    async def _stream(self, step: str, body: Any, send: Any, gone: Awaitable[None]) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_event(send, _WORD)
        if step == "hang":
            await gone
        if step == "cut":
            raise ConnectionError
        await _send_event(send, _LAST)
        if body.get("stream_options", {}).get("include_usage"):
            await _send_event(send, {"choices": [], "usage": _USAGE})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}
_WORD = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]}
_LAST = {"choices": [{"index": 0, "delta": {"content": " you"}, "finish_reason": "stop"}]}
_WHOLE = {
    "choices": [{"index": 0, "message": {"content": "hello you"}, "finish_reason": "stop"}],
    "usage": _USAGE,
}


async def _read(receive: Any) -> Any:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return json.loads(body or b"null")


async def _send_event(send: Any, chunk: Any) -> None:
    piece = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _send_json(send: Any, status: int, value: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


@asynccontextmanager
async def serve_replica(app: ScriptedReplica, spec: PoolSpec) -> AsyncIterator[ReplicaAddress]:
    """A replica's real door with a scripted engine behind it, on a free port of loopback."""
    identity = ReplicaIdentity(
        pool=spec.name, engine="emulated", site=spec.site, is_owned=spec.owned, slots=spec.slots
    )
    server = ReplicaServer(app, identity=identity, host="127.0.0.1")
    server.start()
    try:
        yield ReplicaAddress(
            url=server.url,
            site=spec.site,
            owned=spec.owned,
            pool=spec.name,
            engine="emulated",
            credential=identity.credential,
        )
    finally:
        await server.stop(grace_s=0.2)
