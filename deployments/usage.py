"""What an engine says that a request took: the usage object of an OpenAI answer.

Pure. Only read here: whether a figure can be true is judged where it is counted
(`deployments.served_tally`).
"""

from dataclasses import dataclass


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
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_read_count(usage.get("prompt_tokens")),
        completion_tokens=_read_count(usage.get("completion_tokens")),
        cached_tokens=_read_count(details.get("cached_tokens"))
        if isinstance(details, dict)
        else None,
    )


def _read_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
