"""One streamed chat request, watched closely: who answered, when, and whether it ended well."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from deployments.header_names import REPLICA_HEADER, SITE_HEADER

_CONNECT_S_MAX = 10.0


@dataclass(slots=True)
class Stream:
    """A request from the moment it is sent; it is over once `ended_s` is set.

    Times are seconds on the monotonic clock. None means it hasn't happened (yet).
    """

    started_s: float
    status: int | None = None
    site: str | None = None
    replica: str | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    has_done: bool = False
    error: str | None = None
    text: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether a replica is answering it right now."""
        return self.site is not None and self.ended_s is None

    @property
    def is_complete(self) -> bool:
        """Whether it ended as a stream must: finish_reason, usage and `[DONE]`, no error."""
        return (
            self.finish_reason is not None
            and self.usage is not None
            and self.has_done
            and self.error is None
        )

    @property
    def answer_s(self) -> float:
        """Seconds from the first token to the end, without the wait before; 0 until both are."""
        if self.first_token_s is None or self.ended_s is None:
            return 0.0
        return self.ended_s - self.first_token_s


class StreamClient:
    """Sends streamed chat requests to one gateway with one key."""

    def __init__(self, base_url: str, key: str, model: str) -> None:
        self._model = model
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=_CONNECT_S_MAX),
            limits=httpx.Limits(max_connections=None),
        )

    async def close(self) -> None:
        """Close every connection; open streams end."""
        await self._client.aclose()

    def start(
        self,
        prompt: str,
        *,
        max_tokens: int,
        data_class: str | None = None,
        ignore_eos: bool = False,
    ) -> tuple[Stream, asyncio.Task[None]]:
        """Return the stream to watch and the task that runs it; the task itself never raises."""
        stream = Stream(started_s=time.monotonic())
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": ignore_eos,
        }
        headers = {} if data_class is None else {"X-Data-Class": data_class}
        return stream, asyncio.create_task(self._run(stream, body, headers))

    async def _run(self, stream: Stream, body: dict[str, object], headers: dict[str, str]) -> None:
        try:
            async with self._client.stream(
                "POST", "/v1/chat/completions", json=body, headers=headers
            ) as response:
                stream.status = response.status_code
                if response.is_error:
                    stream.error = (await response.aread()).decode(errors="replace")
                    return
                stream.site = response.headers.get(SITE_HEADER)
                stream.replica = response.headers.get(REPLICA_HEADER)
                async for line in response.aiter_lines():
                    _read_line(stream, line)
        except httpx.HTTPError as error:
            stream.error = f"{type(error).__name__}: {error}"
        finally:
            stream.ended_s = time.monotonic()


def _read_line(stream: Stream, line: str) -> None:
    """Note what one line of the event stream says."""
    if not line.startswith("data: "):
        return
    data = line.removeprefix("data: ")
    if data == "[DONE]":
        stream.has_done = True
        return
    event = json.loads(data)
    if "error" in event:
        stream.error = json.dumps(event["error"])
    if event.get("usage"):
        stream.usage = event["usage"]
    for choice in event.get("choices", ()):
        text = choice.get("delta", {}).get("content")
        if text:
            stream.first_token_s = stream.first_token_s or time.monotonic()
            stream.tokens += 1
            stream.text.append(text)
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
