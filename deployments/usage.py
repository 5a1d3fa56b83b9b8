"""What an engine says that a request took: the usage object of an OpenAI answer.

Pure. Only read here: whether a figure can be true is judged where it is counted
(`deployments.served_tally`). Clients get it without what it says of reused prompts.
"""

import json
from dataclasses import dataclass
from typing import Any

_DETAILS = "prompt_tokens_details"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; None = the engine doesn't say.

    `cached_tokens` of the prompt's were still there from an earlier one and not read again.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


def read_usage(usage: object) -> Usage:
    """The figures in a usage object; what isn't a whole number is unknown."""
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get(_DETAILS)
    return Usage(
        prompt_tokens=_read_count(usage.get("prompt_tokens")),
        completion_tokens=_read_count(usage.get("completion_tokens")),
        cached_tokens=_read_count(details.get("cached_tokens"))
        if isinstance(details, dict)
        else None,
    )


def hide_reuse(answer: dict[str, Any]) -> bytes | None:
    """The answer as JSON that says nothing of reused prompts; None if it doesn't anyway.

    Tenants share prefix caches: how much of a prompt was cached tells one what others have asked.
    """
    usage = answer.get("usage")
    if not isinstance(usage, dict) or usage.get(_DETAILS) is None:
        return None
    hidden = {**answer, "usage": {**usage, _DETAILS: None}}
    return json.dumps(hidden, separators=(",", ":")).encode()


def _read_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
