"""Frees the slots of a replica whose holders are gone.

A gateway holds a slot from before its request until after its answer. Serve gives a slot back only
when it is told to, so the slots of a gateway that was killed would stay taken for ever. The replica
knows better: each request names its slot, and a slot that stays without a request is nobody's.

This file uses what Ray 2.60.0 keeps private: the set of reserved slots of Serve's replica object,
and that object's actor method `release_slot`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.header_names import SLOT_HEADER

# Serve configures handlers for its own logger and that one's children only.
logger = logging.getLogger("ray.serve.tidegate.slots")

_HEADER = SLOT_HEADER.lower().encode()
_SWEEP_PERIOD_S = 1.0
_IDLE_S_MAX = 4.0


class SlotKeeper:
    """ASGI application around a replica's: notes which slots have a request, frees the others."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._live: dict[str, int] = {}
        self._idle_since_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; its slot counts as used meanwhile."""
        token = _slot_of(scope)
        if token is None:
            await self._app(scope, receive, send)
            return
        self._live[token] = self._live.get(token, 0) + 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._live[token] -= 1
            if not self._live[token]:
                del self._live[token]

    def start(self) -> None:
        """Begin to free slots of the Serve replica this process is; needs an event loop."""
        self._task = asyncio.create_task(self._sweep_forever())

    def stop(self) -> None:
        """Stop freeing slots; idempotent."""
        if self._task is not None:
            self._task.cancel()

    def list_abandoned(self, reserved: set[str]) -> list[str]:
        """The reserved slots without a request for too long, in order."""
        now_s = self._clock()
        idle = reserved - self._live.keys()
        self._idle_since_s = {token: self._idle_since_s.get(token, now_s) for token in idle}
        return sorted(
            token for token, since_s in self._idle_since_s.items() if now_s - since_s >= _IDLE_S_MAX
        )

    async def _sweep_forever(self) -> None:
        actor = ray.get_runtime_context().current_actor
        while True:
            await asyncio.sleep(_SWEEP_PERIOD_S)
            for token in self.list_abandoned(_reserved_slots()):
                try:
                    await actor.release_slot.remote(token)
                except RayError as exc:
                    logger.warning("Slot %s can't be freed, the next sweep may: %s", token, exc)
                else:
                    logger.warning("Freed slot %s: its holder is gone.", token)


def _reserved_slots() -> set[str]:
    """A copy of the slots reserved on the Serve replica this process is."""
    worker = ray._private.worker.global_worker  # noqa: SLF001 - see module
    replica: Any = worker.actors[worker.actor_id]
    reserved: set[str] = replica._replica_impl._reserved_slots  # noqa: SLF001 - see module
    return reserved.copy()


def _slot_of(scope: Scope) -> str | None:
    found = [value for name, value in scope.get("headers", ()) if name == _HEADER]
    return found[0].decode("latin-1") if found else None
