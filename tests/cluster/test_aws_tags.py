"""A launch spec survives in EC2's tags, whatever its length, and damage is told, not guessed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.backends.aws_tags import (
    TAG_CLUSTER,
    TAG_NODE,
    TAG_SPEC,
    TAG_WARM,
    UnreadableTagsError,
    from_ec2,
    read_spec,
    render_tags,
    to_ec2,
)
from cluster.errors import BackendError
from tests.cluster.aws_rig import build_aws_spec

texts = st.text(st.characters(codec="utf-8"), max_size=80)
node_configs = st.dictionaries(
    st.text(min_size=1, max_size=8), texts | st.integers() | st.lists(texts)
)


@settings(deadline=None, max_examples=50)
@given(node_config=node_configs, is_head=st.booleans())
def test_a_spec_is_read_back_from_its_tags_and_every_tag_fits(
    node_config: dict[str, object], *, is_head: bool
) -> None:
    spec = build_aws_spec(node_config=node_config, is_head=is_head, tags={"ray-node-name": "w"})
    tags = render_tags(spec)
    assert read_spec(from_ec2(to_ec2(tags))) == spec
    assert max(map(len, tags.values())) <= 256


def test_tags_that_others_put_on_an_instance_do_not_hide_the_spec() -> None:
    spec = build_aws_spec()
    found = {**render_tags(spec), TAG_WARM: "cloud_gpu", "aws:ec2spot:fleet-request-id": "x"}
    assert read_spec(found) == spec


@pytest.mark.parametrize(
    "damage",
    [
        {TAG_SPEC: None},
        {TAG_NODE: None},
        {TAG_CLUSTER: ""},
        {TAG_SPEC: "{"},
        {TAG_SPEC: "[]"},
        {TAG_SPEC: '{"node_type": 5, "is_head": false, "node_config": {}}'},
        {TAG_SPEC: '{"node_type": "a", "is_head": false}'},
        {TAG_SPEC: '{"node_type": "a", "is_head": false, "node_config": "text"}'},
    ],
    ids=str,
)
def test_damaged_tags_are_said_to_be_unreadable(damage: dict[str, str | None]) -> None:
    tags = {**render_tags(build_aws_spec()), **damage}
    with pytest.raises(UnreadableTagsError):
        read_spec({name: text for name, text in tags.items() if text is not None})


def test_a_tag_that_ec2_would_refuse_is_refused_with_its_name() -> None:
    with pytest.raises(BackendError, match=r"tag note must have .* got 4 and 257"):
        render_tags(build_aws_spec(tags={"note": "x" * 257}))
    with pytest.raises(BackendError, match="at most 50 tags; got 56"):
        render_tags(build_aws_spec(tags={f"t{number}": "1" for number in range(51)}))
