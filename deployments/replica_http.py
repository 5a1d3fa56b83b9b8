"""The door of an engine replica: its own HTTP server, deny-by-default, the same for every engine.

One credential per replica, a list of paths compared byte by byte, a bound on requests and bodies,
and the last line of residency: a replica on a node that isn't owned refuses restricted data,
whatever its caller decided. What it logs is the class and the id of a request, never its content.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.header_names import CLASS_HEADER, ENGINE_HEADER, REQUEST_ID_HEADER

# Serve configures handlers for this logger and its children only.
logger = logging.getLogger("ray.serve.tidegate.replica")

_GENERATE = frozenset({b"/v1/chat/completions", b"/v1/completions"})
_READ = frozenset({b"/v1/models", b"/health", b"/metrics"})
_FREE_CLASSES = frozenset({"public", "internal"})
_BODY_BYTES_MAX = 32 * 1024 * 1024
_LOGGED_ID_CHARS_MAX = 128
# Longer than an HTTP client keeps idle connections, so that the client closes first and never
# sends a request into a connection that is just being closed.
_KEEP_ALIVE_S = 75


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """What a replica knows about itself; `credential` is new for every replica."""

    pool: str
    engine: str
    site: str
    is_owned: bool
    slots: int
    credential: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def requests_max(self) -> int:
        """Requests held at once before more are refused.

        Above `slots`, since a caller's slot is free a moment before the engine notices the
        disconnect behind it.
        """
        return 2 * self.slots + 16


class ReplicaGuard:
    """ASGI application in front of an engine's: admits what is listed, refuses the rest."""

    def __init__(self, app: ASGIApp, identity: ReplicaIdentity) -> None:
        self._app = app
        self._identity = identity
        self._expected = f"Bearer {identity.credential}".encode()
        self._requests_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything that isn't HTTP is closed."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _send_refusal(send, refusal, engine=self._identity.engine)
            return
        self._requests_held += 1
        try:
            await self._app(scope, receive, self._naming_engine(send))
        finally:
            self._requests_held -= 1

    def _refusal(self, scope: Scope) -> "Refusal | None":
        headers = list(scope["headers"])
        given = _values(headers, "authorization")
        if len(given) != 1 or not secrets.compare_digest(given[0], self._expected):
            return Refusal(HTTPStatus.UNAUTHORIZED, "This replica needs its own credential.")
        if not _is_listed(scope):
            return Refusal(HTTPStatus.NOT_FOUND, "This replica has no such path.")
        if scope["method"] != "POST":
            return None
        return self._refuse_body(headers) or self._refuse_class(headers) or self._refuse_load()

    def _refuse_body(self, headers: list[tuple[bytes, bytes]]) -> "Refusal | None":
        lengths = _values(headers, "content-length")
        if len(lengths) != 1 or not lengths[0].isdigit():
            return Refusal(HTTPStatus.LENGTH_REQUIRED, "The request must state its Content-Length.")
        if int(lengths[0]) > _BODY_BYTES_MAX:
            return Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body must be at most {_BODY_BYTES_MAX} bytes; got {int(lengths[0])}.",
            )
        return None

    def _refuse_class(self, headers: list[tuple[bytes, bytes]]) -> "Refusal | None":
        """Refuse what may not leave owned sites; a class that isn't stated counts as restricted."""
        stated = [value.decode("latin-1") for value in _values(headers, CLASS_HEADER.lower())]
        data_class = stated[0] if len(stated) == 1 and stated[0] in _FREE_CLASSES else "restricted"
        ids = _values(headers, REQUEST_ID_HEADER.lower())
        request_id = ids[0].decode("latin-1")[:_LOGGED_ID_CHARS_MAX] if ids else "-"
        is_refused = data_class == "restricted" and not self._identity.is_owned
        logger.info(
            "request received: pool=%s site=%s class=%s request_id=%r refused=%s",
            self._identity.pool,
            self._identity.site,
            data_class,
            request_id,
            is_refused,
        )
        if is_refused:
            return Refusal(
                HTTPStatus.FORBIDDEN,
                f"Restricted data must stay on owned sites; {self._identity.site} is not owned.",
            )
        return None

    def _refuse_load(self) -> "Refusal | None":
        if self._requests_held >= self._identity.requests_max:
            return Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"This replica holds {self._identity.requests_max} requests already.",
                headers=((b"retry-after", b"1"),),
            )
        return None

    def _naming_engine(self, send: Send) -> Send:
        name = (ENGINE_HEADER.lower().encode(), self._identity.engine.encode())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), name]}
            await send(message)

        return send_named


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer the guard gives itself, in OpenAI's error shape."""

    status: HTTPStatus
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def to_body(self) -> bytes:
        """The JSON body."""
        error = {
            "message": self.message,
            "type": self.status.phrase,
            "param": None,
            "code": self.status.value,
        }
        return json.dumps({"error": error}).encode()


class ReplicaServer:
    """An HTTP server on a free port of the node's address, in the event loop that starts it."""

    def __init__(self, app: ASGIApp, *, identity: ReplicaIdentity, host: str) -> None:
        self.identity = identity
        self._socket = socket.create_server((host, 0), backlog=1024)
        # Connections inherit it. asyncio's own loop doesn't set it on sockets it didn't open, and
        # each answer's body would wait 40 ms for the client to acknowledge the headers.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            ReplicaGuard(app, identity),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = _QuietServer(config)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; the socket has been listening since construction."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    def raise_if_stopped(self) -> None:
        """Raise RuntimeError once the server no longer answers."""
        if self._task is None or self._task.done() or self._server.should_exit:
            raise RuntimeError(
                f"the HTTP server of pool {self.identity.pool} must answer; it ended."
            )

    def begin_stop(self) -> None:
        """Accept nothing new; what is being answered goes on until it ends."""
        self._server.should_exit = True

    async def stop(self, *, grace_s: float) -> None:
        """End within `grace_s`, cutting what is still being answered then. Idempotent."""
        self.begin_stop()
        if self._task is None:
            self._socket.close()
            return
        _, unfinished = await asyncio.wait({self._task}, timeout=grace_s)
        if unfinished:
            self._server.force_exit = True
            await asyncio.wait(unfinished, timeout=grace_s)

    def describe(self) -> dict[str, Any]:
        """The metadata by which a gateway finds and opens this replica."""
        return {
            "url": self.url,
            "credential": self.identity.credential,
            "site": self.identity.site,
            "owned": self.identity.is_owned,
            "pool": self.identity.pool,
            "engine": self.identity.engine,
        }


class _QuietServer(uvicorn.Server):
    """A server that leaves the process's signals to Ray, whose process it is."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _is_listed(scope: Scope) -> bool:
    """Whether method and path are on the list, as sent: no decoding, no normalising."""
    path = scope.get("raw_path") or scope["path"].encode()
    wanted = {"POST": _GENERATE, "GET": _READ}.get(scope["method"], frozenset())
    return path in wanted


def _values(headers: Iterable[tuple[bytes, bytes]], name: str) -> list[bytes]:
    wanted = name.encode()
    return [value for key, value in headers if key.lower() == wanted]


async def _send_refusal(send: Send, refusal: Refusal, *, engine: str) -> None:
    body = refusal.to_body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The body of a refused request hasn't been read, so the connection can't be used again.
        (b"connection", b"close"),
        (ENGINE_HEADER.lower().encode(), engine.encode()),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
