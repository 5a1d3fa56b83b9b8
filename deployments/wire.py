"""The request fields we know: each is passed on, rewritten or refused by name; the rest is refused.

What an engine would do with a field we don't know can't be judged, and two readers of one body may
read it differently. So the body is parsed here, once, and what goes on to a replica is our own
serialisation of the fields below.
"""

import json
import re
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.refusals import InvalidRequestError, MalformedBodyError

DEPTH_MAX = 32
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Text = Annotated[str, Field(max_length=1_000_000)]
ShortText = Annotated[str, Field(max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=1_048_576)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
JsonObject = dict[str, Any]

REFUSED_FIELDS = {
    "add_generation_prompt": "the model's chat template decides it",
    "add_special_tokens": "the model's chat template decides it",
    "allowed_token_ids": "token ids are not accepted",
    "audio": "only text is served",
    "bad_words": "it is not supported",
    "best_of": "it multiplies work without a bound",
    "cache_salt": "prompt caches are shared by all tenants of a model",
    "chat_template": "the model's own template is used",
    "chat_template_kwargs": "the model's own template is used",
    "continue_final_message": "it is not supported",
    "documents": "it is not supported",
    "echo": "it is not supported",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_choice": "use response_format",
    "guided_grammar": "use response_format",
    "guided_json": "use response_format",
    "guided_regex": "use response_format",
    "kv_transfer_params": "it can replace the messages that were checked",
    "logits_processors": "it runs code in the engine",
    "metadata": "nothing is stored",
    "mm_processor_kwargs": "only text is served",
    "modalities": "only text is served",
    "prediction": "it is not supported",
    "priority": "the gateway keeps the order",
    "prompt_embeds": "only text is served",
    "prompt_logprobs": "it is not supported",
    "request_id": "the gateway names requests",
    "return_token_ids": "it is not supported",
    "service_tier": "there is only one",
    "store": "nothing is stored",
    "structured_outputs": "use response_format",
    "suffix": "it is not supported",
    "truncate_prompt_tokens": "it is not supported",
    "use_beam_search": "it multiplies work without a bound",
    "vllm_xargs": "it reaches into the engine",
    "web_search_options": "it is not supported",
}


class Part(BaseModel):
    """Base of everything in a request: unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Part):
    """A piece of a message. Only text: a URL would make the engine fetch what it names."""

    type: Literal["text"]
    text: Text


class FunctionCall(Part):
    """The function an assistant called."""

    name: ShortText
    arguments: Text


class ToolCall(Part):
    """One call in an assistant's message."""

    id: ShortText
    type: Literal["function"]
    function: FunctionCall


class Message(Part):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=256)] | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: ShortText | None = None


class Function(Part):
    """A function the model may call."""

    name: ShortText
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The name of a function."""

    name: ShortText


class NamedTool(Part):
    """The tool the model must use."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Part):
    """A schema the answer must follow."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    name: ShortText
    description: Text | None = None
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """The form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Part):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class CompletionBase(Part):
    """Fields both operations share. `user` is checked and kept from the engine."""

    path: ClassVar[str]

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1_048_576)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: ShortText | Annotated[list[ShortText], Field(max_length=16)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^\d{1,9}$")],
                Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
            ],
            Field(max_length=300),
        ]
        | None
    ) = None
    user: ShortText | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for usage in its stream."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(CompletionBase):
    """`POST /v1/chat/completions`."""

    path = "/v1/chat/completions"

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None


class TextRequest(CompletionBase):
    """`POST /v1/completions`. Prompts are text: token ids would pass unread."""

    path = "/v1/completions"

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=8)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


RequestT = TypeVar("RequestT", ChatRequest, TextRequest)


def parse_request(kind: type[RequestT], raw: bytes) -> RequestT:
    """The request in `raw`.

    Raises:
        MalformedBodyError: it isn't JSON, or a key stands twice in one object.
        InvalidRequestError: a field is unknown, refused, or wrong; the message names it, never
            its value.
    """
    body = parse_object(raw)
    for name in body:
        if name in REFUSED_FIELDS and name not in kind.model_fields:
            raise InvalidRequestError(
                f"{name} is not accepted: {REFUSED_FIELDS[name]}.", name, "unsupported_field"
            )
    try:
        request = kind.model_validate(body)
    except ValidationError as exc:
        raise _describe(exc, body) from None
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError(
            "stream_options is only accepted with stream: true.", "stream_options"
        )
    return request


def render_request(request: CompletionBase) -> bytes:
    """The body for a replica: our serialisation, usage asked for, without `user`."""
    fields = request.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"user"})
    if request.stream:
        fields["stream_options"] = {"include_usage": True}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def parse_object(raw: bytes) -> JsonObject:
    """The JSON object in `raw`, which must read one way only and be at most DEPTH_MAX deep."""
    try:
        body = json.loads(
            raw.decode(), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        raise MalformedBodyError("The body must be JSON in UTF-8; it can't be read.") from None
    if not isinstance(body, dict):
        raise MalformedBodyError("The body must be a JSON object.")
    if _is_deeper_than(body, DEPTH_MAX):
        raise MalformedBodyError(f"The body must be at most {DEPTH_MAX} levels deep.")
    if _SURROGATE.search(raw) and not _is_unicode(body):
        raise MalformedBodyError("The body must be Unicode; half a surrogate pair isn't.")
    return body


def _refuse_twins(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise MalformedBodyError(
            "A key must stand only once in its object.", twin[:64], "duplicate_key"
        )
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBodyError(f"{name} is not a JSON number.")


def _is_unicode(body: JsonObject) -> bool:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_is_deeper_than(child, levels - 1) for child in children)


def _describe(exc: ValidationError, body: JsonObject) -> InvalidRequestError:
    """The first mistake, by field and rule; a value is never repeated."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(_path(first["loc"], body))[:256]
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"{param} is not a field of this request.", param, "unknown_field"
        )
    if first["type"] == "missing":
        return InvalidRequestError(f"{param} is required.", param, "missing_field")
    return InvalidRequestError(f"{param}: {first['msg']}.", param)


def _path(loc: tuple[int | str, ...], body: Any) -> list[str]:
    """The parts of `loc` that lie in the body; pydantic adds the names of the types it tried."""
    names = []
    value = body
    for index, part in enumerate(loc):
        if isinstance(value, dict) and (part in value or index == len(loc) - 1):
            value = value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            continue
        names.append(str(part))
    return names
