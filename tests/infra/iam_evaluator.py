"""Decides by an IAM policy's JSON, as far as our policies use the language.

moto decides by action alone: its EC2 calls all have resource "*" and no condition values, and a
statement with a condition refuses. So regions, types and tags are decided here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

ACCOUNT = "123456789012"


@dataclass(frozen=True, slots=True)
class Question:
    """May this be done to this? `context` holds condition keys; a tuple is a key of many values."""

    action: str
    resource: str
    context: Mapping[str, Any]


def is_allowed(policy: Mapping[str, Any], question: Question) -> bool:
    """Return IAM's answer: something allows it and nothing denies it."""
    effects = {one["Effect"] for one in policy["Statement"] if _applies(one, question)}
    return effects == {"Allow"}


def ask_run_instances(params: Mapping[str, str], *, region: str) -> Iterator[Question]:
    """Yield what AWS asks IAM about one RunInstances request: once for each resource it touches."""
    own = f"arn:aws:ec2:{region}:{ACCOUNT}"
    tags = {spec: _read_tags(params, spec) for spec in ("instance", "volume")}
    base = {"aws:RequestedRegion": region}
    yield Question(
        "ec2:RunInstances",
        f"{own}:instance/*",
        {
            **base,
            **tags["instance"],
            "ec2:InstanceType": params["InstanceType"],
            "ec2:MetadataHttpTokens": params.get("MetadataOptions.HttpTokens", "optional"),
        },
    )
    yield Question("ec2:RunInstances", f"{own}:volume/*", {**base, **tags["volume"]})
    touched = [f"arn:aws:ec2:{region}::image/{params['ImageId']}", f"{own}:network-interface/*"]
    touched.append(f"{own}:subnet/{params['SubnetId']}")
    touched.append(f"{own}:security-group/{params['SecurityGroupId.1']}")
    if "KeyName" in params:
        touched.append(f"{own}:key-pair/{params['KeyName']}")
    for resource in touched:
        yield Question("ec2:RunInstances", resource, base)
    for kind, kind_tags in tags.items():
        if kind_tags:
            context = {**base, **kind_tags, "ec2:CreateAction": "RunInstances"}
            yield Question("ec2:CreateTags", f"{own}:{kind}/*", context)


def ask_about_instance(
    action: str, *, region: str, tags: Mapping[str, str], sets: Mapping[str, str] | None = None
) -> Question:
    """Return what AWS asks about a call on an instance that carries `tags`; `sets` are new tags."""
    context: dict[str, Any] = {
        "aws:RequestedRegion": region,
        **{f"ec2:ResourceTag/{name}": text for name, text in tags.items()},
        **{f"aws:RequestTag/{name}": text for name, text in (sets or {}).items()},
        "aws:TagKeys": tuple(sets or ()),
    }
    return Question(f"ec2:{action}", f"arn:aws:ec2:{region}:{ACCOUNT}:instance/i-1", context)


def _read_tags(params: Mapping[str, str], kind: str) -> dict[str, str]:
    found = {}
    for name, text in params.items():
        spec, dot, rest = name.partition(".Tag.")
        if dot and rest.endswith(".Key") and params.get(f"{spec}.ResourceType") == kind:
            value = params[f"{spec}.Tag.{rest.removesuffix('.Key')}.Value"]
            found[f"aws:RequestTag/{text}"] = value
    return found


def _applies(statement: Mapping[str, Any], question: Question) -> bool:
    return (
        _matches(statement["Action"], question.action)
        and _matches(statement["Resource"], question.resource)
        and all(
            _holds(operator, key, wanted, question.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _matches(patterns: Any, text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in _list(patterns))


def _holds(operator: str, key: str, wanted: Any, context: Mapping[str, Any]) -> bool:
    held = context.get(key)
    if operator == "ForAnyValue:StringEquals":
        return any(one in _list(wanted) for one in held or ())
    if operator == "StringEqualsIfExists":
        return held is None or held in _list(wanted)
    if operator == "StringEquals":
        return held is not None and held in _list(wanted)
    raise NotImplementedError(operator)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
