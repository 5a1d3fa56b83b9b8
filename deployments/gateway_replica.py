"""The gateway as a Serve deployment, and the small root of each model's application.

Both stand on owned nodes only: a gateway holds keys and sees every prompt, and Serve gives the
ingress of every application an HTTP port of its own, which must not be open on a cloud node.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve

from deployments.auth import Keyring, keys_path
from deployments.gateway import Answer, Gateway
from deployments.http_api import HttpApi
from deployments.metrics import GatewayMetrics
from deployments.model_desk import ModelDesk
from deployments.model_queue import ModelQueue
from deployments.pool_router import ServePool
from deployments.signals import Blackboard, ClosingPools
from deployments.spec import ModelSpec
from deployments.sse import list_chunks
from deployments.upstream import Upstream
from deployments.wire import ChatRequest, CompletionBase, TextRequest

if TYPE_CHECKING:
    from deployments.app import GatewayArgs

logger = logging.getLogger("ray.serve.tidegate.gateway")

_OWNED = {"owned": "true"}
# The resource Ray gives to the head node alone.
_HEAD = {"node:__internal_head__": 0.001}
_ONGOING_MAX = 100_000
_SIGNALS_PERIOD_S = 0.5
_DEAD_AFTER_S = 60.0
_HEALTH_CHECK_PERIOD_S = 1.0
_HEALTH_CHECK_TIMEOUT_S = 5.0
_GRACEFUL_SHUTDOWN_S = 600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on the Python handle: OpenAI's object, and what HTTP says in headers."""

    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(slots=True)
class HandleCall:
    """One call on the Python handle as the gateway sees it."""

    request: CompletionBase
    authorization: str | None
    stated_class: str | None
    request_id: str

    async def read(self) -> CompletionBase:
        """The request, checked when it was made."""
        return self.request


