"""A launch spec as EC2 tags, and back. Pure: the tags are what survives us.

EC2 allows 50 tags with values of 256 characters, so the spec's JSON is split where it is longer.
Ray's tags stand beside ours as they are.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import BackendError
from cluster.model import ClusterName, LaunchSpec, NodeId, NodeTypeName, SiteName

TAG_CLUSTER = "tidegate-cluster"
TAG_NODE = "tidegate-node"
TAG_SITE = "tidegate-site"
TAG_SPEC = "tidegate-spec"
# On an instance that is kept stopped; its value is the node type it was and will be again.
TAG_WARM = "tidegate-warm"
# What the EC2 console shows in its first column.
TAG_NAME = "Name"

_OURS = {TAG_CLUSTER, TAG_NODE, TAG_SITE, TAG_SPEC, TAG_WARM, TAG_NAME}
_VALUE_CHARS_MAX = 256
_KEY_CHARS_MAX = 128
_TAGS_MAX = 50


class UnreadableTagsError(BackendError):
    """An instance carries our cluster's tag but no spec that can be read."""


def render_tags(spec: LaunchSpec) -> dict[str, str]:
    """Return the tags of a spec's instance.

    Raises:
        BackendError: they don't fit into what EC2 allows.
    """
    content = {
        "node_type": spec.node_type,
        "is_head": spec.is_head,
        "node_config": dict(spec.node_config),
    }
    tags = {
        TAG_NAME: spec.node_id,
        TAG_CLUSTER: spec.cluster,
        TAG_NODE: spec.node_id,
        TAG_SITE: spec.site,
        **_split(json.dumps(content, separators=(",", ":"), sort_keys=True)),
        **spec.tags,
    }
    check_tags(tags)
    return tags


def read_spec(tags: Mapping[str, str]) -> LaunchSpec:
    """Return the spec in an instance's tags.

    Raises:
        UnreadableTagsError: some are missing or damaged.
    """
    try:
        content = json.loads(_join(tags))
        return LaunchSpec(
            node_id=NodeId(_text(tags[TAG_NODE])),
            cluster=ClusterName(_text(tags[TAG_CLUSTER])),
            site=SiteName(_text(tags[TAG_SITE])),
            node_type=NodeTypeName(_text(content["node_type"])),
            is_head=content["is_head"] is True,
            tags=select_spec_tags(tags),
            node_config=dict(content["node_config"]),
        )
    except KeyError as exc:
        raise UnreadableTagsError(f"tag or key {exc} must be there; it is not.") from exc
    except (ValueError, TypeError) as exc:
        raise UnreadableTagsError(
            f"tag {TAG_SPEC} must hold a launch spec as JSON; got: {exc}."
        ) from exc


def select_spec_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that belong to the spec: Ray's, cordon, fence; not what carries the spec."""
    return {name: text for name, text in tags.items() if not _is_ours(name)}


def check_tags(tags: Mapping[str, str]) -> None:
    """Check tags against what EC2 allows.

    Raises:
        BackendError: too many, or one is too long.
    """
    if len(tags) > _TAGS_MAX:
        raise BackendError(f"an instance must have at most {_TAGS_MAX} tags; got {len(tags)}.")
    for name, text in tags.items():
        if len(name) > _KEY_CHARS_MAX or len(text) > _VALUE_CHARS_MAX:
            raise BackendError(
                f"tag {name[:_KEY_CHARS_MAX]} must have a name of at most {_KEY_CHARS_MAX} and a "
                f"value of at most {_VALUE_CHARS_MAX} characters; got {len(name)} and {len(text)}."
            )


def to_ec2(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2's calls take them."""
    return [{"Key": name, "Value": text} for name, text in sorted(tags.items())]


def from_ec2(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return tags as a mapping from what EC2's answers hold."""
    return {str(pair["Key"]): str(pair.get("Value", "")) for pair in pairs}


def _is_ours(name: str) -> bool:
    return name in _OURS or name.startswith((f"{TAG_SPEC}-", "aws:"))


def _split(text: str) -> dict[str, str]:
    if len(text) <= _VALUE_CHARS_MAX:
        return {TAG_SPEC: text}
    starts = range(0, len(text), _VALUE_CHARS_MAX)
    return {
        f"{TAG_SPEC}-{number}": text[start : start + _VALUE_CHARS_MAX]
        for number, start in enumerate(starts)
    }


def _join(tags: Mapping[str, str]) -> str:
    if TAG_SPEC in tags:
        return tags[TAG_SPEC]
    parts: list[str] = []
    while (name := f"{TAG_SPEC}-{len(parts)}") in tags:
        parts.append(tags[name])
    if not parts:
        raise KeyError(TAG_SPEC)
    return "".join(parts)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} where a name must be")
    return value
