"""A replica whose engine shares its GPUs with others: asleep until it is told to wake.

It asks its placement group's bundles which GPUs they are, says on the board where it stands, hears
there whether it may be awake, and does it itself: no door is opened for anybody to order it.

    waits ──may──> starting ──> awake <──may── leaving ──streams ended──> asleep ──may──> waking
                                  │               ^                          ^               │
                                  └──── may not ──┘                          └── awake <─────┘

Asleep, its engine has no GPU memory (vLLM's sleep level 1: the weights are in the node's memory),
and it answers 503. Before it sleeps, routers hear that it is leaving, and its streams end.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import ray
from ray import serve
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.spec import PoolSpec
from deployments.warm_board import WarmBoard, WarmOrders, WarmReport, WarmState

# Serve configures handlers for this logger and its children only.
logger = logging.getLogger("ray.serve.tidegate.warm")

_PERIOD_S = 0.3
# Routers hear within a second that it leaves, and a request that was on its way arrives.
_LEAVING_S_MIN = 2.0
_GPU_PROBE_S_MAX = 120.0


class SleepingEngine(Protocol):
    """An engine that can give up its GPU memory and take it back; both return when it is done."""

    async def sleep(self) -> None:
        """Give it up. Nothing is being answered then."""
        ...

    async def wake_up(self) -> None:
        """Take it back."""
        ...


class WarmReplica:
    """Where one such replica stands. All calls are made from the replica's event loop."""

    def __init__(
        self,
        report: WarmReport,
        board: WarmBoard,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._board = board
        self._clock = clock
        self._engine: SleepingEngine | None = None
        self._state: WarmState = "waits"
        self._order = 0
        self._live = 0
        self._leaving_since_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_awake(self) -> bool:
        """Whether routers may send it requests."""
        return self._state == "awake"

    async def wait_for_turn(self) -> None:
        """Return when its engine may start: no other has memory of its GPUs then."""
        logger.info("waits for its turn on %s", ", ".join(self._report.gpus))
        # The board can't call back.
        while not await self._try_to_hear():  # noqa: ASYNC110
            await asyncio.sleep(_PERIOD_S)
        self._state = "starting"
        await self._try_to_hear()

    def start(self, engine: SleepingEngine) -> None:
        """Its engine answers; from now on it sleeps and wakes as it is told."""
        self._engine = engine
        self._state = "awake"
        self._task = asyncio.create_task(self._obey_forever())

    async def stop(self) -> None:
        """Say no more; the board forgets it."""
        if self._task is not None:
            self._task.cancel()
        try:
            await asyncio.to_thread(self._board.forget_report, self._report.replica_id)
        except Exception as exc:  # noqa: BLE001 - as in `_try_to_hear`
            logger.warning("The board keeps this replica's last word for a minute: %s", exc)

    def raise_if_stopped(self) -> None:
        """Raise RuntimeError if it no longer hears orders: an engine may have failed to wake."""
        if self._task is not None and self._task.done():
            raise RuntimeError("the engine no longer sleeps and wakes; its log says why.")

    def guard(self, app: ASGIApp) -> ASGIApp:
        """The application that answers 503 while the engine has no memory, and counts requests."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("method") == "POST" and self._state not in ("awake", "leaving"):
                await _refuse(send)
                return
            self._live += 1
            try:
                await app(scope, receive, send)
            finally:
                self._live -= 1

        return answer

    async def obey(self, *, may: bool) -> None:
        """Take one step towards being awake or not; whatever the engine raises goes on."""
        engine = self._engine
        if engine is None:
            return
        if may and self._state == "leaving":
            self._state = "awake"
        elif may and self._state == "asleep":
            self._state = "waking"
            await engine.wake_up()
            self._state = "awake"
            logger.info("awake on %s", ", ".join(self._report.gpus))
        elif not may and self._state == "awake":
            self._state, self._leaving_since_s = "leaving", self._clock()
        elif not may and self._state == "leaving" and self._has_ended():
            # Requests are refused from here on; none comes between this line and the sleep.
            self._state = "asleep"
            await engine.sleep()
            logger.info("asleep, %s free", ", ".join(self._report.gpus))

    async def hear(self) -> bool | None:
        """Say where it stands, and return whether it may be awake; None = no word that counts.

        Orders older than those it obeys are none: the board has lost the newer ones.
        """
        orders = await asyncio.to_thread(self._exchange)
        if orders.number < self._order:
            return None
        self._order = orders.number
        return self._report.replica_id in orders.awake

    def _exchange(self) -> WarmOrders:
        report = self._report
        self._board.put_report(
            WarmReport(
                replica_id=report.replica_id,
                app=report.app,
                pool=report.pool,
                gpus=report.gpus,
                state=self._state,
                order=self._order,
                live=self._live,
                at_s=time.time(),
            )
        )
        return self._board.get_orders()

    def _has_ended(self) -> bool:
        return self._live == 0 and self._clock() - self._leaving_since_s >= _LEAVING_S_MIN

    async def _obey_forever(self) -> None:
        while True:
            if (may := await self._try_to_hear()) is not None:
                await self.obey(may=may)
            await asyncio.sleep(_PERIOD_S)

    async def _try_to_hear(self) -> bool | None:
        """Return what is heard, None while the board is away: then nothing changes."""
        try:
            return await self.hear()
        except Exception as exc:  # noqa: BLE001 - Ray raises many kinds while the GCS is away
            logger.warning("Orders can't be read, the next try may: %s", exc)
            return None


async def join_warm(pool: PoolSpec) -> WarmReplica | None:
    """Return this Serve replica's place among those that share its GPUs; None if it shares none."""
    if pool.gpu_shares == 1:
        return None
    from ray.experimental.internal_kv import internal_kv_get_gcs_client  # noqa: PLC0415 - Ray

    client = internal_kv_get_gcs_client()
    if client is None:
        raise RuntimeError("a replica that shares its GPUs needs a process connected to Ray.")
    context = serve.get_replica_context()
    report = WarmReport(
        replica_id=context.replica_id.unique_id,
        app=context.app_name,
        pool=pool.name,
        gpus=await _find_gpus(),
        state="waits",
        order=0,
        live=0,
        at_s=time.time(),
    )
    return WarmReplica(report, WarmBoard(client))


async def _find_gpus() -> tuple[str, ...]:
    """Return the GPUs of this replica's placement group, as "node/index".

    A bundle's share stays on the GPU it was reserved on, so a task in it sees what a worker will.
    """
    group = ray.util.get_current_placement_group()
    probes = [
        ray.remote(_look_at_gpus)
        .options(
            num_cpus=0,
            num_gpus=bundle["GPU"],
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=index
            ),
        )
        .remote()
        for index, bundle in enumerate(group.bundle_specs)
        if bundle.get("GPU")
    ]
    async with asyncio.timeout(_GPU_PROBE_S_MAX):
        found: list[list[str]] = await asyncio.gather(*probes)
    return tuple(sorted({gpu for gpus in found for gpu in gpus}))


def _look_at_gpus() -> list[str]:
    context: Any = ray.get_runtime_context()
    return [f"{context.get_node_id()}/{gpu}" for gpu in context.get_accelerator_ids()["GPU"]]


async def _refuse(send: Send) -> None:
    message = "This replica's engine sleeps; another model has its GPU."
    status = HTTPStatus.SERVICE_UNAVAILABLE
    error = {"message": message, "type": status.phrase, "param": None, "code": status.value}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