class GatewayReplica:
    """One gateway: the HTTP door, the same operations as methods, and its signals."""

    def __init__(self, args: "GatewayArgs") -> None:
        self._id = uuid.uuid4().hex[:12]
        desks = [
            ModelDesk(
                model,
                ModelQueue(
                    [ServePool(pool, app=model.name) for pool in model.pools],
                    limits=args.limits.to_queue_limits(model),
                ),
            )
            for model in args.models
        ]
        self._gateway = Gateway(
            desks,
            keyring=Keyring(keys_path(args.keys_file)),
            upstream=Upstream(),
            metrics=GatewayMetrics(),
        )
        self._http = HttpApi(self._gateway, body_bytes_max=args.limits.body_bytes_max)
        self._board = Blackboard.from_ray()
        self._closing = ClosingPools(self._board)
        self._publisher = asyncio.get_running_loop().create_task(self._publish_signals())

    def __serve_build_asgi_app__(self) -> HttpApi:
        """The ASGI application Serve puts behind this deployment's HTTP port."""
        return self._http

    async def chat(self, *, key: str, request: ChatRequest, data_class: str | None = None) -> Reply:
        """A chat completion, whole; the same rules as over HTTP. Raises RequestRefusedError."""
        return await self._whole(key, request, data_class)

    async def complete(
        self, *, key: str, request: TextRequest, data_class: str | None = None
    ) -> Reply:
        """A text completion, whole; the same rules as over HTTP. Raises RequestRefusedError."""
        return await self._whole(key, request, data_class)

    async def chat_stream(
        self, *, key: str, request: ChatRequest, data_class: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """A chat completion as OpenAI's chunks; use `handle.options(stream=True)`."""
        async for chunk in self._stream(key, request, data_class):
            yield chunk

    async def complete_stream(
        self, *, key: str, request: TextRequest, data_class: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """A text completion as OpenAI's chunks; use `handle.options(stream=True)`."""
        async for chunk in self._stream(key, request, data_class):
            yield chunk

    async def models(self, *, key: str) -> dict[str, Any]:
        """The models this key may use."""
        return self._gateway.list_models(f"Bearer {key}")

    async def __del__(self) -> None:
        """Say goodbye, so that nobody counts what waits here; Serve calls this after the drain."""
        self._publisher.cancel()
        await self._board_call(self._board.forget_signals, self._id)
        await self._gateway.close()

    async def check_health(self) -> None:
        """Raise if this gateway no longer tells the autoscaler anything."""
        if self._publisher.done():
            raise RuntimeError("the gateway must publish its signals; the task that does ended.")

    async def _whole(self, key: str, request: CompletionBase, data_class: str | None) -> Reply:
        answer = await self._answer(key, request.model_copy(update={"stream": False}), data_class)
        try:
            return Reply(json.loads(answer.body), answer.headers)
        finally:
            answer.close()

    async def _stream(
        self, key: str, request: CompletionBase, data_class: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        answer = await self._answer(key, request.model_copy(update={"stream": True}), data_class)
        try:
            async for piece in answer.pieces():
                for chunk in list_chunks(piece):
                    yield chunk
        finally:
            answer.close()

    async def _answer(self, key: str, request: CompletionBase, data_class: str | None) -> Answer:
        call = HandleCall(request, f"Bearer {key}", data_class, uuid.uuid4().hex)
        return await self._gateway.answer(call)

    async def _publish_signals(self) -> None:
        await self._board_call(self._forget_the_dead)
        while True:
            signals = self._gateway.observe_signals(gateway=self._id, now_s=time.time())
            await self._board_call(self._board.put_signals, signals)
            await self._obey_closing()
            await asyncio.sleep(_SIGNALS_PERIOD_S)

    async def _obey_closing(self) -> None:
        """Stop routing to the pools the autoscaler is about to lower to zero."""
        await self._board_call(lambda: self._closing.read(now_s=time.time()))
        self._gateway.stop_routing(self._closing.list_closing())

    def _forget_the_dead(self) -> None:
        """Take away what gateways said that were killed before they could do so themselves."""
        for signals in self._board.list_signals():
            if time.time() - signals.published_s > _DEAD_AFTER_S:
                self._board.forget_signals(signals.gateway)

    async def _board_call(self, call: Callable[..., None], *args: Any) -> None:
        try:
            await asyncio.to_thread(call, *args)
        except Exception as exc:  # noqa: BLE001 - Ray raises many kinds while the GCS is away
            logger.warning("The blackboard wasn't reached, the next try may: %s", exc)


class ModelRoot:
    """The root of a model's application: it ties its pools to it and answers nothing."""

    def __init__(self, *_pools: Any) -> None: ...

    def __serve_build_asgi_app__(self) -> Any:
        """An ASGI application without a single path."""
        return _nothing_here


def gateway_deployment(args: "GatewayArgs") -> Any:
    """The gateway's application, bound to its arguments."""
    deployment = serve.deployment(serve.ingress()(GatewayReplica)).options(
        name="Gateway",
        num_replicas=args.replicas,
        max_ongoing_requests=_ONGOING_MAX,
        ray_actor_options={
            "num_cpus": args.num_cpus,
            "label_selector": _OWNED,
            "resources": _HEAD if args.is_on_head else {},
        },
        # Two of them on one machine would be lost together.
        max_replicas_per_node=None if args.is_on_head else 1,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=_GRACEFUL_SHUTDOWN_S,
        # A lone gateway's replacement answers before it stops; of several, the others answer.
        max_surge_percent=100 if args.replicas == 1 else 0,
    )
    return deployment.bind(args)


def model_root(model: ModelSpec, pools: list[Any]) -> Any:
    """The application of one model: its root, bound to its bound pools."""
    deployment = serve.deployment(serve.ingress()(ModelRoot)).options(
        name=f"{model.name}-root",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "label_selector": _OWNED},
    )
    return deployment.bind(*pools)


async def _nothing_here(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})
