"""The timing core: worked examples, and laws that hold for any load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.continuous_batching import ContinuousBatch, Performance, TokenReady

ROOMY = 1_000_000


def performance(**changes: float) -> Performance:
    """10 ms a step plus 1 ms per running request; prefill 20 ms plus 1 ms per prompt token."""
    values: dict[str, float] = {
        "tpot_base_s": 0.010,
        "tpot_per_running_s": 0.001,
        "prefill_base_s": 0.020,
        "prefill_per_token_s": 0.001,
        "kv_capacity_tokens": ROOMY,
    }
    return Performance(**{**values, **changes})  # type: ignore[arg-type]


def run_out(batch: ContinuousBatch, *, steps_max: int = 100_000) -> list[TokenReady]:
    """All tokens still to come; fails if they never end."""
    tokens: list[TokenReady] = []
    for _ in range(steps_max):
        event_s = batch.next_event_s()
        if event_s is None:
            return tokens
        tokens.extend(batch.advance(event_s))
    raise AssertionError("the batch must run empty")


def times_ms(tokens: list[TokenReady], request_id: str) -> list[float]:
    return [round(token.at_s * 1000, 6) for token in tokens if token.request_id == request_id]


def test_a_single_request_pays_its_prefill_then_one_step_per_token() -> None:
    """Prefill 20 + 100 x 1 = 120 ms; a step with one running takes 10 + 1 = 11 ms."""
    batch = ContinuousBatch(performance(), slots=8)
    batch.submit("a", prompt_tokens=100, output_tokens=4)
    tokens = run_out(batch)
    assert times_ms(tokens, "a") == [120, 131, 142, 153]
    assert [token.number for token in tokens] == [1, 2, 3, 4]
    assert [token.is_last for token in tokens] == [False, False, False, True]


def test_prefills_are_served_one_after_another() -> None:
    """Two prompts of 100 tokens: the second starts at 120 ms and ends at 240 ms."""
    batch = ContinuousBatch(performance(), slots=8)
    batch.submit("a", prompt_tokens=100, output_tokens=1)
    batch.submit("b", prompt_tokens=100, output_tokens=1)
    tokens = run_out(batch)
    assert times_ms(tokens, "a") == [120]
    assert times_ms(tokens, "b") == [240]


def test_every_running_request_slows_the_others_down() -> None:
    """`a` alone: 30 ms, then 11 ms a token. `b` joins at 35.5 ms, half-way through a step.

    The other half of the step at two running takes 0.5 x 12 = 6 ms: the token is due at 41.5 ms,
    the next at 53.5 ms.
    """
    batch = ContinuousBatch(performance(), slots=8)
    batch.submit("a", prompt_tokens=10, output_tokens=3)
    first = batch.advance(0.0355)
    batch.submit("b", prompt_tokens=1000, output_tokens=1)
    assert times_ms(first + run_out(batch), "a") == [30, 41.5, 53.5]


def test_more_than_the_slots_wait_in_order() -> None:
    """One slot: `b` starts its 30 ms prefill when `a` ends at 30 + 11 = 41 ms."""
    batch = ContinuousBatch(performance(), slots=1)
    batch.submit("a", prompt_tokens=10, output_tokens=2)
    batch.submit("b", prompt_tokens=10, output_tokens=1)
    assert (batch.running, batch.waiting) == (1, 1)
    tokens = run_out(batch)
    assert times_ms(tokens, "b") == [71]


def test_full_memory_makes_requests_wait_and_shows_in_the_ratio() -> None:
    """60 of 100 tokens are taken by `a`'s prompt; `b`'s 50 don't fit until `a` is gone."""
    batch = ContinuousBatch(performance(kv_capacity_tokens=100), slots=8)
    batch.submit("a", prompt_tokens=60, output_tokens=5)
    batch.submit("b", prompt_tokens=50, output_tokens=5)
    assert batch.kv_use_ratio == 0.6
    assert (batch.running, batch.waiting) == (1, 1)
    assert [t.request_id for t in run_out(batch)] == ["a"] * 5 + ["b"] * 5


def test_the_newest_request_is_preempted_and_prefills_again() -> None:
    """Capacity 30: `a` (10 + 15) and `b` (10 + 6) together outgrow it; `b` starts over, later."""
    batch = ContinuousBatch(performance(kv_capacity_tokens=30), slots=8)
    batch.submit("a", prompt_tokens=10, output_tokens=15)
    batch.submit("b", prompt_tokens=10, output_tokens=6)
    tokens = run_out(batch)
    assert tokens[-1].request_id == "b"
    assert [t.number for t in tokens if t.request_id == "b"] == [1, 2, 3, 4, 5, 6]
    assert batch.kv_tokens == 0


def test_an_aborted_request_frees_its_slot_and_its_memory_at_once() -> None:
    batch = ContinuousBatch(performance(kv_capacity_tokens=100), slots=8)
    batch.submit("a", prompt_tokens=60, output_tokens=30)
    batch.submit("b", prompt_tokens=60, output_tokens=1)
    batch.advance(0.2)
    assert batch.abort("a")
    assert not batch.abort("a")
    assert (batch.running, batch.waiting, batch.kv_tokens) == (1, 0, 60)
    assert {t.request_id for t in run_out(batch)} == {"b"}


