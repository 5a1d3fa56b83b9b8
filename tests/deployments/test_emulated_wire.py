"""The emulated engine's reading of requests and its texts."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.emulated_wire import (
    MARKER,
    Generation,
    Served,
    WireError,
    estimate_tokens,
    read_generation,
)

SERVED = Served(model="m", context_tokens=100, answer_tokens=20)


def read(*, is_chat: bool = False, **fields: Any) -> Generation:
    """A completion of a two-token prompt, unless `fields` say otherwise."""
    request = (
        {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "eight by"}
    )
    body = json.dumps({"model": "m", **request, **fields}).encode()
    return read_generation(body, is_chat=is_chat, served=SERVED)


def test_an_explicit_limit_is_used_up() -> None:
    generation = read(max_tokens=7)
    assert len(generation.pieces) == 7
    assert generation.finish_reason == "length"


def test_an_answer_without_a_limit_ends_by_itself() -> None:
    generation = read()
    assert len(generation.pieces) == 20
    assert generation.finish_reason == "stop"


def test_an_answer_that_ignores_its_end_fills_the_context() -> None:
    """100 tokens of context less 2 of prompt."""
    generation = read(ignore_eos=True)
    assert (generation.prompt_tokens, len(generation.pieces)) == (2, 98)
    assert generation.finish_reason == "length"


def test_the_newer_name_of_the_chat_limit_wins() -> None:
    assert len(read(is_chat=True, max_tokens=9, max_completion_tokens=5).pieces) == 5


def test_a_prompt_of_token_ids_is_counted_exactly() -> None:
    assert read(prompt=[5, 6, 7], max_tokens=1).prompt_tokens == 3


def test_text_parts_count_like_text() -> None:
    """Four tokens of frame, four per message, and 8 characters / 4."""
    parts = [{"type": "text", "text": "12345678"}]
    generation = read(is_chat=True, messages=[{"role": "user", "content": parts}], max_tokens=1)
    assert generation.prompt_tokens == 4 + 4 + 2


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert read(seed=1).pieces == read(seed=1).pieces
    assert read(seed=1).pieces != read(seed=2).pieces


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": 5},
        {"echo": True},
        {"suffix": "x"},
        {"best_of": 2},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"kv_transfer_params": {"prompt_token_ids": [1]}},
        {"use_beam_search": True},
        {"prompt": ["a", "b"]},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_it_cannot_do_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(WireError) as refused:
        read(**fields)
    assert refused.value.status == 400
    assert next(iter(fields)) in f"{refused.value} {refused.value.param}"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"logprobs": None},
        {"n": 1},
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"top_k": 5, "user": "u", "presence_penalty": 0.5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_asks_for_nothing_special_is_accepted(fields: dict[str, Any]) -> None:
    assert read(**fields).pieces[0] == MARKER


def test_an_image_is_refused_by_name() -> None:
    content = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(WireError, match="text parts only"):
        read(is_chat=True, messages=[{"role": "user", "content": content}])


def test_errors_never_repeat_the_prompt() -> None:
    with pytest.raises(WireError) as refused:
        read(is_chat=True, messages=[{"role": "user", "content": {"canary": 1}}])
    assert "canary" not in json.dumps(refused.value.to_body())


@given(
    stop=st.text(alphabet="abcdefghilnoprstuw ", min_size=1, max_size=6),
    seed=st.integers(0, 40),
    max_tokens=st.integers(1, 60),
)
def test_a_stop_string_is_never_shown_and_cuts_exactly_before_its_first_place(
    stop: str, seed: int, max_tokens: int
) -> None:
    plain = "".join(read(seed=seed, max_tokens=max_tokens).pieces).removeprefix(MARKER)
    generation = read(seed=seed, max_tokens=max_tokens, stop=stop)
    text = "".join(generation.pieces).removeprefix(MARKER)
    assert text == plain.split(stop)[0]
    assert generation.finish_reason == ("stop" if stop in plain else "length")
    assert len(generation.pieces) <= max_tokens


@given(text=st.text())
def test_an_estimate_is_within_the_bytes(text: str) -> None:
    assert len(text.encode()) / 4 <= estimate_tokens(text) <= len(text.encode()) / 4 + 1


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completion"])
@given(body=st.binary(max_size=60))
def test_any_bytes_are_refused_or_understood(*, is_chat: bool, body: bytes) -> None:
    with contextlib.suppress(WireError):
        read_generation(body, is_chat=is_chat, served=SERVED)
