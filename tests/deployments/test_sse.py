"""The relay: whole events go through untouched, usage only to those who asked."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from deployments.sse import EventRelay, list_chunks
from deployments.usage import Usage

WORD = b'data: {"choices":[{"delta":{"content":"w"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = WORD + WORD + USAGE + DONE


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=6), wants_usage=st.booleans())
def test_where_the_stream_is_cut_makes_no_difference(cuts: list[int], *, wants_usage: bool) -> None:
    relay = EventRelay(wants_usage=wants_usage)
    ends = [0, *sorted(cuts), len(STREAM)]
    out = b"".join(relay.feed(STREAM[start:end]) for start, end in itertools.pairwise(ends))
    assert out == (STREAM if wants_usage else WORD + WORD + DONE)
    assert relay.is_done
    assert relay.usage == Usage(3, 2)


def test_usage_is_noted_whole_and_passed_on_without_the_cached_part() -> None:
    details = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    event = b"data: " + json.dumps({"choices": [], "usage": details}).encode() + b"\n\n"
    relay = EventRelay(wants_usage=True)
    (chunk,) = list_chunks(relay.feed(event))
    assert chunk == {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": None}}
    assert relay.usage == Usage(3, cached_tokens=2)


def test_a_word_that_looks_like_usage_is_not_taken_for_it() -> None:
    event = b'data: {"choices":[{"delta":{"content":"\\"usage\\""}}]}\n\n'
    assert EventRelay(wants_usage=False).feed(event) == event


def test_an_engines_own_error_goes_through_and_is_noticed() -> None:
    relay = EventRelay(wants_usage=False)
    event = b'data: {"error":{"message":"out of memory"}}\n\n'
    assert relay.feed(event) == event
    assert relay.has_failed


def test_a_stream_without_its_end_mark_is_not_done() -> None:
    relay = EventRelay(wants_usage=False)
    relay.feed(WORD)
    assert not relay.is_done


def test_chunks_are_read_without_the_end_mark() -> None:
    assert list_chunks(WORD + DONE) == [json.loads(WORD.removeprefix(b"data: "))]
