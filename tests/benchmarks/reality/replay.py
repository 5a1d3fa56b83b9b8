"""Open-loop replay: each request is sent at its time, whether or not earlier ones are answered."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from autoscaling.simulator.traffic import TraceRequest, Traffic
from infra.stream_client import Stream, StreamClient

_SAY_EVERY_S = 15.0
# What the emulated engine adds to a chat of one message: once for the answer's beginning, once for
# the message; and the bytes it takes for a token.
_CHAT_TOKENS = 8
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it. Times in s; `ttft_s` None = there was no first token.

    `sent_s` counts from the start of the traffic. `error` is empty for an answer that ended well.
    """

    sent_s: float
    ttft_s: float | None = None
    tpot_s: float = 0.0
    ended_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    site: str = ""
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for came."""
        return self.ttft_s is not None and not self.error


Send = Callable[[TraceRequest, float], Awaitable[Answer]]
"""Sends a request now; is also told the monotonic time at which the traffic began."""


async def replay(
    traffic: Traffic, send: Send, *, say: Callable[[str], None]
) -> tuple[list[Answer], float]:
    """Return all answers in order of arrival, and by how many seconds the latest was sent late.

    Returns once the traffic's time is over and every answer has ended.
    """
    began_s = time.monotonic()
    tasks: list[asyncio.Task[Answer]] = []
    lag_s, said_s = 0.0, 0.0
    for request in traffic.requests:
        await asyncio.sleep(max(0.0, began_s + request.arrival_s - time.monotonic()))
        now_s = time.monotonic() - began_s
        lag_s = max(lag_s, now_s - request.arrival_s)
        tasks.append(asyncio.create_task(_as_task(send(request, began_s))))
        if now_s - said_s >= _SAY_EVERY_S:
            said_s = now_s
            is_open = sum(not task.done() for task in tasks)
            say(f"{now_s:4.0f} of {traffic.duration_s:.0f} s: {len(tasks)} sent, {is_open} open")
    await asyncio.sleep(max(0.0, began_s + traffic.duration_s - time.monotonic()))
    return list(await asyncio.gather(*tasks)), lag_s


async def _as_task(answer: Awaitable[Answer]) -> Answer:
    return await answer


def chat_sender(client: StreamClient) -> Send:
    """Return what sends chats through a gateway to emulated engines, of exactly these lengths."""

    async def send(request: TraceRequest, began_s: float) -> Answer:
        text = "tide" * (request.prompt_tokens - _CHAT_TOKENS)
        stream, task = client.start(text, max_tokens=request.output_tokens, ignore_eos=True)
        await task
        sent_s = stream.started_s - began_s
        usage = stream.usage or {}
        found = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        asked = (request.prompt_tokens, request.output_tokens)
        error = _name_error(stream)
        if not error and found != asked:
            error = f"asked for {asked} tokens of prompt and answer, got {found}"
        if stream.first_token_s is None or stream.ended_s is None:
            return Answer(sent_s, error=error or "no token came")
        steps = max(1, found[1] - 1)
        return Answer(
            sent_s=sent_s,
            ttft_s=stream.first_token_s - stream.started_s,
            tpot_s=(stream.ended_s - stream.first_token_s) / steps,
            ended_s=stream.ended_s - began_s,
            prompt_tokens=found[0],
            output_tokens=found[1],
            site=stream.site or "",
            error=error,
        )

    return send


def _name_error(stream: Stream) -> str:
    """Return what went wrong, refusals by their code only: their words hold numbers."""
    if stream.error is None:
        return "" if stream.is_complete else "the stream ended early"
    if stream.status is None or stream.status < HTTPStatus.BAD_REQUEST:
        return stream.error
    try:
        code = json.loads(stream.error)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = stream.error
    return f"{stream.status} {code}"


def list_errors(answers: Sequence[Answer]) -> list[str]:
    """Return what went wrong, each kind once, with how often."""
    counts = Counter(answer.error for answer in answers if answer.error)
    return [f"{count} x {error}" for error, count in sorted(counts.items())]
