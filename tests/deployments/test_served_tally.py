"""What one settled request adds to a pool's counters."""

from typing import Any

import pytest

from deployments.served_tally import ServedTally, Settled
from deployments.signals import Served

# Held from 0.5 s on, first token at 1 s, the end at 3 s: 10 tokens, so 9 came after the first.
STREAM = Settled(
    held_from_s=0.5, ended_s=3.0, first_token_s=1.0, prompt_tokens=100, output_tokens=10
)


def settled(**changes: Any) -> Settled:
    """The stream above, changed."""
    fields = {name: getattr(STREAM, name) for name in Settled.__slots__}
    return Settled(**(fields | changes))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (STREAM, Served(1, 100, 10, 2.5, 1, 1.0, 9, 2.0, 0.5, 0, 10_000, 100)),
        (
            settled(first_token_s=None),
            Served(1, 100, 10, 2.5, read_tokens_squared=10_000, output_tokens_squared=100),
        ),
        (
            settled(output_tokens=1),
            Served(1, 100, 1, 2.5, 1, 1.0, 0, 0.0, 0.5, 0, 10_000, 1),
        ),
        (settled(output_tokens=None), Served(first_tokens=1, ttft_s=1.0, waited_s=0.5)),
        (settled(output_tokens=10**9), Served(first_tokens=1, ttft_s=1.0, waited_s=0.5)),
        (settled(prompt_tokens=-3), Served(first_tokens=1, ttft_s=1.0, waited_s=0.5)),
    ],
    ids=["stream", "sent whole", "one token", "broke off", "absurd length", "negative length"],
)
def test_a_request_adds_what_is_known_of_it(request_: Settled, expected: Served) -> None:
    tally = ServedTally()
    tally.note("onprem", request_)
    assert tally.read("onprem") == expected


@pytest.mark.parametrize(
    ("cached", "counted"),
    [(60, 60), (0, 0), (100, 100), (None, 0), (-1, 0), (101, 0), (10**9, 0)],
)
def test_the_cached_part_of_a_prompt_counts_where_it_can_be_true(
    cached: int | None, counted: int
) -> None:
    """Of 100 tokens; an absurd part spoils no length, and is taken for none."""
    tally = ServedTally()
    tally.note("onprem", settled(cached_tokens=cached))
    assert tally.read("onprem") == Served(
        1, 100, 10, 2.5, 1, 1.0, 9, 2.0, 0.5, counted, (100 - counted) ** 2, 100
    )


def test_an_answer_without_its_lengths_adds_no_cached_part() -> None:
    tally = ServedTally()
    tally.note("onprem", settled(output_tokens=None, cached_tokens=60))
    assert tally.read("onprem").cached_tokens == 0


def test_squares_are_of_each_request_and_of_what_was_read_of_it() -> None:
    """40 of 100 tokens read, then all of 100: 1,600 + 10,000, and 100 + 400 of the outputs."""
    tally = ServedTally()
    for request in (settled(cached_tokens=60), settled(output_tokens=20)):
        tally.note("onprem", request)
    served = tally.read("onprem")
    assert (served.read_tokens_squared, served.output_tokens_squared) == (11_600, 500)


def test_pools_are_counted_apart_and_only_grow() -> None:
    """Two at home, one in the cloud."""
    tally = ServedTally()
    for pool in ("onprem", "cloud", "onprem"):
        tally.note(pool, STREAM)
    assert [tally.read(pool).requests for pool in ("onprem", "cloud", "none")] == [2, 1, 0]
    assert tally.read("onprem").hold_s == 5.0
