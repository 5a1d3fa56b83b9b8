"""What is believed of an engine's usage, and what of it clients are told."""

import json

import pytest

from deployments.usage import Usage, hide_reuse, read_usage


def test_tokens_and_the_part_of_the_prompt_that_was_cached_are_read() -> None:
    details = {"cached_tokens": 48, "created_cache_tokens": None}
    usage = {"prompt_tokens": 60, "completion_tokens": 2, "prompt_tokens_details": details}
    assert read_usage(usage) == Usage(60, 2, cached_tokens=48)


@pytest.mark.parametrize(
    "usage", [None, 5, {}, {"prompt_tokens": "3"}, {"prompt_tokens": True, "total_tokens": 3}]
)
def test_usage_that_says_nothing_is_unknown(usage: object) -> None:
    assert read_usage(usage) == Usage()


@pytest.mark.parametrize(
    "details",
    [None, 3, [], {}, *({"cached_tokens": value} for value in (None, "3", True, 1.5, [1]))],
)
def test_a_cached_part_that_is_no_whole_number_is_unknown(details: object) -> None:
    usage = {"prompt_tokens": 60, "completion_tokens": 2, "prompt_tokens_details": details}
    assert read_usage(usage) == Usage(60, 2)


def test_clients_are_not_told_what_of_a_prompt_was_cached() -> None:
    """It would tell one tenant what another has asked."""
    usage = {"prompt_tokens": 60, "prompt_tokens_details": {"cached_tokens": 48}}
    answer = {"id": "x", "choices": [{"text": "\u00fc"}], "usage": usage}
    hidden = hide_reuse(answer)
    assert hidden is not None
    expected = {"prompt_tokens": 60, "prompt_tokens_details": None}
    assert json.loads(hidden) == answer | {"usage": expected}


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens_details": None}])
def test_an_answer_without_such_a_word_stays_as_it_is(usage: object) -> None:
    assert hide_reuse({"usage": usage}) is None
