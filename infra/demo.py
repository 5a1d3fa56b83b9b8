"""The guided burst: fill the owned site, overflow into the cloud, drain back, prove each step.

The script only sends requests and watches. Every node and replica that comes or goes does so
because the autoscaler decided it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import TidegateError
from infra.observe import ClusterView, Observer
from infra.stream_client import Stream, StreamClient

_LONG_STREAMS_MIN = 4
_LONG_STREAM_S_MIN = 30.0
_SHORT_TOKENS = 80
_POLL_S = 0.5
_SHORT_PROMPT = "Tell me a short story about the sea."
_LONG_PROMPT = "Count from one to one thousand, in words."


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of the demonstration: what was to be shown, and what was seen."""

    name: str
    passed: bool
    seen: str
    took_s: float


@dataclass(frozen=True, slots=True)
class DemoLimits:
    """How long the demonstration waits for each thing before it calls the step failed.

    `long_tokens` must keep a stream open while the load ends and the autoscaler sees slack last.
    """

    long_tokens: int
    burst_s_max: float = 240.0
    stream_s_max: float = 480.0
    home_s_max: float = 180.0


class StepFailed(Exception):
    """A step didn't show what it had to."""


class Demo:
    """Runs the steps in order on a cluster that already serves."""

    def __init__(
        self,
        client: StreamClient,
        observer: Observer,
        limits: DemoLimits,
        on_change: Callable[[ClusterView, list[StepResult], list[Stream], str], None],
    ) -> None:
        self._client = client
        self._observer = observer
        self._limits = limits
        self._on_change = on_change
        self._results: list[StepResult] = []
        self._streams: list[Stream] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._long: list[Stream] = []
        self._step = "starting"
        self._is_loading = False

    async def run(self) -> list[StepResult]:
        """Return the result of every step; stops at the first that fails. Never raises for one."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("a quiet request is answered on-prem", self._show_quiet_request),
            ("on-prem full: the autoscaler decides to burst", self._show_burst_decision),
            ("a cloud node joins and `ray status` agrees", self._show_cloud_node),
            ("answers arrive from the cloud site", self._show_cloud_answers),
            ("load falls: going home begins under open streams", self._show_going_home),
            ("every open stream ends whole", self._show_streams_end),
            ("the cloud node is gone and `ray status` agrees", self._show_node_gone),
        ]
        watch = asyncio.create_task(self._watch())
        try:
            for name, step in steps:
                if not await self._run_step(name, step):
                    break
        finally:
            self._is_loading = False
            watch.cancel()
            for task in self._tasks:
                task.cancel()
        return self._results

    @property
    def streams(self) -> list[Stream]:
        """Every request sent so far."""
        return self._streams

    async def _run_step(self, name: str, step: Callable[[], Awaitable[str]]) -> bool:
        self._step = name
        started_s = time.monotonic()
        try:
            passed, seen = True, await step()
        except (StepFailed, TidegateError) as failure:
            passed, seen = False, str(failure)
        self._results.append(StepResult(name, passed, seen, time.monotonic() - started_s))
        return passed

    async def _watch(self) -> None:
        while True:
            view = await self._observer.view()
            self._on_change(view, self._results, self._streams, self._step)
            await asyncio.sleep(_POLL_S)

    async def _show_quiet_request(self) -> str:
        stream = self._send(_SHORT_PROMPT, 24)
        await self._until(lambda _: stream.ended_s is not None, self._limits.stream_s_max, "answer")
        if stream.site is None or not stream.is_complete:
            raise StepFailed(f"status {stream.status}: {stream.error or 'stream ended early'}")
        if stream.site in self._observer.cloud_sites:
            raise StepFailed(f"answered by {stream.site}, which isn't owned")
        return f"site {stream.site}, {stream.tokens} tokens"

    async def _show_burst_decision(self) -> str:
        self._is_loading = True
        self._keep(asyncio.create_task(self._load()))
        view = await self._until(
            lambda view: view.cloud_replicas_wanted > 0, self._limits.burst_s_max, "a burst"
        )
        return view.reason_for_cloud()

    async def _show_cloud_node(self) -> str:
        await self._until(
            lambda view: view.cloud_nodes_running > 0, self._limits.burst_s_max, "a cloud node"
        )
        status = await self._observer.wait_for_ray_status(
            has_cloud=True, timeout_s=self._limits.burst_s_max
        )
        if status is None:
            raise StepFailed("`ray status` never listed the cloud node")
        return status

    async def _show_cloud_answers(self) -> str:
        """Open long streams until enough of them are answered by the cloud site.

        Long requests that land on-prem are harmless: they only keep it full.
        """
        deadline_s = time.monotonic() + self._limits.burst_s_max
        while len(self._long_in_cloud()) < _LONG_STREAMS_MIN:
            if time.monotonic() > deadline_s:
                raise StepFailed(f"{len(self._long_in_cloud())} long streams reached the cloud")
            view = await self._observer.view()
            pending = sum(1 for stream in self._long if stream.ended_s is None and not stream.site)
            if view.cloud_slots_ready > 0 and pending < _LONG_STREAMS_MIN:
                self._long.append(
                    self._send(_LONG_PROMPT, self._limits.long_tokens, ignore_eos=True)
                )
            await asyncio.sleep(_POLL_S / 2)
        sites = ", ".join(sorted(self._observer.cloud_sites))
        return f"{len(self._long_in_cloud())} long streams open on {sites}"

    async def _show_going_home(self) -> str:
        self._is_loading = False
        view = await self._until(
            lambda view: view.cloud_replicas_wanted == 0, self._limits.home_s_max, "going home"
        )
        still_open = len(self._long_in_cloud())
        if still_open < _LONG_STREAMS_MIN:
            raise StepFailed(f"only {still_open} cloud streams were open when scale-down began")
        return f"{still_open} cloud streams open; {view.reason_for_cloud()}"

    async def _show_streams_end(self) -> str:
        streams = [stream for stream in self._long if stream.site in self._observer.cloud_sites]
        await self._until(
            lambda _: all(stream.ended_s is not None for stream in streams),
            self._limits.stream_s_max,
            "the end of the streams",
        )
        broken = [stream for stream in streams if not stream.is_complete]
        if broken:
            raise StepFailed(f"{len(broken)} of {len(streams)} ended badly: {broken[0].error}")
        shortest_s = min(stream.answer_s for stream in streams)
        if shortest_s < _LONG_STREAM_S_MIN:
            raise StepFailed(f"the shortest took {shortest_s:.0f} s < {_LONG_STREAM_S_MIN:.0f} s")
        return (
            f"{len(streams)} of {len(streams)} with finish_reason, usage and [DONE]; "
            f"shortest {shortest_s:.0f} s"
        )

    async def _show_node_gone(self) -> str:
        await self._until(
            lambda view: view.cloud_nodes == 0, self._limits.home_s_max, "the node's end"
        )
        status = await self._observer.wait_for_ray_status(
            has_cloud=False, timeout_s=self._limits.home_s_max
        )
        if status is None:
            raise StepFailed("`ray status` still lists the cloud node")
        return status

    async def _load(self) -> None:
        """Keep more requests open than the owned slots can hold, so that some must wait."""
        while self._is_loading:
            view = await self._observer.view()
            wanted = view.owned_slots_max + _LONG_STREAMS_MIN + 2
            unfinished = sum(1 for stream in self._streams if stream.ended_s is None)
            for _ in range(wanted - unfinished):
                self._send(_SHORT_PROMPT, _SHORT_TOKENS, ignore_eos=True)
            await asyncio.sleep(_POLL_S)

    def _send(self, prompt: str, max_tokens: int, *, ignore_eos: bool = False) -> Stream:
        stream, task = self._client.start(prompt, max_tokens=max_tokens, ignore_eos=ignore_eos)
        self._streams.append(stream)
        self._keep(task)
        return stream

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _long_in_cloud(self) -> list[Stream]:
        return [s for s in self._long if s.is_open and s.site in self._observer.cloud_sites]

    async def _until(
        self, is_true: Callable[[ClusterView], bool], timeout_s: float, what: str
    ) -> ClusterView:
        """Return the first view for which `is_true`; raise StepFailed after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            view = await self._observer.view()
            if is_true(view):
                return view
            if time.monotonic() > deadline_s:
                raise StepFailed(f"waited {timeout_s:.0f} s for {what}")
            await asyncio.sleep(_POLL_S)
