"""A stream counts as complete only with finish_reason, usage and [DONE], and without an error."""

import json

import pytest

from infra.stream_client import Stream, _read_line

DELTA = {"choices": [{"delta": {"content": "Paris"}, "finish_reason": None}]}
FINISH = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 1}}
ERROR = {"error": {"message": "replica lost", "type": "server_error"}}


def read(*events: object) -> Stream:
    stream = Stream(started_s=0.0)
    for event in events:
        _read_line(stream, f"data: {event if isinstance(event, str) else json.dumps(event)}")
    return stream


def test_a_whole_stream_is_complete() -> None:
    stream = read(DELTA, FINISH, USAGE, "[DONE]")
    assert stream.is_complete
    assert stream.tokens == 1
    assert "".join(stream.text) == "Paris"


@pytest.mark.parametrize(
    "events",
    [
        (DELTA, USAGE, "[DONE]"),
        (DELTA, FINISH, "[DONE]"),
        (DELTA, FINISH, USAGE),
        (DELTA, FINISH, USAGE, ERROR, "[DONE]"),
    ],
    ids=["no finish_reason", "no usage", "no [DONE]", "an error event"],
)
def test_a_stream_that_lacks_anything_is_not_complete(events: tuple[object, ...]) -> None:
    assert not read(*events).is_complete


def test_a_stream_is_open_from_the_first_header_to_its_end() -> None:
    stream = Stream(started_s=0.0)
    assert not stream.is_open
    stream.site = "cloud"
    assert stream.is_open
    stream.ended_s = 1.0
    assert not stream.is_open


def test_comments_and_blank_lines_are_not_events() -> None:
    stream = Stream(started_s=0.0)
    for line in ("", ": keep-alive", "event: x"):
        _read_line(stream, line)
    assert stream == Stream(started_s=0.0)
