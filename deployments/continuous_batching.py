"""Timing of an engine that batches continuously, as a state advanced by a clock value.

The edge that answers requests and the simulator run the same code: nothing here waits, reads a
clock or knows of a network.

    submit ──> waiting ──admitted──> prefill ──first token──> decode ──last token──> gone
                  ^                     │                        │
                  └──────── preempted: the newest, when KV memory is full ──┘

Prefills are served one after another, oldest first. All decoding requests advance at the same
pace, one token per `tpot_s(running)`; with the pace a function of time only, one more running
request can slow others down but never speed them up while memory lasts.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Performance:
    """Speed and memory of one replica."""

    tpot_base_s: float
    tpot_per_running_s: float
    prefill_base_s: float
    prefill_per_token_s: float
    kv_capacity_tokens: int

    def tpot_s(self, running: int) -> float:
        """Time per output token of each of `running` requests."""
        return self.tpot_base_s + self.tpot_per_running_s * running

    def prefill_s(self, tokens: int) -> float:
        """Time from the start of a prefill of `tokens` to its first token."""
        return self.prefill_base_s + self.prefill_per_token_s * tokens


@dataclass(frozen=True, slots=True)
class TokenReady:
    """Token number `number`, from 1, of a request was produced at `at_s`."""

    request_id: str
    number: int
    at_s: float
    is_last: bool


@dataclass(slots=True)
class _Work:
    request_id: str
    prompt_tokens: int
    output_tokens: int
    done_tokens: int = 0
    # Entries of the decode heap made before this work's last move are recognised by it.
    moves: int = 0

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.done_tokens


class ContinuousBatch:
    """One engine's queue, batch and KV memory."""

    def __init__(self, performance: Performance, *, slots: int, now_s: float = 0.0) -> None:
        self._performance = performance
        self._slots = slots
        self._now_s = now_s
        self._waiting: deque[_Work] = deque()
        # In order of admission: the last is the newest.
        self._running: dict[str, _Work] = {}
        self._prefills: deque[_Work] = deque()
        self._prefill_ends_s = 0.0
        # Tokens every decoding request would have produced since the start, had it been there.
        self._pace_tokens = 0.0
        self._decodes: list[tuple[float, int, int, _Work]] = []
        self._scheduled = 0
        self._kv_tokens = 0

    @property
    def now_s(self) -> float:
        """The clock value of the last advance."""
        return self._now_s

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot or for memory."""
        return len(self._waiting)

    @property
    def kv_tokens(self) -> int:
        """Tokens held in KV memory."""
        return self._kv_tokens

    @property
    def kv_use_ratio(self) -> float:
        """Part of KV memory in use, 0 to 1."""
        return self._kv_tokens / self._performance.kv_capacity_tokens

    def submit(self, request_id: str, *, prompt_tokens: int, output_tokens: int) -> None:
        """Queue a request at the current clock value; it is admitted at once if it fits.

        Raises:
            ValueError: it could never run, or the id is in use.
        """
        total = prompt_tokens + output_tokens
        if prompt_tokens < 1 or output_tokens < 1 or total > self._performance.kv_capacity_tokens:
            raise ValueError(
                f"request {request_id} must have at least one prompt and one output token and at "
                f"most {self._performance.kv_capacity_tokens} together; "
                f"got {prompt_tokens} + {output_tokens}."
            )
        if request_id in self._running or any(w.request_id == request_id for w in self._waiting):
            raise ValueError(f"request id {request_id} must be unused; it is queued or running.")
        self._waiting.append(_Work(request_id, prompt_tokens, output_tokens))
        self._admit()

    def abort(self, request_id: str) -> bool:
        """Whether a queued or running request was dropped at the current clock value."""
        work = self._running.get(request_id)
        if work is not None:
            self._remove(work)
            self._admit()
            return True
        for queued in self._waiting:
            if queued.request_id == request_id:
                self._waiting.remove(queued)
                self._admit()
                return True
        return False

    def next_event_s(self) -> float | None:
        """The clock value at which something happens next; None while nothing runs."""
        ends = [self._prefill_ends_s] if self._prefills else []
        self._drop_stale_decodes()
        if self._decodes:
            ahead_tokens = max(0.0, self._decodes[0][0] - self._pace_tokens)
            ends.append(self._now_s + ahead_tokens * self._performance.tpot_s(self.running))
        return min(ends, default=None)

    def advance(self, now_s: float) -> list[TokenReady]:
        """Tokens produced up to `now_s`, in order of time; an earlier value changes nothing."""
        tokens: list[TokenReady] = []
        while (event_s := self.next_event_s()) is not None and event_s <= now_s:
            self._move_clock(event_s)
            tokens.extend(self._happen())
        self._move_clock(now_s)
        return tokens

    def _move_clock(self, now_s: float) -> None:
        if now_s <= self._now_s:
            return
        if self._running:
            elapsed_s = now_s - self._now_s
            self._pace_tokens += elapsed_s / self._performance.tpot_s(self.running)
        self._now_s = now_s

    def _happen(self) -> Iterator[TokenReady]:
        """Finish the prefill that is due, else the decode step that is due."""
        if self._prefills and self._prefill_ends_s <= self._now_s:
            work = self._prefills.popleft()
            self._start_prefill()
        else:
            due_tokens, _, _, work = heapq.heappop(self._decodes)
            # Rounding must not leave the pace behind a step that has happened.
            self._pace_tokens = max(self._pace_tokens, due_tokens)
        if self._make_room(work):
            yield self._produce(work)

    def _produce(self, work: _Work) -> TokenReady:
        work.done_tokens += 1
        self._kv_tokens += 1
        is_last = work.done_tokens == work.output_tokens
        if is_last:
            self._remove(work)
            self._admit()
        else:
            self._schedule_decode(work)
        return TokenReady(work.request_id, work.done_tokens, self._now_s, is_last)

    def _make_room(self, work: _Work) -> bool:
        """Preempt the newest until one more token fits; False if `work` itself had to go."""
        while self._kv_tokens >= self._performance.kv_capacity_tokens:
            newest = next(reversed(self._running.values()))
            self._remove(newest)
            self._waiting.appendleft(newest)
            if newest is work:
                return False
        return True

    def _admit(self) -> None:
        """Move requests from the queue into the batch, strictly in order."""
        while self._waiting and self.running < self._slots:
            work = self._waiting[0]
            if self._kv_tokens + work.context_tokens >= self._performance.kv_capacity_tokens:
                return
            self._waiting.popleft()
            self._running[work.request_id] = work
            self._kv_tokens += work.context_tokens
            self._prefills.append(work)
            if len(self._prefills) == 1:
                self._start_prefill()

    def _start_prefill(self) -> None:
        if self._prefills:
            context_tokens = self._prefills[0].context_tokens
            self._prefill_ends_s = self._now_s + self._performance.prefill_s(context_tokens)

    def _schedule_decode(self, work: _Work) -> None:
        self._scheduled += 1
        entry = (self._pace_tokens + 1.0, self._scheduled, work.moves, work)
        heapq.heappush(self._decodes, entry)

    def _drop_stale_decodes(self) -> None:
        while self._decodes and self._decodes[0][2] != self._decodes[0][3].moves:
            heapq.heappop(self._decodes)

    def _remove(self, work: _Work) -> None:
        """Take a request out of the batch and free its memory."""
        work.moves += 1
        del self._running[work.request_id]
        self._kv_tokens -= work.context_tokens
        if work in self._prefills:
            was_first = self._prefills[0] is work
            self._prefills.remove(work)
            if was_first:
                self._start_prefill()
