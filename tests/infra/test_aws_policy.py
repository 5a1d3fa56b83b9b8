"""The head's rights: every call we make is allowed, everything else is not.

Two judges, because neither is enough. moto enforces the policy on real, signed calls of ours, but
by action only: it ignores resources and condition keys of EC2 calls. Regions, types, tags, IMDSv2
and roles are therefore judged by a small evaluator of the policy's JSON (`iam_evaluator`), fed
with the parameters of calls that were really sent. Neither is AWS: the policy has not met it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import cluster
import infra
from cluster.config import read_cluster_file
from cluster.errors import BackendError, ConfigError
from cluster.model import NodeId, NodeTypeName
from infra.aws_policy import render_policy
from tests.cluster.aws_rig import NODE_CONFIG, REGION, ZONES, Ec2Rig, build_aws_spec
from tests.cluster.conftest import build_cluster_content
from tests.infra.iam_evaluator import (
    Question,
    ask_about_instance,
    ask_run_instances,
    is_allowed,
)

HYBRID = Path(cluster.__file__).parent / "hybrid.yaml"
OURS = {"tidegate-cluster": "test"}
CONFIG = {**NODE_CONFIG, "warm_stopped_max": 1}


def build_content(ec2: Ec2Rig | None = None, **backend: Any) -> dict[str, Any]:
    """Return a cluster file with an aws site: that of the rig, or one made up."""
    content = build_cluster_content()
    settings = {
        "kind": "aws",
        "region": REGION,
        "ssh": {"user": "ubuntu", "private_key": "~/.ssh/none"},
        "subnets": {ZONES[0]: "subnet-1"} if ec2 is None else dict(ec2.settings.subnets),
        "security_groups": ["sg-1"] if ec2 is None else list(ec2.settings.security_groups),
        "image": "ami-1" if ec2 is None else ec2.image,
        "sweep_regions": ["us-west-2"],
        **backend,
    }
    content["provider"]["sites"]["cloud"]["backend"] = settings
    content["provider"]["ports"] = PORTS
    content["available_node_types"]["cloud_gpu"]["node_config"] = CONFIG
    content["file_mounts"] = {"~/.tidegate/auth_token": "/nonexistent/tidegate/test/auth_token"}
    content["auth"] = {"ssh_user": "ubuntu", "ssh_private_key": "~/.ssh/none"}
    return content


PORTS = {
    "gcs": 6379,
    "dashboard": 8265,
    "serve": 8000,
    "autoscaler_metrics": 44217,
    "dashboard_metrics": 44227,
    "proxy_metrics": 9101,
    "proxy_stats": 8404,
    "proxy_fallback": 8500,
    "nodes": 20000,
    "workers": 21000,
}


@pytest.fixture
def policy(ec2: Ec2Rig) -> dict[str, Any]:
    return render_policy(build_content(ec2))


@pytest.fixture
def as_head(ec2: Ec2Rig, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let moto enforce the policy's actions on all calls: a user of it is in the environment."""
    from moto.core import enable_iam_authentication  # noqa: PLC0415 - seconds that few tests need

    actions_only = {
        **policy,
        "Statement": [
            {"Effect": "Allow", "Action": one["Action"], "Resource": "*"}
            for one in policy["Statement"]
            if one["Effect"] == "Allow"
        ],
    }
    iam = boto3.client("iam", region_name=REGION, endpoint_url=ec2.moto_url)
    iam.create_user(UserName="head")
    iam.put_user_policy(UserName="head", PolicyName="head", PolicyDocument=json.dumps(actions_only))
    key = iam.create_access_key(UserName="head")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    with enable_iam_authentication():
        yield


def test_every_call_of_the_backend_is_allowed_and_others_are_not(
    ec2: Ec2Rig, as_head: None
) -> None:
    """Launch, tag, list, keep warm, start again, end: by moto's IAM, on signed calls."""
    backend = ec2.open(endpoint_url=ec2.moto_url)
    spec = build_aws_spec(node_config=CONFIG)
    backend.launch(spec)
    backend.set_tags(spec.node_id, {"ray-node-status": "up-to-date", "ray-node-type": ""})
    backend.terminate([spec.node_id])
    backend.launch(build_aws_spec("n-2", node_config=CONFIG))
    assert [one.spec.node_id for one in backend.list_instances()] == ["n-2"]
    backend.terminate([NodeId("n-2")])
    backend.end_warm_pool()
    assert backend.list_instances() == []
    for operation, request in (
        ("create_image", {"InstanceId": "i-1", "Name": "image"}),
        ("create_vpc", {"CidrBlock": "10.0.0.0/16"}),
        ("create_key_pair", {"KeyName": "x"}),
        ("authorize_security_group_ingress", {"GroupId": "sg-1"}),
        ("modify_instance_attribute", {"InstanceId": "i-1"}),
        ("request_spot_instances", {}),
    ):
        with pytest.raises(BackendError, match=r"UnauthorizedOperation|AccessDenied"):
            backend._client.call(operation, **request)


def read_launch(ec2: Ec2Rig, **changes: Any) -> dict[str, str]:
    """Return the parameters of a launch that was really sent."""
    ec2.open().launch(build_aws_spec(**changes))
    return [call.params for call in ec2.faults.calls if call.action == "RunInstances"][-1]


