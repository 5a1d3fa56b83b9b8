"""How a mistake in a settings file is worded: key, rule, value, fix; never one at a time.

Used for every settings file of the project that is read with pydantic.
"""

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_VALUE_CHARACTERS_MAX = 60


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake. `got` is the value as a person reads it; `fix` is what to do, one sentence."""

    key: str
    rule: str
    got: str
    fix: str


def render_mistakes(file: str, mistakes: Sequence[Mistake]) -> str:
    """Return one message with every mistake on a line of its own, in the order of their keys."""
    found = sorted(set(mistakes))
    count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
    lines = [f"  {one.key} must {one.rule}; got {one.got}. {one.fix}" for one in found]
    return "\n".join([f"{file} has {count}:", *lines])


def explain_validation_errors(error: ValidationError, model: type[BaseModel]) -> Iterator[Mistake]:
    """Yield pydantic's findings as mistakes that name the rule and the fix."""
    for detail in error.errors(include_url=False):
        yield _explain(detail, model)


def describe_value(value: object) -> str:
    """Return a value as it is shown in a message: short, and clear about its type."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _VALUE_CHARACTERS_MAX else text[:_VALUE_CHARACTERS_MAX] + "…"


def suggest_name(name: str, known: Sequence[str]) -> str:
    """Return a sentence that names the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(sorted(known))}." if known else "Remove it."


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> Mistake:
    path = _Path(model, detail["loc"])
    if detail["type"] == "extra_forbidden":
        name = str(detail["loc"][-1])
        return Mistake(path.key, "be a known key", repr(name), suggest_name(name, path.siblings))
    if detail["type"] == "missing":
        return Mistake(path.key, "be given", "nothing", _advise("Add it", path.description))
    got = describe_value(detail["input"])
    return Mistake(path.key, _word_rule(detail), got, _advise("It is", path.description))


def _advise(start: str, description: str | None) -> str:
    if description is None:
        return "Compare cluster/local.yaml."
    return f"{start}: {description}."


def _word_rule(detail: ErrorDetails) -> str:
    """Return the rule that was broken, to follow "must"."""
    context: dict[str, Any] = detail.get("ctx", {})
    rules = {
        "int_type": "be a whole number",
        "int_from_float": "be a whole number",
        "float_type": "be a number",
        "is_instance_of": "be a number",
        "decimal_type": "be a number",
        "finite_number": "be a finite number",
        "bool_type": "be true or false",
        "string_type": "be text",
        "dict_type": "be a mapping",
        "model_type": "be a mapping",
        "list_type": "be a list",
        "greater_than": f"be greater than {context.get('gt')}",
        "greater_than_equal": f"be at least {context.get('ge')}",
        "less_than": f"be less than {context.get('lt')}",
        "less_than_equal": f"be at most {context.get('le')}",
        "literal_error": f"be {context.get('expected')}",
        "union_tag_invalid": f"have as kind one of {context.get('expected_tags')}",
        "union_tag_not_found": "have a kind",
        "string_pattern_mismatch": f"match {context.get('pattern')}",
        "too_short": f"have at least {context.get('min_length')} entry",
    }
    return rules.get(detail["type"], f"be valid ({detail['msg']})")


class _Path:
    """The way from a settings model to one value: its key, its description, the keys beside it."""

    def __init__(self, model: type[BaseModel], location: Sequence[int | str]) -> None:
        self.description: str | None = None
        self.siblings: list[str] = []
        shown: list[str] = []
        here: Any = model
        for part in location:
            if _is_tag(here, part):
                here = _choose_member(here, part)
                continue
            if part == "[key]":
                continue
            shown.append(f"[{part}]" if isinstance(part, int) else f".{part}")
            here = self._step(here, part)
        self.key = "".join(shown).removeprefix(".")

    def _step(self, here: Any, part: int | str) -> Any:
        here = _strip(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            self.siblings = list(here.model_fields)
            field = here.model_fields.get(str(part))
            self.description = field.description if field else None
            return field.annotation if field else None
        arguments = typing.get_args(here)
        return arguments[-1] if arguments else None


def _strip(annotation: Any) -> Any:
    """Return the type inside Annotated and Optional."""
    while True:
        arguments = typing.get_args(annotation)
        if hasattr(annotation, "__metadata__"):
            annotation = arguments[0]
        elif type(None) in arguments:
            annotation = next(one for one in arguments if one is not type(None))
        else:
            return annotation


def _members(annotation: Any) -> dict[str, Any]:
    """Return the models of a union by kind; empty for anything else."""
    models = [one for one in typing.get_args(_strip(annotation)) if isinstance(one, type)]
    named = [one for one in models if issubclass(one, BaseModel) and "kind" in one.model_fields]
    return {_kind_of(one.model_fields["kind"]): one for one in named}


def _kind_of(field: FieldInfo) -> str:
    return str(typing.get_args(field.annotation)[0])


def _is_tag(annotation: Any, part: int | str) -> bool:
    return part in _members(annotation)


def _choose_member(annotation: Any, part: int | str) -> Any:
    return _members(annotation)[str(part)]
