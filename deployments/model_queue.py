"""The queue of one model at one gateway: requests wait here until they hold a replica's slot.

It observes the pools, lets `admission` and `routing` decide, and acts: it takes slots, hands them
to waiting requests and gives them back. A slot is held by a task of its own, so that a client that
disconnects can't interrupt giving it back.

    enter ──► waiting ──plan──► reserving ──granted──► held ──release──► (gone)
                 ▲                  │ lost: same place in the order
                 └──────────────────┘
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.admission import (
    Assignment,
    Plan,
    QueueLimits,
    Ticket,
    choose_refused,
    estimate_retry_after_s,
    is_anything_running,
    plan_assignments,
)
from deployments.pools import Pool, ReplicaAddress, SeenReplica, SlotLostError
from deployments.refusals import BusyError, RequestRefusedError, UnavailableError
from deployments.residency import Clearance, filter_allowed
from deployments.routing import ReplicaLoad

logger = logging.getLogger("ray.serve.tidegate.queue")

_SUSPECT_S = 3.0
_UNAVAILABLE_RETRY_S = 10
_HOLD_WEIGHT = 0.1


@dataclass(eq=False)
class HeldSlot:
    """One slot of one replica, ours until `release`."""

    replica_id: str
    address: ReplicaAddress
    reason: str
    token: str = ""
    when_read: Callable[[], None] | None = field(default=None, repr=False)
    _released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def note_read(self) -> None:
        """Say that the replica has read the prompt: its first token is here; may be repeated."""
        when_read, self.when_read = self.when_read, None
        if when_read is not None:
            when_read()

    def release(self) -> None:
        """Give the slot back; returns at once, may be called again."""
        self._released.set()

    async def wait_released(self) -> None:
        """Return once `release` was called."""
        await self._released.wait()


@dataclass(eq=False)
class Waiter:
    """One request in the queue, from its first try to its last."""

    number: int
    clearance: Clearance
    arrived_s: float
    deadline_s: float
    prompt_tokens: int = 0
    excluded: frozenset[str] = frozenset()
    granted: "asyncio.Future[HeldSlot] | None" = None

    @property
    def ticket(self) -> Ticket:
        """What the decisions may know about it."""
        return Ticket(
            self.number,
            self.clearance.may_leave_owned,
            self.excluded,
            self.arrived_s,
            self.prompt_tokens,
        )


class ModelQueue:
    """See the module; `clock` is monotonic seconds. All calls come from one event loop.

    `arrivals` counts what ever asked for a place, `arrivals_may_burst` what of it may go anywhere.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        limits: QueueLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pools = tuple(pools)
        self._limits = limits
        self._clock = clock
        self._waiting: dict[int, Waiter] = {}
        # Everyone inside wait_for_slot: waiting, or with a slot being reserved.
        self._unserved: set[Waiter] = set()
        self._held: dict[str, int] = {}
        self._reading_tokens: dict[str, int] = {}
        self._suspect_until_s: dict[str, float] = {}
        self._mismatched: set[str] = set()
        self._closing: frozenset[str] = frozenset()
        self.arrivals = 0
        self.arrivals_may_burst = 0
        self._mean_hold_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._look: asyncio.Task[None] | None = None
        self._wake: asyncio.TimerHandle | None = None

    def arrive(self, clearance: Clearance, *, prompt_tokens: int = 0) -> Waiter:
        """Return a place in the order of arrival; nothing waits yet.

        `prompt_tokens` is about what a replica will have to read.
        """
        self.arrivals += 1
        self.arrivals_may_burst += clearance.may_leave_owned
        now_s = self._clock()
        deadline_s = now_s + self._limits.wait_s_max
        return Waiter(self.arrivals, clearance, now_s, deadline_s, prompt_tokens)

    async def wait_for_slot(self, waiter: Waiter) -> HeldSlot:
        """Return a slot once it is this waiter's turn; may be called again after a failed replica.

        Raises:
            BusyError: the lane is full, or the wait is over while replicas were busy.
            UnavailableError: the wait is over and nothing that may answer is running.
        """
        if self._choose_refused(waiter) is not None:
            await self._look_around()
            self._dispatch()
            self._make_place(waiter)
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[HeldSlot] = loop.create_future()
        waiter.granted = granted
        self._waiting[waiter.number] = waiter
        self._unserved.add(waiter)
        self._dispatch()
        wait_s = max(0.0, waiter.deadline_s - self._clock())
        timer = loop.call_later(wait_s, self._start, waiter)
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                granted.result().release()
            raise
        finally:
            timer.cancel()
            self._waiting.pop(waiter.number, None)
            self._unserved.discard(waiter)

    def suspect(self, replica_id: str) -> None:
        """Offer this replica to nobody for a few seconds: it just failed someone."""
        self._suspect_until_s[replica_id] = self._clock() + _SUSPECT_S
        asyncio.get_running_loop().call_later(_SUSPECT_S, self._dispatch)

    def stop_routing(self, pools: frozenset[str]) -> None:
        """Give slots of these pools to nobody, and of all others again; streams there go on."""
        if pools != self._closing:
            self._closing = pools
            self._dispatch()

    def list_waiting(self) -> list[Waiter]:
        """Those waiting now, oldest first."""
        return [self._waiting[number] for number in sorted(self._waiting)]

    def count_held(self, pool: Pool) -> int:
        """Slots of this pool's running replicas that this gateway holds."""
        return sum(self._held.get(seen.replica_id, 0) for seen in pool.list_replicas())

    async def close(self) -> None:
        """Refuse everyone who has no slot yet and give every slot back."""
        if self._wake is not None:
            self._wake.cancel()
        self._waiting.clear()
        for waiter in self._unserved:
            _refuse(
                waiter,
                UnavailableError("This gateway is closing.", retry_after_s=_UNAVAILABLE_RETRY_S),
            )
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _choose_refused(self, newcomer: Waiter) -> int | None:
        return choose_refused(self._tickets(), newcomer.ticket, self._limits, now_s=self._clock())

    def _make_place(self, newcomer: Waiter) -> None:
        """Refuse somebody if the newcomer's lane is full, itself if all others are in time."""
        number = self._choose_refused(newcomer)
        if number == newcomer.number:
            raise self._refusal(newcomer)
        if number is not None:
            refused = self._waiting.pop(number)
            _refuse(refused, self._refusal(refused))

    def _tickets(self) -> list[Ticket]:
        return [waiter.ticket for waiter in self._waiting.values()]

    def _dispatch(self) -> None:
        """Observe, decide and act once; called whenever something may have changed."""
        if not self._waiting:
            return
        plan = plan_assignments(self._tickets(), self._observe(), self._limits, now_s=self._clock())
        for assignment in plan.assignments:
            self._assign(assignment)
        if plan.look_again and (self._look is None or self._look.done()):
            self._look = self._spawn(self._look_and_dispatch(plan))
        self._wake_later()

    def _assign(self, assignment: Assignment) -> None:
        waiter = self._waiting.pop(assignment.number)
        replica_id = assignment.route.load.replica_id
        self._held[replica_id] = self._held.get(replica_id, 0) + 1
        pool, address = self._find(replica_id)
        slot = HeldSlot(replica_id, address, reason=assignment.route.reason)
        self._begin_reading(slot, waiter.prompt_tokens)
        self._spawn(self._hold(waiter, pool, slot))

    def _begin_reading(self, slot: HeldSlot, prompt_tokens: int) -> None:
        """Count a prompt that its replica has to read, until `note_read` or for long enough."""
        reading = self._reading_tokens
        reading[slot.replica_id] = reading.get(slot.replica_id, 0) + prompt_tokens

        def finish() -> None:
            timer.cancel()
            reading[slot.replica_id] -= prompt_tokens
            if not reading[slot.replica_id]:
                del reading[slot.replica_id]
            self._dispatch()

        slot.when_read = finish
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._limits.reading_s_max, slot.note_read)

    async def _hold(self, waiter: Waiter, pool: Pool, slot: HeldSlot) -> None:
        """Take the slot, hand it over, keep it until released, give it back."""
        replica_id = slot.replica_id
        started_s = self._clock()
        try:
            async with pool.hold(replica_id) as slot.token:
                if waiter.granted is not None and not waiter.granted.done():
                    waiter.granted.set_result(slot)
                    await slot.wait_released()
                    self._learn(self._clock() - started_s)
        except SlotLostError as exc:
            logger.info("Slot lost, deciding again: %s", exc)
            self._come_back(waiter)
        except Exception:
            logger.exception("The slot of %s failed, deciding again.", replica_id)
            # Otherwise the same replica would be chosen, and fail, again and again without a pause.
            self.suspect(replica_id)
            self._come_back(waiter)
        finally:
            self._held[replica_id] -= 1
            if not self._held[replica_id]:
                del self._held[replica_id]
            slot.note_read()
            self._dispatch()

    def _come_back(self, waiter: Waiter) -> None:
        if waiter.granted is None or waiter.granted.done():
            return
        self._waiting[waiter.number] = waiter
        if self._clock() >= waiter.deadline_s:
            self._start(waiter)

    def _start(self, waiter: Waiter) -> None:
        self._spawn(self._expire(waiter))

    async def _expire(self, waiter: Waiter) -> None:
        """Refuse a waiter whose time is up, unless a last look finds a slot for it."""
        await self._look_around()
        self._dispatch()
        if waiter.number not in self._waiting:
            return
        del self._waiting[waiter.number]
        _refuse(waiter, self._refusal(waiter))

    def _refusal(self, waiter: Waiter) -> RequestRefusedError:
        may_leave_owned = waiter.clearance.may_leave_owned
        loads = self._observe()
        if not is_anything_running(
            loads, may_leave_owned=may_leave_owned, excluded=waiter.excluded
        ):
            return UnavailableError(
                "No replica that may answer this request is running; it may be starting.",
                retry_after_s=_UNAVAILABLE_RETRY_S,
            )
        allowed = filter_allowed(loads, may_leave_owned=may_leave_owned)
        retry_after_s = estimate_retry_after_s(
            waiting=len(self._waiting),
            slots=sum(load.slots for load in allowed),
            mean_hold_s=self._mean_hold_s,
        )
        return BusyError(
            f"All slots this request may use are busy; try again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )

    async def _look_around(self) -> None:
        """Ask every owned replica that others may have filled how busy it is."""
        doubtful = [one.replica_id for one in self._observe() if one.owned and one.others > 0]
        if doubtful:
            await self._look_at(doubtful)

    async def _look_and_dispatch(self, plan: Plan) -> None:
        await self._look_at(plan.look_again)
        self._dispatch()

    async def _look_at(self, replica_ids: Sequence[str]) -> None:
        """Ask these replicas; a look that fails leaves what was heard last, and ends no wait."""
        looks = (pool.look(replica_ids) for pool in self.pools)
        for failure in await asyncio.gather(*looks, return_exceptions=True):
            if isinstance(failure, Exception):
                logger.error("Replicas weren't asked how busy they are.", exc_info=failure)

    def _wake_later(self) -> None:
        """Look at the world again soon if something waits: pools appear without telling us."""
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None
        if self._waiting:
            loop = asyncio.get_running_loop()
            self._wake = loop.call_later(self._limits.look_again_after_s, self._dispatch)

    def _observe(self) -> list[ReplicaLoad]:
        now_s = self._clock()
        return [
            self._load_of(pool, seen, now_s)
            for pool in self.pools
            if pool.spec.name not in self._closing
            for seen in pool.list_replicas()
            if self._is_usable(pool, seen, now_s)
        ]

    def _load_of(self, pool: Pool, seen: SeenReplica, now_s: float) -> ReplicaLoad:
        held = self._held.get(seen.replica_id, 0)
        return ReplicaLoad(
            replica_id=seen.replica_id,
            pool=pool.spec.name,
            site=pool.spec.site,
            owned=pool.spec.owned,
            market=pool.spec.market,
            slots=pool.spec.slots,
            held=held,
            others=max(0, seen.ongoing - held),
            seen_age_s=max(0.0, now_s - seen.heard_s),
            reading_tokens=self._reading_tokens.get(seen.replica_id, 0),
            reading_tokens_max=pool.spec.reading_tokens_max,
        )

    def _is_usable(self, pool: Pool, seen: SeenReplica, now_s: float) -> bool:
        if seen.address is None or not seen.address.belongs_to(pool.spec):
            self._report_mismatch(pool, seen)
            return False
        if not seen.is_awake:
            return False
        return self._suspect_until_s.get(seen.replica_id, -math.inf) <= now_s

    def _report_mismatch(self, pool: Pool, seen: SeenReplica) -> None:
        if seen.replica_id not in self._mismatched:
            self._mismatched.add(seen.replica_id)
            logger.error(
                "Replica %s of pool %s says %s about itself; it is never used.",
                seen.replica_id,
                pool.spec.name,
                seen.address,
            )

    def _find(self, replica_id: str) -> tuple[Pool, ReplicaAddress]:
        found = (
            (pool, seen.address)
            for pool in self.pools
            for seen in pool.list_replicas()
            if seen.replica_id == replica_id and seen.address is not None
        )
        return next(found)

    def _learn(self, hold_s: float) -> None:
        last_s = self._mean_hold_s
        self._mean_hold_s = hold_s if last_s is None else last_s + _HOLD_WEIGHT * (hold_s - last_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _refuse(waiter: Waiter, refusal: RequestRefusedError) -> None:
    if waiter.granted is not None and not waiter.granted.done():
        waiter.granted.set_exception(refusal)


def count_by_class(waiters: Iterable[Waiter]) -> dict[str, int]:
    """How many wait, by data class."""
    counts: dict[str, int] = {}
    for waiter in waiters:
        name = waiter.clearance.data_class.value
        counts[name] = counts.get(name, 0) + 1
    return counts
