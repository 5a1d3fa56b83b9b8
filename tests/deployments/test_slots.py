"""Slots whose holders are gone: told apart from used ones by the requests that name them."""

import asyncio
from typing import Any

from deployments.slots import SlotKeeper


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def _wait_for_ever(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


def open_request(keeper: SlotKeeper, token: str) -> asyncio.Task[None]:
    scope = {"type": "http", "headers": [(b"x-tidegate-slot", token.encode())]}
    return asyncio.create_task(keeper(scope, None, None))  # type: ignore[arg-type]


async def test_a_slot_is_abandoned_once_it_had_no_request_for_some_seconds() -> None:
    clock = Clock()
    keeper = SlotKeeper(_wait_for_ever, clock=clock)
    request = open_request(keeper, "used")
    await asyncio.sleep(0)
    assert keeper.list_abandoned({"used", "unused"}) == []
    clock.now_s = 4.0
    assert keeper.list_abandoned({"used", "unused"}) == ["unused"]
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    clock.now_s = 7.9
    assert keeper.list_abandoned({"used"}) == []
    clock.now_s = 12.0
    assert keeper.list_abandoned({"used"}) == ["used"]


async def test_a_slot_given_back_in_time_is_forgotten() -> None:
    clock = Clock()
    keeper = SlotKeeper(_wait_for_ever, clock=clock)
    keeper.list_abandoned({"a"})
    keeper.list_abandoned(set())
    clock.now_s = 5.0
    assert keeper.list_abandoned({"a"}) == []
