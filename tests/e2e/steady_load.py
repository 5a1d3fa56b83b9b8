"""Requests that never stop coming: streams and short answers, of every data class."""

import asyncio
import itertools
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from infra.stream_client import StreamClient
from tests.e2e.served import Served

_CLASSES = ("restricted", "internal", "public")
_TOLD = ("x-request-id", "x-tidegate-site", "x-tidegate-replica", "x-tidegate-data-class")
_TOKENS = 25
_STOP_S_MAX = 240
_PAUSE_AFTER_FAILURE_S = 0.5


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that is over; `error` says what wasn't as it should be, empty = nothing."""

    kind: str
    replica: str
    error: str
    is_long: bool = False


class SteadyLoad:
    """Keeps requests going while its context is open, then lets all of them end."""

    def __init__(
        self, served: Served, *, model: str, streams: int, shorts: int, tokens: int = 25
    ) -> None:
        self.ended: list[Ended] = []
        self._served = served
        self._model = model
        self._streams = streams
        self._shorts = shorts
        self._tokens = tokens
        self._stopping = threading.Event()
        self._long_tokens: list[int] = []
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def failed(self) -> list[str]:
        """What went wrong so far."""
        return [f"{one.kind} at {one.replica}: {one.error}" for one in self.ended if one.error]

    def begin_long(self, tokens: int) -> None:
        """Begin one more stream, of so many tokens."""
        self._long_tokens.append(tokens)

    def replicas_since(self, count: int) -> set[str]:
        """Return who answered those that ended after the first `count`; long streams left out."""
        return {one.replica for one in self.ended[count:] if not one.is_long}

    def stop(self) -> None:
        """Begin nothing new and return when everything has ended; idempotent."""
        self._stopping.set()
        self._thread.join(timeout=_STOP_S_MAX)
        assert not self._thread.is_alive(), f"requests must end within {_STOP_S_MAX} s"

    def _run(self) -> None:
        asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        client = StreamClient(self._served.url, self._served.key, self._model)
        headers = {"Authorization": f"Bearer {self._served.key}"}
        async with (
            httpx.AsyncClient(base_url=self._served.url, headers=headers, timeout=120) as short,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._streams):
                group.create_task(self._stream_on(client))
            for _ in range(self._shorts):
                group.create_task(self._ask_on(short))
            while not self._stopping.is_set() or self._long_tokens:
                if self._long_tokens:
                    group.create_task(self._stream(client, self._long_tokens.pop(), "internal"))
                await asyncio.sleep(0.1)
        await client.close()

    async def _stream_on(self, client: StreamClient) -> None:
        for data_class in itertools.cycle(_CLASSES):
            if self._stopping.is_set():
                return
            await self._stream(client, _TOKENS, data_class)

    async def _stream(self, client: StreamClient, tokens: int, data_class: str) -> None:
        stream, task = client.start("hello", max_tokens=tokens, data_class=data_class)
        await task
        error = stream.error or ""
        said = (stream.usage or {}).get("completion_tokens")
        if not error and not (stream.is_complete and said == tokens and stream.site):
            error = f"ended after {said} of {tokens} tokens, done: {stream.has_done}"
        kind = f"stream of {tokens} tokens"
        is_long = tokens > _TOKENS
        await self._note(Ended(kind, str(stream.replica), error, is_long=is_long))

    async def _ask_on(self, client: httpx.AsyncClient) -> None:
        for data_class in itertools.cycle(_CLASSES):
            if self._stopping.is_set():
                return
            await self._ask(client, data_class)

    async def _ask(self, client: httpx.AsyncClient, data_class: str) -> None:
        body = {
            "model": self._model,
            "max_tokens": 3,
            "messages": [{"role": "user", "content": "hello"}],
        }
        headers = httpx.Headers()
        try:
            answer = await client.post(
                "/v1/chat/completions", json=body, headers={"X-Data-Class": data_class}
            )
        except httpx.HTTPError as failure:
            error = f"{type(failure).__name__}: {failure}"
        else:
            headers = answer.headers
            missing = [name for name in _TOLD if name not in headers]
            error = answer.text if answer.status_code != 200 else ", ".join(missing)
        await self._note(Ended("short", headers.get("x-tidegate-replica", "nobody"), error))

    async def _note(self, ended: Ended) -> None:
        self.ended.append(ended)
        if ended.error:
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