def test_a_request_that_waits_can_be_aborted() -> None:
    batch = ContinuousBatch(performance(), slots=1)
    batch.submit("a", prompt_tokens=1, output_tokens=1)
    batch.submit("b", prompt_tokens=1, output_tokens=1)
    assert batch.abort("b")
    assert {t.request_id for t in run_out(batch)} == {"a"}


def test_a_clock_that_steps_back_changes_nothing() -> None:
    batch = ContinuousBatch(performance(), slots=1)
    batch.submit("a", prompt_tokens=10, output_tokens=2)
    batch.advance(0.035)
    assert batch.advance(0.001) == []
    assert batch.now_s == 0.035


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens"), [(0, 1), (1, 0), (90, 11)], ids=["prompt", "output", "kv"]
)
def test_what_could_never_run_is_refused(prompt_tokens: int, output_tokens: int) -> None:
    batch = ContinuousBatch(performance(kv_capacity_tokens=100), slots=1)
    with pytest.raises(ValueError, match="at most 100 together"):
        batch.submit("a", prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def test_an_id_in_use_is_refused() -> None:
    batch = ContinuousBatch(performance(), slots=1)
    batch.submit("a", prompt_tokens=1, output_tokens=1)
    with pytest.raises(ValueError, match="unused"):
        batch.submit("a", prompt_tokens=1, output_tokens=1)


arrivals = st.lists(
    st.tuples(
        st.integers(0, 500),  # arrival, ms
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 25),  # output tokens
    ),
    min_size=1,
    max_size=12,
)


def play(
    load: list[tuple[int, int, int]], *, slots: int, kv_capacity_tokens: int = ROOMY
) -> list[TokenReady]:
    """All tokens of a load, with the limits checked at every event."""
    batch = ContinuousBatch(performance(kv_capacity_tokens=kv_capacity_tokens), slots=slots)
    tokens: list[TokenReady] = []
    for number, (at_ms, prompt, output) in enumerate(sorted(load, key=lambda work: work[0])):
        while (event_s := batch.next_event_s()) is not None and event_s <= at_ms / 1000:
            tokens.extend(batch.advance(event_s))
            assert batch.kv_tokens <= kv_capacity_tokens
        tokens.extend(batch.advance(at_ms / 1000))
        batch.submit(str(number), prompt_tokens=prompt, output_tokens=output)
        assert batch.running <= slots
    while (event_s := batch.next_event_s()) is not None:
        assert len(tokens) < 1000
        tokens.extend(batch.advance(event_s))
        assert batch.kv_tokens <= kv_capacity_tokens
        assert batch.running <= slots
    assert (batch.running, batch.waiting, batch.kv_tokens) == (0, 0, 0)
    return tokens


@given(load=arrivals, slots=st.integers(1, 6), kv_capacity_tokens=st.integers(65, 200))
def test_memory_and_slots_are_never_exceeded_and_every_request_ends(
    load: list[tuple[int, int, int]], slots: int, kv_capacity_tokens: int
) -> None:
    tokens = play(load, slots=slots, kv_capacity_tokens=kv_capacity_tokens)
    ordered = sorted(load, key=lambda work: work[0])
    for number, (_, _, output) in enumerate(ordered):
        own = [token for token in tokens if token.request_id == str(number)]
        assert [token.number for token in own] == list(range(1, output + 1))
        assert [token.is_last for token in own] == [False] * (output - 1) + [True]
    assert [token.at_s for token in tokens] == sorted(token.at_s for token in tokens)


@given(load=arrivals, extra=st.tuples(st.integers(0, 500), st.integers(1, 40), st.integers(1, 25)))
def test_one_more_request_never_makes_another_faster(
    load: list[tuple[int, int, int]], extra: tuple[int, int, int]
) -> None:
    """With memory and slots to spare; a full memory may drop a large request for small ones."""
    ordered = sorted(load, key=lambda work: work[0])
    alone = play(ordered, slots=100)
    with_extra = play([*ordered, (max(extra[0], 0), extra[1], extra[2])], slots=100)
    renamed = sorted([*range(len(ordered)), -1], key=lambda i: (ordered[i] if i >= 0 else extra)[0])
    for index, work in enumerate(renamed):
        if work >= 0:
            before = times_ms(alone, str(work))
            after = times_ms(with_extra, str(index))
            assert all(late >= early - 1e-3 for late, early in zip(after, before, strict=True))


@given(running=st.integers(0, 500))
def test_time_per_token_rises_with_the_number_running(running: int) -> None:
    assert performance().tpot_s(running + 1) > performance().tpot_s(running)


@given(load=arrivals, cuts=st.lists(st.integers(0, 900), max_size=8))
def test_how_often_the_clock_is_read_changes_nothing(
    load: list[tuple[int, int, int]], cuts: list[int]
) -> None:
    batch = ContinuousBatch(performance(), slots=4)
    once = ContinuousBatch(performance(), slots=4)
    for number, (_, prompt, output) in enumerate(load):
        for each in (batch, once):
            each.submit(str(number), prompt_tokens=prompt, output_tokens=output)
    often = [token for cut in sorted(cuts) for token in batch.advance(cut / 1000)]
    often += batch.advance(1e6)
    at_once = once.advance(1e6)
    for number in range(len(load)):
        expected = times_ms(at_once, str(number))
        assert times_ms(often, str(number)) == pytest.approx(expected, abs=1e-3)
