"""The gateway's HTTP door: five paths, nothing else, every refusal in OpenAI's shape.

A plain ASGI application: what it does per token is one `send`. It watches for the client leaving
from the moment the body is read, so waiting in the queue ends with the client too.
"""

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deployments.gateway import Answer, Gateway
from deployments.metrics import CONTENT_TYPE
from deployments.refusals import (
    BodyTooLargeError,
    InvalidRequestError,
    NotAuthorisedError,
    RequestRefusedError,
    UnknownThingError,
    WrongMethodError,
)
from deployments.wire import ChatRequest, CompletionBase, TextRequest, parse_request

logger = logging.getLogger("ray.serve.tidegate.http")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/health": "GET",
    "/metrics": "GET",
}
_JSON = "application/json"
_DRAIN_BYTES_MAX = 64 * 1024 * 1024
_DRAIN_S_MAX = 2.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


class ClientGoneError(Exception):
    """The client closed its connection before its request was read."""


class HttpCall:
    """One HTTP request as the gateway sees it."""

    def __init__(self, scope: Scope, receive: Receive, *, body_bytes_max: int) -> None:
        pairs = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        self._headers = dict(pairs)
        self._names = [name for name, _ in pairs]
        given_id = self._headers.get(b"x-request-id", "")
        self.request_id = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        self._path = scope["path"]
        self._receive = receive
        self._body_bytes_max = body_bytes_max
        self.watch: asyncio.Task[None] | None = None
        self._is_read = False
        self._worker = asyncio.current_task()

    @property
    def authorization(self) -> str | None:
        """The `Authorization` header; NotAuthorisedError if there are several."""
        if self._names.count(b"authorization") > 1:
            raise NotAuthorisedError("Authorization must be given once; it was given more often.")
        return self._headers.get(b"authorization")

    @property
    def stated_class(self) -> str | None:
        """The `X-Data-Class` header; InvalidRequestError if there are several.

        Of two classes one is looser, and which one a reader believes must not decide.
        """
        if self._names.count(b"x-data-class") > 1:
            raise InvalidRequestError(
                "X-Data-Class must be given once; it was given more often.",
                "X-Data-Class",
                "repeated_header",
            )
        return self._headers.get(b"x-data-class")

    async def read(self) -> CompletionBase:
        """The request in the body; afterwards the client is watched."""
        raw = await self._read_body()
        self.watch = asyncio.create_task(self._cancel_when_gone())
        if self._path == ChatRequest.path:
            return parse_request(ChatRequest, raw)
        return parse_request(TextRequest, raw)

    def naming(self, send: Send) -> Send:
        """`send`, with the request's id on the answer, unless Serve puts it there.

        Serve gives every request an id header before we see it, and adds it to every answer: a
        second one from us would make two.
        """
        if b"x-request-id" in self._headers:
            return send

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = (b"x-request-id", self.request_id.encode())
                message = {**message, "headers": [*message["headers"], name]}
            await send(message)

        return send_named

    async def _read_body(self) -> bytes:
        stated = self._headers.get(b"content-length", "0")
        if stated.isdigit() and int(stated) > self._body_bytes_max:
            raise self._too_large()
        pieces = []
        bytes_read = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            piece = message.get("body", b"")
            bytes_read += len(piece)
            if bytes_read > self._body_bytes_max:
                raise self._too_large()
            pieces.append(piece)
            if not message.get("more_body", False):
                self._is_read = True
                return b"".join(pieces)

    async def drain(self) -> None:
        """Read on and forget, within bounds: a client that is still sending hears no refusal."""
        bytes_left = _DRAIN_BYTES_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S_MAX):
                while not self._is_read and bytes_left > 0:
                    message = await self._receive()
                    bytes_left -= len(message.get("body", b""))
                    self._is_read = not message.get("more_body", False)

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if self._worker is not None:
            self._worker.cancel()

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"The body must be at most {self._body_bytes_max} bytes.")


class HttpApi:
    """The ASGI application in front of a `Gateway`."""

    def __init__(self, gateway: Gateway, *, body_bytes_max: int) -> None:
        self._gateway = gateway
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request in a task of its own, so that a leaving client can end it."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        worker = asyncio.create_task(self._serve(scope, receive, send))
        try:
            await asyncio.wait({worker})
        finally:
            worker.cancel()
        if not worker.cancelled():
            worker.result()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpCall(scope, receive, body_bytes_max=self._body_bytes_max)
        send = call.naming(send)
        try:
            await self._route(call, scope, send)
        except RequestRefusedError as exc:
            await call.drain()
            await _send_refusal(send, exc)
        except ClientGoneError:
            logger.info("Request %s: the client left before it was read.", call.request_id)
        except Exception:
            logger.exception("Request %s failed by a mistake of ours.", call.request_id)
            mistake = RequestRefusedError("The gateway made a mistake; it is logged.")
            await _send_refusal(send, mistake)
        finally:
            if call.watch is not None:
                call.watch.cancel()

    async def _route(self, call: HttpCall, scope: Scope, send: Send) -> None:
        path = _exact_path(scope)
        if path not in _METHODS:
            raise UnknownThingError("There is nothing at this path.", code="unknown_path")
        if scope["method"] != _METHODS[path]:
            raise WrongMethodError(f"{path} is used with {_METHODS[path]}.")
        if path == "/health":
            await _send_whole(send, 200, b'{"status":"ok"}', {"Content-Type": _JSON})
        elif path == "/metrics":
            figures = self._gateway.metrics.render()
            await _send_whole(send, 200, figures, {"Content-Type": CONTENT_TYPE})
        elif path == "/v1/models":
            models = json.dumps(self._gateway.list_models(call.authorization)).encode()
            await _send_whole(send, 200, models, {"Content-Type": _JSON})
        else:
            await _send_answer(send, await self._gateway.answer(call))


async def _send_answer(send: Send, answer: Answer) -> None:
    try:
        if not answer.is_stream:
            await _send_whole(send, 200, answer.body, {"Content-Type": _JSON, **answer.headers})
            return
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            **answer.headers,
        }
        await send(_start(200, headers))
        async for piece in answer.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        answer.close()


async def _send_refusal(send: Send, refusal: RequestRefusedError) -> None:
    headers = {"Content-Type": _JSON, **refusal.headers}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == 401:  # noqa: PLR2004 - HTTP
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status == 413:  # noqa: PLR2004 - HTTP
        # A body beyond the drain's bound is unread; its connection can't be used again.
        headers["Connection"] = "close"
    await _send_whole(send, refusal.status, refusal.to_body(), headers)


async def _send_whole(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await send(_start(status, {**headers, "Content-Length": str(len(body))}))
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _start(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def _exact_path(scope: Scope) -> str:
    """The path as it was sent: `//v1` and `%2e%2e` are other paths, not ours."""
    raw = scope.get("raw_path")
    path: str = scope["path"]
    if raw is not None and raw.split(b"?")[0].decode("latin-1") != path:
        return ""
    return path


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
