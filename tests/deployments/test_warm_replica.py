"""A replica that shares its GPU: it waits for its turn, obeys, refuses in its sleep, ends streams.

The board is in memory, the clock is told, the engine only writes down what it was asked to do.
"""

import asyncio
from typing import Any

import pytest

from deployments import warm_replica
from deployments.continuous_batching import Performance
from deployments.emulated_app import EmulatedEngine
from deployments.emulated_wire import WireError
from deployments.engine import SleepingVllm
from deployments.warm_board import WarmBoard, WarmOrders, WarmReport
from deployments.warm_replica import WarmReplica
from tests.autoscaling.brain_bench import Memory

REPORT = WarmReport(
    replica_id="r1", app="m", pool="p", gpus=("n/0",), state="waits", order=0, live=0, at_s=0.0
)


class Engine:
    """Writes down what it was asked; `fails` is raised by the next call."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: Exception | None = None

    async def sleep(self) -> None:
        self.asked.append("sleep")

    async def wake_up(self) -> None:
        self.asked.append("wake")
        if self.fails is not None:
            raise self.fails


class Bench:
    """One warm replica with an application behind its guard that answers when it is told to."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.board = WarmBoard(self.memory)
        self.engine = Engine()
        self.now_s = 0.0
        self.replica = WarmReplica(REPORT, self.board, clock=lambda: self.now_s)
        self.may_end = asyncio.Event()
        self.app = self.replica.guard(self._answer)
        self._number = 0

    async def _answer(self, _scope: Any, _receive: Any, send: Any) -> None:
        await self.may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def order(self, *awake: str) -> None:
        self._number += 1
        self.board.put_orders(WarmOrders(self._number, dict.fromkeys(awake, 0.0)))

    async def step(self, *, after_s: float = 0.0) -> str:
        """Hear and obey once, say so, and return what the board says then."""
        self.now_s += after_s
        may = await self.replica.hear()
        assert may is not None
        await self.replica.obey(may=may)
        await self.replica.hear()
        (report,) = self.board.list_reports()
        assert report.order == self._number
        return report.state

    async def ask(self, method: str = "POST") -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app({"type": "http", "method": method}, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])


@pytest.fixture
async def bench() -> Bench:
    """A replica whose engine is up and awake; nothing asks it yet."""
    made = Bench()
    made.order("r1")
    await made.replica.wait_for_turn()
    (report,) = made.board.list_reports()
    assert report.state == "starting"
    made.replica._engine, made.replica._state = made.engine, "awake"
    return made


async def test_its_engine_does_not_start_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_replica, "_PERIOD_S", 0.0)
    bench = Bench()
    bench.order("another")
    turn = asyncio.create_task(bench.replica.wait_for_turn())
    while not bench.board.list_reports():  # noqa: ASYNC110 - the board can't call back
        await asyncio.sleep(0)
    assert not turn.done()
    assert bench.board.list_reports()[0].state == "waits"
    bench.order("r1")
    await turn
    assert bench.board.list_reports()[0].state == "starting"


async def test_it_sleeps_when_told_and_wakes_when_told(bench: Bench) -> None:
    """Two seconds pass between the end of routing and sleep: what was on its way arrives."""
    bench.may_end.set()
    bench.order()
    assert await bench.step() == "leaving"
    assert not bench.replica.is_awake
    assert await bench.ask() == 200
    assert await bench.step(after_s=1.9) == "leaving"
    assert await bench.step(after_s=0.1) == "asleep"
    bench.order("r1")
    assert await bench.step() == "awake"
    assert bench.replica.is_awake
    assert bench.engine.asked == ["sleep", "wake"]


async def test_its_streams_end_before_it_sleeps(bench: Bench) -> None:
    stream = asyncio.create_task(bench.ask())
    await asyncio.sleep(0)
    bench.order()
    assert await bench.step() == "leaving"
    assert await bench.step(after_s=600) == "leaving"
    assert bench.board.list_reports()[0].live == 1
    bench.may_end.set()
    assert await stream == 200
    assert await bench.step() == "asleep"


async def test_told_otherwise_in_time_it_stays_awake(bench: Bench) -> None:
    bench.order()
    assert await bench.step() == "leaving"
    bench.order("r1")
    assert await bench.step() == "awake"
    assert bench.engine.asked == []


async def test_asleep_it_refuses_requests_and_still_tells_how_it_is(bench: Bench) -> None:
    bench.may_end.set()
    bench.order()
    await bench.step()
    assert await bench.step(after_s=2) == "asleep"
    assert await bench.ask() == 503
    assert await bench.ask("GET") == 200


async def test_without_a_board_that_can_be_read_nothing_changes(bench: Bench) -> None:
    bench.memory.values[b"warm-orders"] = b"{}}"
    assert await bench.replica._try_to_hear() is None
    assert bench.replica.is_awake


async def test_orders_older_than_those_it_obeys_do_not_count(bench: Bench) -> None:
    """The board lost them all: what is awake stays so until newer ones come."""
    bench.order("r1")
    assert await bench.step() == "awake"
    bench.memory.values.pop(b"warm-orders")
    assert await bench.replica.hear() is None
    assert bench.replica.is_awake


async def test_an_engine_that_cannot_wake_ends_the_replica(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve's health check hears of it and replaces the replica."""
    monkeypatch.setattr(warm_replica, "_PERIOD_S", 0.0)
    bench.replica._state = "asleep"
    bench.engine.fails = RuntimeError("out of memory")
    bench.replica.start(bench.engine)
    bench.replica._state = "asleep"
    with pytest.raises(RuntimeError, match="out of memory"):
        await bench.replica._task  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="no longer sleeps and wakes"):
        bench.replica.raise_if_stopped()


async def test_what_it_said_is_forgotten_when_it_stops(bench: Bench) -> None:
    await bench.replica.stop()
    assert bench.board.list_reports() == []


def test_what_cannot_be_read_on_the_board_is_taken_off() -> None:
    memory = Memory()
    memory.values[b"warm/odd"] = b"{}"
    assert WarmBoard(memory).list_reports() == []
    assert memory.values == {}


async def test_an_emulated_engine_sleeps_idle_and_refuses_until_it_woke() -> None:
    performance = Performance(0.001, 0.0, 0.001, 0.0, 1000)
    engine = EmulatedEngine(performance, slots=2, wake_s=0.0)
    stream = engine.generate(prompt_tokens=10, output_tokens=500)
    await anext(stream)
    with pytest.raises(RuntimeError, match="must be idle to sleep; 1 requests run"):
        await engine.sleep()
    await stream.aclose()
    await engine.sleep()
    assert engine.describe()["kv_use_ratio"] == 0
    with pytest.raises(WireError) as refused:
        await anext(engine.generate(prompt_tokens=10, output_tokens=1))
    assert refused.value.status == 503
    await engine.wake_up()
    assert [n async for n in engine.generate(prompt_tokens=10, output_tokens=1)] == [1]


async def test_vllm_is_asked_for_the_sleep_that_keeps_its_weights() -> None:
    calls: list[tuple[str, dict[str, int]]] = []

    class Client:
        async def sleep(self, **given: int) -> None:
            calls.append(("sleep", given))

        async def wake_up(self) -> None:
            calls.append(("wake_up", {}))

    engine = SleepingVllm(Client())
    await engine.sleep()
    await engine.wake_up()
    assert calls == [("sleep", {"level": 1}), ("wake_up", {})]