@pytest.mark.parametrize("node_type", ["cloud_gpu", "cloud_spot"])
def test_a_launch_as_we_send_it_is_allowed(
    ec2: Ec2Rig, policy: dict[str, Any], node_type: str
) -> None:
    params = read_launch(ec2, node_type=NodeTypeName(node_type))
    questions = list(ask_run_instances(params, region=REGION))
    assert len(questions) == 8
    assert [one for one in questions if not is_allowed(policy, one)] == []


@pytest.mark.parametrize(
    ("changes", "region"),
    [
        ({}, "eu-west-1"),
        ({}, "us-west-2"),
        ({"InstanceType": "p5.48xlarge"}, REGION),
        ({"ImageId": "ami-foreign"}, REGION),
        ({"SubnetId": "subnet-foreign"}, REGION),
        ({"SecurityGroupId.1": "sg-foreign"}, REGION),
        ({"MetadataOptions.HttpTokens": "optional"}, REGION),
        ({"KeyName": "foreign"}, REGION),
        ({"TagSpecification.1.ResourceType": "elastic-gpu"}, REGION),
        ({"TagSpecification.2.ResourceType": "elastic-gpu"}, REGION),
    ],
    ids=[
        "region",
        "region that is only swept",
        "type",
        "image",
        "subnet",
        "security group",
        "IMDSv1",
        "key pair",
        "untagged instance",
        "untagged volume",
    ],
)
def test_a_launch_of_anything_else_is_denied(
    ec2: Ec2Rig, policy: dict[str, Any], changes: dict[str, str], region: str
) -> None:
    params = {**read_launch(ec2), **changes}
    assert not all(is_allowed(policy, one) for one in ask_run_instances(params, region=region))


def test_a_launch_tagged_as_another_cluster_is_denied(ec2: Ec2Rig, policy: dict[str, Any]) -> None:
    params = {name: "other" if text == "test" else text for name, text in read_launch(ec2).items()}
    assert not all(is_allowed(policy, one) for one in ask_run_instances(params, region=REGION))


@pytest.mark.parametrize("action", ["TerminateInstances", "StopInstances", "StartInstances"])
def test_only_instances_of_the_cluster_are_ended_and_in_swept_regions_too(
    ec2: Ec2Rig, policy: dict[str, Any], action: str
) -> None:
    for region in (REGION, "us-west-2"):
        assert is_allowed(policy, ask_about_instance(action, region=region, tags=OURS))
        for tags in ({}, {"tidegate-cluster": "other"}, {"Name": "test"}):
            assert not is_allowed(policy, ask_about_instance(action, region=region, tags=tags))
    assert not is_allowed(policy, ask_about_instance(action, region="eu-west-1", tags=OURS))


def test_nobody_elses_instance_becomes_ours_and_ours_stays_ours(policy: dict[str, Any]) -> None:
    def ask(action: str, tags: dict[str, str], sets: dict[str, str]) -> bool:
        question = ask_about_instance(action, region=REGION, tags=tags, sets=sets)
        return is_allowed(policy, question)

    assert ask("CreateTags", OURS, {"tidegate-cordon": "draining"})
    assert ask("CreateTags", OURS, {**OURS, "tidegate-node": "n-2"})
    assert ask("DeleteTags", OURS, {"tidegate-cordon": ""})
    assert not ask("CreateTags", {}, OURS)
    assert not ask("CreateTags", OURS, {"tidegate-cluster": "other"})
    assert not ask("DeleteTags", OURS, {"tidegate-cluster": ""})


def test_a_role_is_passed_only_if_the_file_names_one_and_only_to_ec2() -> None:
    policy = render_policy(build_content(instance_profile="node"))
    role = "arn:aws:iam::123456789012:role/"
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert is_allowed(policy, Question("iam:PassRole", f"{role}node", to_ec2))
    assert not is_allowed(policy, Question("iam:PassRole", f"{role}Admin", to_ec2))
    to_lambda = {"iam:PassedToService": "lambda.amazonaws.com"}
    assert not is_allowed(policy, Question("iam:PassRole", f"{role}node", to_lambda))
    without = render_policy(build_content())
    assert not is_allowed(without, Question("iam:PassRole", f"{role}node", to_ec2))


def test_looking_is_allowed_in_the_files_regions_only(policy: dict[str, Any]) -> None:
    for region, is_ok in ((REGION, True), ("us-west-2", True), ("eu-west-1", False)):
        question = Question("ec2:DescribeInstances", "*", {"aws:RequestedRegion": region})
        assert is_allowed(policy, question) is is_ok


def test_the_policy_in_the_repository_is_that_of_the_hybrid_file_and_fits_a_role() -> None:
    """A managed policy holds 6,144 characters without white space."""
    rendered = render_policy(read_cluster_file(HYBRID))
    written = json.loads((Path(infra.__file__).parent / "aws_policy.json").read_text())
    assert written == rendered, "type: python -m infra.aws_policy > infra/aws_policy.json"
    assert len(json.dumps(rendered, separators=(",", ":"))) <= 6144


def test_a_file_without_aws_needs_no_policy() -> None:
    with pytest.raises(ConfigError, match="must hold a site with backend kind aws"):
        render_policy(build_cluster_content())
