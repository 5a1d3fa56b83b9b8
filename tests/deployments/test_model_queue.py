"""The queue at work: who gets which slot, when it comes back, and who is refused."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.admission import QueueLimits
from deployments.model_queue import HeldSlot, ModelQueue
from deployments.refusals import BusyError, UnavailableError
from deployments.residency import Clearance, DataClass
from tests.deployments.gateway_fakes import FakePool, make_address, make_pool_spec

LIMITS = QueueLimits(waiting_max=3, wait_s_max=0.2, look_again_after_s=0.01)
PATIENT = replace(LIMITS, waiting_max=1000, wait_s_max=30.0)


def request(data_class: DataClass = DataClass.INTERNAL, *, may_burst: bool = True) -> Clearance:
    return Clearance("r", data_class, may_burst, "0" * 64)


RESTRICTED = request(DataClass.RESTRICTED)


@pytest.fixture
def onprem() -> FakePool:
    return FakePool(make_pool_spec(site="onprem", owned=True))


@pytest.fixture
def cloud() -> FakePool:
    return FakePool(make_pool_spec(site="cloud", owned=False))


@pytest.fixture
async def queue(onprem: FakePool, cloud: FakePool) -> AsyncIterator[ModelQueue]:
    made = ModelQueue([onprem, cloud], limits=LIMITS)
    yield made
    await made.close()


async def take(queue: ModelQueue, clearance: Clearance | None = None) -> HeldSlot:
    return await queue.wait_for_slot(queue.arrive(clearance or request()))


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_replica_that_sleeps_gets_nothing_until_it_woke(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("r")
    onprem.asleep = {"r"}
    waiting = asyncio.create_task(take(queue))
    await settle()
    assert not waiting.done()
    onprem.asleep = set()
    assert (await waiting).replica_id == "r"


async def test_arrivals_count_everyone_who_asks_served_or_not(
    queue: ModelQueue, onprem: FakePool
) -> None:
    """Four ask, two slots: the queue refuses two, and all four are demand."""
    onprem.add("r")
    asked = [request(), request(may_burst=False), RESTRICTED, request()]
    await asyncio.gather(*(take(queue, one) for one in asked), return_exceptions=True)
    assert (queue.arrivals, queue.arrivals_may_burst) == (4, 2)


async def test_owned_slots_fill_before_the_cloud_is_used(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    onprem.add("o")
    cloud.add("c")
    sites = [(await take(queue)).address.site for _ in range(4)]
    assert sites == ["onprem", "onprem", "cloud", "cloud"]


async def test_a_released_slot_goes_to_the_one_who_waited_longest(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("o")
    held = [await take(queue) for _ in range(2)]
    first = asyncio.create_task(take(queue))
    await settle()
    second = asyncio.create_task(take(queue))
    await settle()
    held[0].release()
    await settle()
    assert first.done()
    assert not second.done()
    second.cancel()


async def test_a_late_waiter_lets_one_in_time_go_first_and_is_served_after_it(
    onprem: FakePool,
) -> None:
    """Promised within 2 s: at 5.5 s one has waited 5 s, the other half a second."""
    now_s = 0.0
    limits = replace(PATIENT, in_time_s=2.0)
    queue = ModelQueue([onprem], limits=limits, clock=lambda: now_s)
    onprem.add("o")
    held = [await take(queue) for _ in range(2)]
    now_s = 0.5
    late = asyncio.create_task(take(queue))
    await settle()
    now_s = 5.0
    in_time = asyncio.create_task(take(queue))
    await settle()
    now_s = 5.5
    held[0].release()
    await settle()
    assert (in_time.done(), late.done()) == (True, False)
    held[1].release()
    await settle()
    assert late.done()
    await queue.close()


async def test_a_replica_gets_no_more_prompts_until_it_has_read_some() -> None:
    spec = make_pool_spec(site="onprem", owned=True).model_copy(update={"reading_tokens_max": 100})
    onprem = FakePool(spec)
    queue = ModelQueue([onprem], limits=PATIENT)
    onprem.add("o")
    reading = await queue.wait_for_slot(queue.arrive(request(), prompt_tokens=150))
    second = asyncio.create_task(queue.wait_for_slot(queue.arrive(request(), prompt_tokens=10)))
    await settle()
    assert not second.done()
    reading.note_read()
    reading.note_read()
    await settle()
    assert second.done()
    await queue.close()


async def test_a_prompt_counts_as_read_once_its_slot_is_back_or_long_enough_has_passed() -> None:
    """Answers sent whole hide their first token: 50 ms are long enough here."""
    spec = make_pool_spec(site="onprem", owned=True).model_copy(update={"reading_tokens_max": 100})
    onprem = FakePool(spec)
    queue = ModelQueue([onprem], limits=replace(PATIENT, reading_s_max=0.05))
    onprem.add("o")
    first = await queue.wait_for_slot(queue.arrive(request(), prompt_tokens=150))
    second = await queue.wait_for_slot(queue.arrive(request(), prompt_tokens=150))
    third = asyncio.create_task(take(queue))
    second.release()
    await settle()
    assert third.done()
    first.release()
    await queue.close()


async def test_restricted_waits_for_owned_while_others_go_to_the_cloud(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    onprem.add("o")
    cloud.add("c")
    held = [await take(queue) for _ in range(2)]
    waiting = asyncio.create_task(take(queue, RESTRICTED))
    await settle()
    assert (await take(queue)).address.site == "cloud"
    assert not waiting.done()
    held[0].release()
    assert (await waiting).address.site == "onprem"


async def test_a_wait_that_is_over_is_refused_as_busy_with_a_hint(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    onprem.add("o")
    cloud.add("c")
    for _ in range(2):
        await take(queue, RESTRICTED)
    with pytest.raises(BusyError) as caught:
        await take(queue, RESTRICTED)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1


async def test_a_wait_for_something_that_never_runs_is_refused_as_unavailable(
    queue: ModelQueue, cloud: FakePool
) -> None:
    cloud.add("c")
    with pytest.raises(UnavailableError):
        await take(queue, RESTRICTED)


async def test_a_full_lane_refuses_at_once_and_leaves_the_other_lane_open(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    onprem.add("o")
    cloud.add("c")
    for _ in range(2):
        await take(queue, RESTRICTED)
    waiting = [asyncio.create_task(take(queue, RESTRICTED)) for _ in range(3)]
    await settle()
    with pytest.raises(BusyError):
        await take(queue, RESTRICTED)
    assert (await take(queue)).address.site == "cloud"
    for task in waiting:
        task.cancel()


async def test_a_full_lane_refuses_who_is_late_already_to_make_place_for_a_newcomer(
    onprem: FakePool,
) -> None:
    """Promised within 2 s and one may wait: at 5 s the one who came at 0 is refused."""
    now_s = 0.0
    limits = replace(PATIENT, in_time_s=2.0, waiting_max=1)
    queue = ModelQueue([onprem], limits=limits, clock=lambda: now_s)
    onprem.add("o")
    held = [await take(queue) for _ in range(2)]
    late = asyncio.create_task(take(queue))
    await settle()
    now_s = 5.0
    newcomer = asyncio.create_task(take(queue))
    await settle()
    with pytest.raises(BusyError):
        await late
    held[0].release()
    await settle()
    assert newcomer.done()
    await queue.close()


async def test_a_pool_that_appears_later_serves_those_who_wait(
    queue: ModelQueue, onprem: FakePool
) -> None:
    waiting = asyncio.create_task(take(queue))
    await settle()
    onprem.add("o")
    assert (await waiting).address.site == "onprem"


async def test_a_slot_another_gateway_took_sends_the_request_back_into_the_queue(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    onprem.add("o")
    onprem.foreign["o"] = 2
    cloud.add("c")
    assert (await take(queue)).address.site == "cloud"
    assert onprem.refused == 1


async def test_a_pool_that_fails_in_a_way_nobody_foresaw_sends_the_request_elsewhere(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    onprem.add("o")
    onprem.broken.add("o")
    cloud.add("c")
    async with asyncio.timeout(5):
        assert (await take(queue)).address.site == "cloud"
    assert "LookupError" in caplog.text


async def test_a_pool_that_always_fails_keeps_nobody_beyond_the_longest_wait(
    queue: ModelQueue, onprem: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    onprem.add("o")
    onprem.broken.add("o")
    async with asyncio.timeout(5):
        with pytest.raises(UnavailableError):
            await take(queue, RESTRICTED)
    assert caplog.text.count("The slot of o failed") == 1


async def test_a_look_that_fails_keeps_nobody_beyond_the_longest_wait(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("o")
    onprem.heard["o"] = 2
    onprem.broken.add("elsewhere")
    async with asyncio.timeout(5):
        with pytest.raises(BusyError):
            await take(queue, RESTRICTED)


@pytest.mark.parametrize("steps", range(1, 5))
async def test_a_closing_queue_refuses_everyone_it_gave_no_slot(
    queue: ModelQueue, onprem: FakePool, steps: int
) -> None:
    """However far the reservation has come, and also those behind it."""
    onprem.add("o")
    asking = [asyncio.create_task(take(queue)) for _ in range(4)]
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting = [task for task in asking if not task.done()]
    await queue.close()
    async with asyncio.timeout(5):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert len(results) >= len(asking) - onprem.spec.slots
    assert all(isinstance(one, HeldSlot | UnavailableError) for one in results)
    assert onprem.taken.get("o", 0) == 0


async def test_nobody_is_refused_while_another_gateway_has_freed_an_owned_slot(
    queue: ModelQueue, onprem: FakePool
) -> None:
    """We were told the replica is full; since then it emptied without telling us."""
    onprem.add("o")
    onprem.heard["o"] = 2
    assert (await take(queue, RESTRICTED)).address.site == "onprem"
    assert onprem.looks >= 1


async def test_a_replica_that_says_it_stands_elsewhere_is_never_used(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    cloud.add("liar", make_address(cloud.spec, site="onprem", owned=True))
    onprem.add("other liar", make_address(onprem.spec, owned=False))
    with pytest.raises(UnavailableError):
        await take(queue)


async def test_a_replica_that_failed_is_left_alone_for_a_while(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("a")
    onprem.add("b")
    first = await take(queue)
    queue.suspect(first.replica_id)
    others = {(await take(queue)).replica_id for _ in range(2)}
    assert first.replica_id not in others


async def test_a_client_that_leaves_while_waiting_takes_nothing_with_it(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("o")
    held = [await take(queue) for _ in range(2)]
    leaver = asyncio.create_task(take(queue))
    await settle()
    leaver.cancel()
    await settle()
    assert queue.list_waiting() == []
    held[0].release()
    await settle()
    assert onprem.taken["o"] == 1


async def test_a_client_that_leaves_while_its_slot_is_being_taken_gives_it_back(
    queue: ModelQueue, onprem: FakePool
) -> None:
    onprem.add("o")
    for steps in range(8):
        leaver = asyncio.create_task(take(queue))
        for _ in range(steps):
            await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        if not leaver.cancelled():
            leaver.result().release()
        await settle()
        assert onprem.taken.get("o", 0) == 0, steps


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(classes=st.lists(st.sampled_from(list(DataClass)), min_size=1, max_size=40), data=st.data())
async def test_under_any_load_every_request_is_served_and_restricted_stays_on_owned_sites(
    classes: list[DataClass], data: st.DataObject
) -> None:
    onprem = FakePool(make_pool_spec(site="onprem", owned=True))
    cloud = FakePool(make_pool_spec(site="cloud", owned=False))
    onprem.add("o")
    for index in range(data.draw(st.integers(0, 2))):
        cloud.add(f"c{index}")
    queue = ModelQueue([onprem, cloud], limits=PATIENT)
    sites: list[tuple[DataClass, str]] = []

    async def one(data_class: DataClass) -> None:
        slot = await take(queue, request(data_class))
        sites.append((data_class, slot.address.site))
        assert onprem.taken["o"] <= onprem.spec.slots
        await asyncio.sleep(0)
        slot.release()

    await asyncio.gather(*(one(data_class) for data_class in classes))
    assert len(sites) == len(classes)
    assert (DataClass.RESTRICTED, "cloud") not in sites
    await settle()
    assert sum(onprem.taken.values()) + sum(cloud.taken.values()) == 0
    await queue.close()


async def test_a_closing_pool_gets_nothing_new_and_keeps_its_streams(
    queue: ModelQueue, onprem: FakePool, cloud: FakePool
) -> None:
    """Two owned slots are taken, one of two cloud slots: the other stays empty once it closes."""
    onprem.add("o")
    cloud.add("c")
    held = [await take(queue) for _ in range(3)]
    queue.stop_routing(frozenset({cloud.spec.name}))
    with pytest.raises(BusyError):
        await take(queue)
    assert queue.count_held(cloud) == 1
    held[2].release()


async def test_a_pool_that_no_longer_closes_takes_those_who_wait_at_once(
    queue: ModelQueue, cloud: FakePool
) -> None:
    cloud.add("c")
    queue.stop_routing(frozenset({cloud.spec.name}))
    waiting = asyncio.create_task(take(queue))
    await settle()
    assert not waiting.done()
    queue.stop_routing(frozenset())
    assert (await waiting).address.site == "cloud"
