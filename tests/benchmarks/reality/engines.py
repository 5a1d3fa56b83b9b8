"""The three engines that are compared: vLLM, the emulated engine, and the simulator's model."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from autoscaling.simulator.engine_model import EngineModel, Work
from autoscaling.simulator.traffic import TraceRequest, Traffic
from deployments.continuous_batching import Performance
from deployments.emulated_app import build_emulated_app
from deployments.emulated_wire import Served
from deployments.replica_http import ReplicaIdentity, ReplicaServer
from infra.models import ensure_smollm2
from tests.benchmarks.reality.engine_client import Door
from tests.benchmarks.reality.replay import Answer
from tests.deployments.replica_hosts import PoolHost, make_pool

MODEL = "smollm2-135m"
CONTEXT_TOKENS = 2048
SLOTS = 8
_START_S_MAX = 30.0


@contextmanager
def open_vllm() -> Iterator[Door]:
    """Start one real vLLM replica, as production starts it, in a Ray of its own; end it after."""
    weights = ensure_smollm2(lambda _share, _step: None)
    pool = make_pool(engine="vllm", slots=SLOTS)
    model = {
        "name": MODEL,
        "weights": str(weights),
        "context_tokens": CONTEXT_TOKENS,
        "pools": [pool],
    }
    host = PoolHost(model)
    try:
        replica = host.wait_for_replica("onprem-cpu-owned")
        yield Door.from_metadata(replica["metadata"], model=MODEL)
    finally:
        host.close()


@contextmanager
def open_emulated(performance: Performance) -> Iterator[Door]:
    """Start an emulated replica in a process of its own; end it after."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_emulated, args=(performance, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_S_MAX):
            raise TimeoutError(f"the emulated engine must listen within {_START_S_MAX:.0f} s.")
        yield Door.from_metadata(ours.recv(), model=MODEL)
    finally:
        ours.close()
        process.join(_START_S_MAX)
        process.kill()


def _serve_emulated(performance: Performance, pipe: Connection) -> None:
    """Answer until the other end of the pipe is closed."""
    asyncio.run(_answer_until_closed(performance, pipe))


async def _answer_until_closed(performance: Performance, pipe: Any) -> None:
    served = Served(model=MODEL, context_tokens=CONTEXT_TOKENS, answer_tokens=16)
    app = build_emulated_app(performance, served=served, slots=SLOTS)
    identity = ReplicaIdentity("emulated", "emulated", "onprem", is_owned=True, slots=4 * SLOTS)
    server = ReplicaServer(app, identity=identity, host="127.0.0.1")
    server.start()
    pipe.send(server.describe())
    try:
        await asyncio.to_thread(pipe.recv)
    except EOFError:
        await server.stop(grace_s=1.0)


def replay_model(
    traffic: Traffic, performance: Performance, *, chunk_tokens: int | None
) -> list[Answer]:
    """Return the answers that the simulator's engine model gives, in order of arrival.

    `chunk_tokens` None = prefills don't slow decodes, as in the emulated engine.
    """
    engine = EngineModel(performance, slots=SLOTS, chunk_tokens=chunk_tokens, now_s=0.0)
    asked: dict[Work, TraceRequest] = {}
    first_s: dict[Work, float] = {}
    found: dict[Work, Answer] = {}

    def run_until(until_s: float) -> None:
        while (event_s := engine.next_event_s()) is not None and event_s <= until_s:
            for milestone in engine.advance(event_s):
                work = milestone.work
                if milestone.is_first:
                    first_s[work] = event_s
                if milestone.is_last:
                    found[work] = _answer(asked[work], first_s[work], event_s)
        engine.advance(until_s)

    for request in traffic.requests:
        run_until(request.arrival_s)
        work = Work(request.prompt_tokens, request.output_tokens)
        asked[work] = request
        engine.submit(work, request.arrival_s)
    while (event_s := engine.next_event_s()) is not None:
        run_until(event_s)
    return [found[work] for work in asked]


def _answer(request: TraceRequest, first_s: float, ended_s: float) -> Answer:
    return Answer(
        sent_s=request.arrival_s,
        ttft_s=first_s - request.arrival_s,
        tpot_s=(ended_s - first_s) / max(1, request.output_tokens - 1),
        ended_s=ended_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
    )
