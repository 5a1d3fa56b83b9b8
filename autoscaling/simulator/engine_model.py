"""One replica's engine, advanced from milestone to milestone instead of token by token.

Milestones are a prefill's end, a last token and a full KV memory. Without interference the timing
is that of `deployments.continuous_batching`, which makes every token; a test compares the two. With
interference a prefill and the running decodes share each step, as chunked prefill does:

    step = tpot(running) + chunk x prefill time per token      one token a decode, and one chunk

The shipped table's slope was fitted under such a load, so it holds the prefills' share already;
`PerformanceRow.to_decode_performance` takes it out, or it would be counted twice.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.continuous_batching import Performance

BLOCK_TOKENS = 512
CHUNK_TOKENS = 2048


@dataclass(slots=True, eq=False)
class Work:
    """One request in an engine. `blocks` are the hashes of its prompt's blocks, in order.

    `cached_tokens` of its prompt weren't read when it began, None = it hasn't begun. What is read
    once more after running out of memory isn't counted, as vLLM doesn't either.
    """

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    done_tokens: float = 0.0
    start_pace: float = 0.0
    moves: int = 0
    is_decoding: bool = False
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Milestone:
    """What happened to a work: its first token, its last, or both at once."""

    work: Work
    is_first: bool
    is_last: bool


@dataclass(slots=True)
class PrefixCache:
    """Blocks of prompts whose KV is still there, least recently used first."""

    blocks: dict[int, None] = field(default_factory=dict)

    def reuse(self, blocks: tuple[int, ...], *, blocks_max: int) -> int:
        """Return how many leading blocks are there; all of them are afterwards, if they fit."""
        kept = self.blocks
        hits = 0
        for block in blocks:
            if block not in kept:
                break
            hits += 1
        for block in blocks:
            kept.pop(block, None)
            kept[block] = None
        while len(kept) > blocks_max:
            del kept[next(iter(kept))]
        return hits


class EngineModel:
    """One engine's queue, batch, KV memory and prefix cache.

    `chunk_tokens` None = prefills don't slow decodes, as in the emulated engine.
    """

    def __init__(
        self, performance: Performance, *, slots: int, chunk_tokens: int | None, now_s: float
    ) -> None:
        self._performance = performance
        self._slots = slots
        self._chunk_tokens = chunk_tokens
        self._now_s = now_s
        self._waiting: deque[Work] = deque()
        # In order of admission: the last is the newest.
        self._running: dict[Work, None] = {}
        self._prefills: deque[Work] = deque()
        self._prefill_ends_s = 0.0
        self._chunk_s = 0.0
        self._pace = 0.0
        self._decodes: list[tuple[float, int, int, Work]] = []
        self._decoding = 0
        self._scheduled = 0
        # KV tokens in use are this much and the pace times the decoding requests.
        self._kv_base = 0.0
        self._cache = PrefixCache()
        # The next milestone, as long as nothing but time has passed since it was found.
        self._due_s: float | None = None
        self._is_due_known = False

    @property
    def kv_use_ratio(self) -> float:
        """Part of KV memory in use, 0 to 1, as of the last advance."""
        return min(1.0, max(0.0, self._kv_tokens() / self._performance.kv_capacity_tokens))

    def can_hold(self, work: Work) -> bool:
        """Whether the work could ever run here."""
        total = work.prompt_tokens + work.output_tokens
        return total < self._performance.kv_capacity_tokens

    def submit(self, work: Work, now_s: float) -> None:
        """Queue a work at `now_s`, which the engine was advanced to; it begins if it fits."""
        self._move_clock(now_s)
        self._is_due_known = False
        self._waiting.append(work)
        self._admit()

    def next_event_s(self) -> float | None:
        """The time of the next milestone; None while nothing runs."""
        if not self._is_due_known:
            self._due_s = self._find_due_s()
            self._is_due_known = True
        return self._due_s

    def advance(self, now_s: float) -> list[Milestone]:
        """Return the milestones up to `now_s`, in order."""
        found: list[Milestone] = []
        while (event_s := self.next_event_s()) is not None and event_s <= now_s:
            self._move_clock(event_s)
            self._is_due_known = False
            found.extend(self._happen())
        self._move_clock(now_s)
        return found

    def _find_due_s(self) -> float | None:
        decodes = self._decodes
        while decodes and decodes[0][2] != decodes[0][3].moves:
            heapq.heappop(decodes)
        due = math.inf
        if decodes:
            pace = decodes[0][0]
            if self._decoding:
                capacity = self._performance.kv_capacity_tokens
                pace = min(pace, (capacity - self._kv_base) / self._decoding)
            due = self._now_s + max(0.0, pace - self._pace) * self._step_s()
        if self._prefills:
            due = min(due, self._prefill_ends_s)
        return None if due == math.inf else due

    def _step_s(self) -> float:
        performance = self._performance
        step_s = performance.tpot_base_s + performance.tpot_per_running_s * len(self._running)
        return step_s + self._chunk_s if self._prefills else step_s

    def _kv_tokens(self) -> float:
        return self._kv_base + self._decoding * self._pace

    def _move_clock(self, now_s: float) -> None:
        if now_s <= self._now_s:
            return
        if self._decoding:
            self._pace += (now_s - self._now_s) / self._step_s()
        self._now_s = now_s

    def _happen(self) -> Iterator[Milestone]:
        """Finish the prefill or the request that is due, else make room in KV memory."""
        if self._prefills and self._prefill_ends_s <= self._now_s:
            yield self._end_prefill()
            return
        due_pace, _, _, work = self._decodes[0]
        full_pace = (self._performance.kv_capacity_tokens - self._kv_base) / self._decoding
        if full_pace < due_pace:
            self._pace = max(self._pace, full_pace)
            newest = next(reversed(self._running))
            self._remove(newest)
            self._waiting.appendleft(newest)
            return
        heapq.heappop(self._decodes)
        # Rounding must not leave the pace behind a step that has happened.
        self._pace = max(self._pace, due_pace)
        self._remove(work)
        self._admit()
        yield Milestone(work, is_first=False, is_last=True)

    def _end_prefill(self) -> Milestone:
        work = self._prefills.popleft()
        is_first = work.done_tokens == 0
        before = work.prompt_tokens + work.done_tokens
        work.done_tokens += 1
        left = work.output_tokens - work.done_tokens
        if left <= 0:
            work.moves += 1
            del self._running[work]
            self._kv_base -= before
            self._start_prefill()
            self._admit()
            return Milestone(work, is_first, is_last=True)
        work.is_decoding = True
        work.start_pace = self._pace
        self._kv_base += 1 - self._pace
        self._decoding += 1
        self._scheduled += 1
        heapq.heappush(self._decodes, (self._pace + left, self._scheduled, work.moves, work))
        self._start_prefill()
        return Milestone(work, is_first, is_last=False)

    def _admit(self) -> None:
        capacity = self._performance.kv_capacity_tokens
        while self._waiting and len(self._running) < self._slots:
            work = self._waiting[0]
            context = work.prompt_tokens + work.done_tokens
            if self._kv_tokens() + context >= capacity:
                return
            self._waiting.popleft()
            self._running[work] = None
            self._kv_base += context
            self._prefills.append(work)
            if len(self._prefills) == 1:
                self._start_prefill()

    def _start_prefill(self) -> None:
        if not self._prefills:
            return
        work = self._prefills[0]
        performance = self._performance
        tokens = work.prompt_tokens + work.done_tokens
        if work.blocks:
            free = performance.kv_capacity_tokens - self._kv_tokens()
            hits = self._cache.reuse(work.blocks, blocks_max=max(0, int(free)) // BLOCK_TOKENS)
            tokens = max(1.0, tokens - hits * BLOCK_TOKENS)
            if work.cached_tokens is None:
                work.cached_tokens = min(hits * BLOCK_TOKENS, work.prompt_tokens - 1)
        if self._chunk_tokens is None:
            self._prefill_ends_s = self._now_s + performance.prefill_s(math.ceil(tokens))
            return
        steps = max(1, math.ceil(tokens / self._chunk_tokens))
        self._chunk_s = performance.prefill_per_token_s * tokens / steps
        self._prefill_ends_s = self._now_s + steps * self._step_s()

    def _remove(self, work: Work) -> None:
        """Take a work out of the batch and free its memory."""
        work.moves += 1
        del self._running[work]
        if work.is_decoding:
            work.is_decoding = False
            produced = self._pace - work.start_pace
            self._decoding -= 1
            self._kv_base -= work.prompt_tokens + work.done_tokens - work.start_pace
            work.done_tokens += produced
            return
        self._kv_base -= work.prompt_tokens + work.done_tokens
        was_first = self._prefills[0] is work
        self._prefills.remove(work)
        if was_first:
            self._start_prefill()
