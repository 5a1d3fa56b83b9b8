"""Request fields: passed on, rewritten or refused by name; never dropped, never echoed."""

import json
from typing import Any

import pytest

from deployments.refusals import InvalidRequestError, MalformedBodyError
from deployments.wire import (
    REFUSED_FIELDS,
    ChatRequest,
    TextRequest,
    parse_request,
    render_request,
)

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


PASSED_CHAT = {
    "max_tokens": 5,
    "min_tokens": 5,
    "max_completion_tokens": 5,
    "ignore_eos": True,
    "n": 2,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 1,
    "frequency_penalty": -1.5,
    "repetition_penalty": 1.1,
    "seed": 7,
    "stop": ["a", "b"],
    "logit_bias": {"12": -1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 1}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "stream": False,
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ],
}


@pytest.mark.parametrize("name", PASSED_CHAT)
def test_a_known_field_is_passed_on_as_it_came(name: str) -> None:
    request = parse_request(ChatRequest, chat(**{name: PASSED_CHAT[name]}))
    assert json.loads(render_request(request)) == CHAT | {name: PASSED_CHAT[name]}


def test_every_field_is_accounted_for() -> None:
    """Each field of a chat is passed on above, rewritten (stream_options, user) or the model."""
    assert set(ChatRequest.model_fields) - PASSED_CHAT.keys() == {"model", "stream_options", "user"}


def test_usage_is_asked_for_in_every_stream_and_the_clients_wish_is_remembered() -> None:
    request = parse_request(ChatRequest, chat(stream=True))
    assert not request.wants_usage
    assert json.loads(render_request(request))["stream_options"] == {"include_usage": True}
    asked = parse_request(ChatRequest, chat(stream=True, stream_options={"include_usage": True}))
    assert asked.wants_usage


def test_the_users_name_stays_at_the_gateway() -> None:
    assert "user" not in json.loads(render_request(parse_request(ChatRequest, chat(user="bob"))))


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_a_refused_field_is_refused_by_name_with_a_reason(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(ChatRequest, chat(**{name: None}))
    assert caught.value.param == name
    assert caught.value.code == "unsupported_field"
    assert REFUSED_FIELDS[name] in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_field"),
        ({"messages": [{"role": "user", "content": "x", "z": 1}]}, "messages.0.z", "unknown_field"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing_field"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
            "messages.0.content",
            "invalid_value",
        ),
        ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"n": 10_000}, "n", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"include_usage": True, "x": 1}},
            "stream_options.x",
            "unknown_field",
        ),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(
    fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(ChatRequest, chat(**fields))
    assert caught.value.code == code
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert "secret" not in caught.value.message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="messages is required"):
        parse_request(ChatRequest, b'{"model": "m"}')


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b'{"model": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a": ' * 40 + b"1" + b"}" * 40,
        b'{"model": "m"} trailing',
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "text",
        "null",
        "not utf-8",
        "NaN",
        "Infinity",
        "half a surrogate",
        "huge number",
        "deep beyond recursion",
        "deep",
        "trailing",
    ],
)
def test_a_body_that_is_not_plain_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        parse_request(ChatRequest, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "m", "model": "other", "prompt": "x"}',
        b'{"model": "m", "prompt": "x", "logit_bias": {"1": 1, "1": 2}}',
    ],
)
def test_a_key_that_stands_twice_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        parse_request(TextRequest, raw)
    assert caught.value.code == "duplicate_key"


@pytest.mark.parametrize("prompt", ["hi", ["a", "b"]])
def test_text_prompts_are_accepted(prompt: Any) -> None:
    request = parse_request(TextRequest, json.dumps(TEXT | {"prompt": prompt}).encode())
    assert json.loads(render_request(request))["prompt"] == prompt


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]], 5, None, [], ["x"] * 9])
def test_token_ids_and_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(TextRequest, json.dumps(TEXT | {"prompt": prompt}).encode())
    assert caught.value.param is not None
    assert caught.value.param.startswith("prompt")


def test_text_beyond_ascii_survives() -> None:
    request = parse_request(TextRequest, '{"model":"m","prompt":"naïve 🙂 \\u0000"}'.encode())
    assert json.loads(render_request(request))["prompt"] == "naïve 🙂 \x00"
