"""What a replica can do: work, not replicas, so different GPUs and lengths add up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.capacity import Lengths, find_batch, find_pace_s, find_rps, find_variation
from deployments.continuous_batching import Performance
from deployments.gpu_performance import find_row

# One second a token alone, a tenth more for each other request; prefill is free.
PLAIN = Performance(
    tpot_base_s=1.0,
    tpot_per_running_s=0.1,
    prefill_base_s=0.0,
    prefill_per_token_s=0.0,
    kv_capacity_tokens=1_000_000,
)
LENGTHS = Lengths(prompt_tokens=100, output_tokens=10)
ROWS = ["h100-8b", "a100-80-8b", "l40s-8b", "a10g-8b"]


def test_the_rate_is_a_batch_by_how_long_one_of_it_takes() -> None:
    """Five at once, 10 tokens at 1 + 5 x 0.1 s: 5 in 15 s."""
    assert find_rps(PLAIN, LENGTHS, slots=5, tpot_s_max=9) == pytest.approx(5 / 15)


def test_the_batch_is_the_largest_that_keeps_the_promised_pace() -> None:
    """1 + n x 0.1 <= 1.4 s a token allows four of the eight slots."""
    assert find_batch(PLAIN, LENGTHS, slots=8, tpot_s_max=1.401) == 4


def test_where_no_batch_keeps_the_promise_the_slots_decide() -> None:
    """One alone takes 1.1 s a token: more replicas would be no faster than 0.5 s either."""
    assert find_batch(PLAIN, LENGTHS, slots=8, tpot_s_max=0.5) == 8


def test_no_more_run_at_once_than_kv_memory_holds() -> None:
    """A request holds 100 + 10/2 tokens on average; 400 hold three of them."""
    small = replace(PLAIN, kv_capacity_tokens=400)
    assert find_batch(small, LENGTHS, slots=8, tpot_s_max=9) == 3


def test_a_request_larger_than_kv_memory_still_counts_as_one() -> None:
    assert find_batch(replace(PLAIN, kv_capacity_tokens=50), LENGTHS, slots=8, tpot_s_max=9) == 1


def test_each_request_brings_the_others_its_prefill_once_per_answer() -> None:
    """100 tokens at 10 ms are 1 s, over 10 steps 0.1 s a step: 1 + 5 x (0.1 + 0.1) s a token."""
    slow = replace(PLAIN, prefill_per_token_s=0.01)
    assert find_pace_s(slow, LENGTHS, batch=5) == pytest.approx(2.0)


def test_what_is_cached_of_a_prompt_takes_no_time() -> None:
    """Of 100 tokens at 10 ms 60 are cached: the rate is that of prompts of 40."""
    slow = replace(PLAIN, prefill_per_token_s=0.01)
    reused, short = replace(LENGTHS, cached_tokens=60), replace(LENGTHS, prompt_tokens=40)
    assert find_pace_s(slow, reused, batch=5) == find_pace_s(slow, short, batch=5)
    found, expected = (find_rps(slow, one, slots=5, tpot_s_max=9) for one in (reused, short))
    assert found == pytest.approx(expected)


def test_what_is_cached_of_a_prompt_takes_memory_all_the_same() -> None:
    """A request holds 100 + 10/2 tokens however little of it was read; 400 hold three of them."""
    small = replace(PLAIN, kv_capacity_tokens=400)
    reused = replace(LENGTHS, cached_tokens=90)
    assert find_batch(small, reused, slots=8, tpot_s_max=9) == 3


def test_more_cached_than_there_was_costs_nothing_and_earns_nothing() -> None:
    assert replace(LENGTHS, cached_tokens=101).read_tokens == 0


def vary(lengths: Lengths, *, read: float, output: float) -> float:
    """The variation of work at 10 ms a prompt token, five at once."""
    slow = replace(PLAIN, prefill_per_token_s=0.01)
    varied = replace(lengths, read_variation=read, output_variation=output)
    return find_variation(slow, varied, slots=5, tpot_s_max=9)


def test_the_variation_of_work_is_that_of_its_parts_by_what_they_cost() -> None:
    """100 tokens read: 1 s and a slot's fifth of it; 10 put out at (1 + 5 x 0.1) / 5 s: 3 s.

    (4 x 1.2^2 + 1 x 3^2) / 4.2^2.
    """
    assert vary(LENGTHS, read=4, output=1) == pytest.approx((4 * 1.2**2 + 3**2) / 4.2**2, rel=0.01)


def test_requests_of_one_length_are_work_that_does_not_vary() -> None:
    assert vary(LENGTHS, read=0, output=0) == 0


def test_where_nothing_is_put_out_work_varies_as_what_is_read() -> None:
    assert vary(Lengths(10_000, 1), read=3, output=1) == pytest.approx(3, rel=0.02)


def test_unknown_variation_is_that_of_exponential_work() -> None:
    assert find_variation(PLAIN, LENGTHS, slots=5, tpot_s_max=9) == 1


def test_one_odd_request_makes_no_variation_without_bounds() -> None:
    assert vary(Lengths(10_000, 1), read=100, output=1) == 9


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_own_lengths_give_the_rows_own_pace(name: str) -> None:
    """The fit's requests cost the others their prefill already: it isn't counted twice.

    Two rows have a slope below that share; theirs is the share then, 5 % slower at a batch of 16.
    """
    row = find_row(name)
    lengths = Lengths(row.fit_prompt_tokens, row.fit_output_tokens)
    pace_s = find_pace_s(row.to_decode_performance(), lengths, batch=16)
    assert pace_s == pytest.approx(row.to_performance().tpot_s(16), rel=0.05)


def test_an_a100_does_more_work_than_an_l40s_in_as_many_slots() -> None:
    """The same 32 slots; a token of one in a full batch takes 22 and 39 ms: 1.75 times as much."""
    lengths = Lengths(1024, 256)
    a100, l40s = (
        find_rps(find_row(name).to_decode_performance(), lengths, slots=32, tpot_s_max=0.1)
        for name in ("a100-80-8b", "l40s-8b")
    )
    assert a100 / l40s == pytest.approx(1.75, abs=0.1)


_LENGTHS = st.builds(Lengths, st.floats(1, 8000), st.floats(1, 2000))


@given(st.sampled_from(ROWS), _LENGTHS, st.integers(1, 256), st.floats(0.001, 1))
def test_a_rate_is_a_positive_number_and_longer_requests_never_make_it_larger(
    name: str, lengths: Lengths, slots: int, tpot_s_max: float
) -> None:
    performance = find_row(name).to_decode_performance()
    rps = find_rps(performance, lengths, slots=slots, tpot_s_max=tpot_s_max)
    assert 0 < rps < float("inf")
    longer = Lengths(lengths.prompt_tokens * 2, lengths.output_tokens)
    # Only where the promise is kept by both: a batch that no longer keeps it is let go.
    if find_pace_s(performance, longer, batch=1) <= tpot_s_max:
        assert find_rps(performance, longer, slots=slots, tpot_s_max=tpot_s_max) <= rps
