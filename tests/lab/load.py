"""Requests that keep coming while a test watches what the cluster does about them."""

import asyncio
import threading
from types import TracebackType
from typing import Self

from infra.stream_client import Stream, StreamClient
from tests.lab.hybrid import HybridLab

_STOP_S_MAX = 90


class Load:
    """Keeps `streams` requests going, each of `tokens` tokens; leave the context to stop.

    At the end every request has ended; `finished` holds them all.
    """

    def __init__(
        self,
        lab: HybridLab,
        *,
        streams: int,
        tokens: int = 20,
        data_class: str | None = None,
    ) -> None:
        self._lab = lab
        self._streams = streams
        self._tokens = tokens
        self._data_class = data_class
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.finished: list[Stream] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(timeout=_STOP_S_MAX)
        assert not self._thread.is_alive(), f"requests must end within {_STOP_S_MAX} s"

    @property
    def sites(self) -> set[str]:
        """Return where requests were answered so far."""
        return {stream.site for stream in self.finished if stream.site}

    @property
    def failed(self) -> list[str]:
        """Return what went wrong with requests that didn't end as they should."""
        return [
            f"{stream.status} {stream.site} {stream.tokens} tokens: {stream.error}"
            for stream in self.finished
            if not stream.is_complete
        ]

    def _run(self) -> None:
        with self._lab.head.in_network():
            asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        client = self._lab.open_client()
        try:
            await asyncio.gather(*(self._send_one_by_one(client) for _ in range(self._streams)))
        finally:
            await client.close()

    async def _send_one_by_one(self, client: StreamClient) -> None:
        while not self._stopping.is_set():
            stream, task = client.start(
                "hello", max_tokens=self._tokens, data_class=self._data_class, ignore_eos=True
            )
            await task
            self.finished.append(stream)
            if stream.error is not None:
                await asyncio.sleep(0.5)
