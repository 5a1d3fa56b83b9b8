"""What the emulated engine understands of a request, and the text it answers with.

Every field is honoured, accepted as having no effect on an emulated answer, or refused by name.
Refusals have vLLM's status and OpenAI's shape. Pure: bytes and dictionaries in, values out.
"""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MARKER = "[emulated]"

_CHARS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_STOPS_MAX = 16
_SENTENCE = (
    "the tide gate holds while its own basin has room and opens when the water rises "
    "then ships pass slowly from lock to lock until evening falls over quiet harbour walls"
)
_WORDS = tuple(_SENTENCE.split())
# Sampling settings an emulated answer doesn't depend on.
_NO_EFFECT = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "metadata",
        "min_p",
        "presence_penalty",
        "priority",
        "reasoning_effort",
        "repetition_penalty",
        "request_id",
        "session_id",
        "skip_special_tokens",
        "store",
        "top_k",
        "user",
    }
)
# Settings it doesn't support, at the value that asks for nothing.
_DEFAULTS: dict[str, Any] = {
    "add_generation_prompt": True,
    "best_of": 1,
    "include_reasoning": True,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tool_choice": "none",
}


class WireError(Exception):
    """A request the engine refuses, with the status and body to answer."""

    def __init__(
        self, message: str, *, status: HTTPStatus = HTTPStatus.BAD_REQUEST, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    def to_body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = "NotFoundError" if self.status == HTTPStatus.NOT_FOUND else "BadRequestError"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.status.value,
            }
        }


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class _Generation(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: int | None = 1
    stop: str | Annotated[list[str], Field(max_length=_STOPS_MAX)] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    ignore_eos: bool = False


class _Chat(_Generation):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class _Completion(_Generation):
    prompt: str | list[int] | list[str]


@dataclass(frozen=True, slots=True)
class Served:
    """What this replica serves."""

    model: str
    context_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A request that was understood, with the answer it will get, piece by piece."""

    is_chat: bool
    is_stream: bool
    include_usage: bool
    prompt_tokens: int
    pieces: tuple[str, ...]
    finish_reason: str
    stop_reason: str | None


def read_generation(body: bytes, *, is_chat: bool, served: Served) -> Generation:
    """The request in `body`, checked against what is served.

    Raises:
        WireError: it can't be answered; the reason names the field.
    """
    request = _parse(body, _Chat if is_chat else _Completion)
    _refuse_unsupported(request)
    if request.model is not None and request.model != served.model:
        raise WireError(
            f"The model `{request.model}` does not exist.",
            status=HTTPStatus.NOT_FOUND,
            param="model",
        )
    prompt_tokens = _count_prompt(request)
    output_tokens, ends_by_length = _plan_length(request, prompt_tokens, served)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    pieces, stop_reason = _write(output_tokens, seed=request.seed or 0, stops=stops)
    is_cut = stop_reason is None and ends_by_length
    return Generation(
        is_chat=is_chat,
        is_stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        prompt_tokens=prompt_tokens,
        pieces=pieces,
        finish_reason="length" if is_cut else "stop",
        stop_reason=stop_reason,
    )


def estimate_tokens(text: str) -> int:
    """Tokens of a text, at four bytes each: an estimate, since there is no tokenizer here."""
    return math.ceil(len(text.encode()) / _CHARS_PER_TOKEN)


def _parse(body: bytes, kind: type[_Chat] | type[_Completion]) -> _Chat | _Completion:
    try:
        document = json.loads(body)
    except ValueError as exc:
        raise WireError(f"The body must be JSON: {exc}.") from exc
    if not isinstance(document, dict):
        raise WireError("The body must be a JSON object.")
    try:
        return kind.model_validate(document)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        raise WireError(f"`{param}` is not valid: {first['msg']}.", param=param) from exc


def _refuse_unsupported(request: _Chat | _Completion) -> None:
    if request.n not in {1, None}:
        raise WireError("The emulated engine answers once: `n` must be 1.", param="n")
    if request.stream_options is not None and not request.stream:
        raise WireError("`stream_options` needs `stream`: true.", param="stream_options")
    for name, value in (request.model_extra or {}).items():
        if name not in _NO_EFFECT and value and _DEFAULTS.get(name) != value:
            raise WireError(f"The emulated engine does not support `{name}`.", param=name)


def _count_prompt(request: _Chat | _Completion) -> int:
    if isinstance(request, _Chat):
        return _TOKENS_PER_MESSAGE + sum(_count_message(message) for message in request.messages)
    prompt = request.prompt
    if isinstance(prompt, str):
        return max(1, estimate_tokens(prompt))
    if not prompt:
        raise WireError("`prompt` must not be empty.", param="prompt")
    if isinstance(prompt[0], int):
        return len(prompt)
    if len(prompt) > 1:
        raise WireError("The emulated engine takes one prompt at a time.", param="prompt")
    return max(1, estimate_tokens(str(prompt[0])))


def _count_message(message: _Message) -> int:
    if message.content is None or isinstance(message.content, str):
        return _TOKENS_PER_MESSAGE + estimate_tokens(message.content or "")
    for part in message.content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise WireError("The emulated engine reads text parts only.", param="messages")
    return _TOKENS_PER_MESSAGE + sum(estimate_tokens(part["text"]) for part in message.content)


def _plan_length(
    request: _Chat | _Completion, prompt_tokens: int, served: Served
) -> tuple[int, bool]:
    """Tokens of the answer, and whether a limit rather than its own end stops it.

    An explicit limit is always used up, so that whoever tests with this engine decides how long
    its streams are.
    """
    room = served.context_tokens - prompt_tokens
    asked = request.max_tokens
    if isinstance(request, _Chat) and request.max_completion_tokens is not None:
        asked = request.max_completion_tokens
    if room < 1 or (asked is not None and asked > room):
        raise WireError(
            f"This model's maximum context length is {served.context_tokens} tokens; got "
            f"{prompt_tokens} in the prompt and {asked or 1} for the answer.",
            param="messages" if isinstance(request, _Chat) else "prompt",
        )
    if asked is not None:
        return asked, True
    if request.ignore_eos:
        return room, True
    natural = max(served.answer_tokens, request.min_tokens)
    return min(natural, room), natural > room


def _write(
    output_tokens: int, *, seed: int, stops: Sequence[str]
) -> tuple[tuple[str, ...], str | None]:
    """The answer token by token, ended before the first stop string; the marker always stays."""
    pieces = [MARKER, *islice(_endless(seed), output_tokens - 1)]
    text = "".join(pieces[1:])
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return tuple(pieces), None
    end, stop = min(found)
    return _cut(pieces, end=end, end_of_stop=end + len(stop)), stop


def _cut(pieces: list[str], *, end: int, end_of_stop: int) -> tuple[str, ...]:
    """Pieces up to the one that completes the stop string, without the text from `end` on."""
    kept = pieces[:1]
    position = 0
    for piece in pieces[1:]:
        if position >= end_of_stop:
            break
        kept.append(piece[: max(0, end - position)])
        position += len(piece)
    return tuple(kept)


def _endless(seed: int) -> Iterator[str]:
    index = zlib.crc32(str(seed).encode())
    while True:
        yield f" {_WORDS[index % len(_WORDS)]}"
        index += 1


class Answer:
    """The bodies of one answer: a whole one, or the chunks of a stream."""

    def __init__(
        self, generation: Generation, *, served: Served, answer_id: str, now_s: int
    ) -> None:
        self._generation = generation
        kind = "chat.completion" if generation.is_chat else "text_completion"
        suffix = ".chunk" if generation.is_chat and generation.is_stream else ""
        prefix = "chatcmpl" if generation.is_chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{answer_id}",
            "object": kind + suffix,
            "created": now_s,
            "model": served.model,
            "system_fingerprint": "emulated",
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a request that doesn't stream."""
        text = "".join(self._generation.pieces)
        if self._generation.is_chat:
            content: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            content = {"text": text}
        choice = {"index": 0, **content, "logprobs": None, **self._end()}
        return {**self._head, "choices": [choice], "usage": self._usage()}

    def role(self) -> dict[str, Any]:
        """The first chunk of a chat stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, text: str) -> dict[str, Any]:
        """A chunk with more text."""
        return self._chunk({"content": text})

    def end(self) -> dict[str, Any]:
        """The chunk that says why the stream ends."""
        return self._chunk({"content": ""}, **self._end())

    def usage(self) -> dict[str, Any]:
        """The chunk that follows the last one if usage was asked for."""
        return {**self._head, "choices": [], "usage": self._usage()}

    def _chunk(self, delta: dict[str, str], **end: Any) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": delta}
        if not self._generation.is_chat:
            content = {"text": delta["content"]}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": None, **end}
        return {**self._head, "choices": [choice]}

    def _end(self) -> dict[str, Any]:
        return {
            "finish_reason": self._generation.finish_reason,
            "stop_reason": self._generation.stop_reason,
        }

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._generation.prompt_tokens, len(self._generation.pieces)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
