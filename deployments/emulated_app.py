"""The emulated engine's ASGI application: OpenAI's routes over the timing core.

The loop's clock drives the core; a timer wakes it for the next token, so an idle engine costs
nothing. A client that goes away takes its request out of the batch.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deployments.continuous_batching import ContinuousBatch, Performance
from deployments.emulated_wire import Answer, Generation, Served, WireError, read_generation

# Tokens due within one tick are written together, as a busy engine does too.
_TICK_S = 0.002


@dataclass(slots=True)
class _Stream:
    tokens: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class EmulatedEngine:
    """The timing core on the event loop's clock."""

    def __init__(self, performance: Performance, *, slots: int, wake_s: float = 0.0) -> None:
        self._batch = ContinuousBatch(performance, slots=slots)
        self._wake_s = wake_s
        self.is_sleeping = False
        self._streams: dict[str, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_started = False
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0

    async def generate(
        self, *, prompt_tokens: int, output_tokens: int
    ) -> AsyncGenerator[int, None]:
        """Yield the number of tokens produced so far each time there are more, until all are.

        Raises:
            WireError: the request can never fit into KV memory, or the engine sleeps.
        """
        if self.is_sleeping:
            raise WireError("The engine sleeps.", status=HTTPStatus.SERVICE_UNAVAILABLE)
        request_id = uuid.uuid4().hex
        stream = _Stream()
        self._advance()
        try:
            self._batch.submit(request_id, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        except ValueError as exc:
            raise WireError(str(exc), param="max_tokens") from exc
        self.prompt_tokens_total += prompt_tokens
        self._streams[request_id] = stream
        self._arm()
        try:
            while stream.tokens < output_tokens:
                await stream.changed.wait()
                stream.changed.clear()
                yield stream.tokens
        finally:
            self._advance()
            self._batch.abort(request_id)
            del self._streams[request_id]
            self._arm()

    async def sleep(self) -> None:
        """Give up the memory, weights and KV; nothing may run then.

        Raises:
            RuntimeError: requests run or wait.
        """
        if self._batch.running or self._batch.waiting:
            raise RuntimeError(
                f"the engine must be idle to sleep; {self._batch.running} requests run and "
                f"{self._batch.waiting} wait."
            )
        self.is_sleeping = True

    async def wake_up(self) -> None:
        """Take the memory back; returns when requests are taken again."""
        await asyncio.sleep(self._wake_s)
        self.is_sleeping = False

    def describe(self) -> dict[str, float]:
        """How busy the engine is now, under the names routers read."""
        return {
            "running": self._batch.running,
            "waiting": self._batch.waiting,
            "kv_use_ratio": self._batch.kv_use_ratio,
        }

    def _advance(self) -> None:
        for token in self._batch.advance(asyncio.get_running_loop().time()):
            self.generation_tokens_total += 1
            stream = self._streams.get(token.request_id)
            if stream is not None:
                stream.tokens = token.number
                stream.changed.set()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        event_s = self._batch.next_event_s()
        if event_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(event_s, loop.time() + _TICK_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._advance()
        self._arm()


def build_emulated_app(
    performance: Performance, *, served: Served, slots: int, wake_s: float = 0.0
) -> "EmulatedApp":
    """The application and its engine."""
    return EmulatedApp(EmulatedEngine(performance, slots=slots, wake_s=wake_s), served)


class EmulatedApp:
    """Routes of the emulated engine."""

    def __init__(self, engine: EmulatedEngine, served: Served) -> None:
        self.engine = engine
        self._served = served
        self._routes = Starlette(
            routes=[
                Route("/v1/chat/completions", _Generate(self, is_chat=True), methods=["POST"]),
                Route("/v1/completions", _Generate(self, is_chat=False), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._routes(scope, receive, send)

    def read(self, body: bytes, *, is_chat: bool) -> Generation:
        """The request in `body`, checked."""
        return read_generation(body, is_chat=is_chat, served=self._served)

    def start_answer(self, generation: Generation) -> Answer:
        """The answer's bodies, with an id and a time of its own."""
        return Answer(
            generation, served=self._served, answer_id=uuid.uuid4().hex, now_s=int(time.time())
        )

    async def _models(self, _request: Request) -> Response:
        card = {
            "id": self._served.model,
            "object": "model",
            "created": 0,
            "owned_by": "emulated",
            "max_model_len": self._served.context_tokens,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def _health(self, _request: Request) -> Response:
        return Response()

    async def _metrics(self, _request: Request) -> Response:
        """Gauges and counters under vLLM's names; the label says that they are emulated."""
        busy = self.engine.describe()
        values = {
            "num_requests_running": ("gauge", busy["running"]),
            "num_requests_waiting": ("gauge", busy["waiting"]),
            "kv_cache_usage_perc": ("gauge", busy["kv_use_ratio"]),
            "prompt_tokens_total": ("counter", self.engine.prompt_tokens_total),
            "generation_tokens_total": ("counter", self.engine.generation_tokens_total),
        }
        labels = f'{{engine="emulated",model_name="{self._served.model}"}}'
        lines = [
            line
            for name, (kind, value) in values.items()
            for line in (f"# TYPE vllm:{name} {kind}", f"vllm:{name}{labels} {float(value)}")
        ]
        return PlainTextResponse("\n".join([*lines, ""]))


class _Generate:
    """The endpoint of both generating routes, as ASGI, to notice a client that goes away."""

    def __init__(self, app: EmulatedApp, *, is_chat: bool) -> None:
        self._app = app
        self._is_chat = is_chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            _require_json(request)
            generation = self._app.read(await request.body(), is_chat=self._is_chat)
        except WireError as exc:
            await JSONResponse(exc.to_body(), status_code=exc.status)(scope, receive, send)
            return
        respond = self._stream if generation.is_stream else self._whole
        await _until_disconnect(respond(generation, scope, receive, send), receive)

    async def _whole(
        self, generation: Generation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            async with self._tokens(generation) as tokens:
                async for _ in tokens:
                    continue
        except WireError as exc:
            await JSONResponse(exc.to_body(), status_code=exc.status)(scope, receive, send)
            return
        answer = self._app.start_answer(generation)
        await JSONResponse(answer.whole())(scope, receive, send)

    async def _stream(
        self, generation: Generation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with self._tokens(generation) as tokens:
            try:
                written = await anext(tokens)
            except WireError as exc:
                await JSONResponse(exc.to_body(), status_code=exc.status)(scope, receive, send)
                return
            answer = self._app.start_answer(generation)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if generation.is_chat:
                await _send_event(send, answer.role())
            await _send_event(send, answer.delta("".join(generation.pieces[:written])))
            async for produced in tokens:
                await _send_event(send, answer.delta("".join(generation.pieces[written:produced])))
                written = produced
        await _send_event(send, answer.end())
        if generation.include_usage:
            await _send_event(send, answer.usage())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _tokens(self, generation: Generation) -> aclosing[AsyncGenerator[int, None]]:
        """The tokens of an answer; closing it takes the request out of the batch."""
        return aclosing(
            self._app.engine.generate(
                prompt_tokens=generation.prompt_tokens, output_tokens=len(generation.pieces)
            )
        )


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise WireError("Content-Type must be application/json.")


async def _send_event(send: Send, event: dict[str, Any]) -> None:
    body = f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_disconnect(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `work` to its end, or cancel it as soon as the client is gone."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
