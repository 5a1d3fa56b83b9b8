"""Requests that arrive at a given rate, whatever becomes of those before them."""

import asyncio
import threading
import time
from types import TracebackType
from typing import Self

from infra.stream_client import Stream, StreamClient
from tests.e2e.served import Served

_STOP_S_MAX = 300


class OpenLoad:
    """Sends `rps` requests a second while its context is open, then lets all of them end."""

    def __init__(self, served: Served, *, model: str, rps: float, tokens: int) -> None:
        self.streams: list[Stream] = []
        self._served = served
        self._model = model
        self._rps = rps
        self._tokens = tokens
        self._stopping = threading.Event()
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

    def stop(self) -> None:
        """Begin nothing new and return when everything has ended; idempotent."""
        self._stopping.set()
        self._thread.join(timeout=_STOP_S_MAX)
        assert not self._thread.is_alive(), f"requests must end within {_STOP_S_MAX} s"

    @property
    def sites(self) -> set[str]:
        """Return who has begun to answer so far."""
        return {stream.site for stream in self.streams if stream.site}

    @property
    def failed(self) -> list[str]:
        """Return what went wrong with those that are over."""
        return [
            f"{stream.status} {stream.site}: {stream.error}"
            for stream in self.streams
            if stream.ended_s is not None and not stream.is_complete
        ]

    def _run(self) -> None:
        asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        client = StreamClient(self._served.url, self._served.key, self._model)
        began_s = time.monotonic()
        tasks = []
        while not self._stopping.is_set():
            stream, task = client.start("hello", max_tokens=self._tokens, ignore_eos=True)
            self.streams.append(stream)
            tasks.append(task)
            next_s = began_s + len(tasks) / self._rps
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        await asyncio.gather(*tasks)
        await client.close()
