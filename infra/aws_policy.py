"""The rights that the head needs in AWS and no others, as an IAM policy for a cluster file.

    launch      only in the sites' regions, only the file's instance types, images, subnets and
                security groups, only tagged as this cluster's, only with IMDSv2
    tag         while launching; later only what carries the cluster's tag, which can't be taken off
    end, stop   only what carries the cluster's tag
    look        in the sites' regions and those that are swept
    pass a role only the one of the instance profile, only to EC2

`infra/aws_policy.json` is the policy of cluster/hybrid.yaml. Building images needs more rights:
that is an operator's work, not the head's.

Source: AWS's Service Authorization Reference for EC2 (resource types and condition keys).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cluster
from cluster.backend_settings import AwsBackendSettings, AwsNodeConfig
from cluster.backends.aws_tags import TAG_CLUSTER
from cluster.config import ClusterSettings, parse_cluster_config, read_cluster_file
from cluster.errors import ConfigError

_ANY_ACCOUNT = "*"


def render_policy(raw: Mapping[str, Any], *, account: str = _ANY_ACCOUNT) -> dict[str, Any]:
    """Return the policy for a cluster file's content.

    The role of an instance profile is taken to have the profile's name, as the console names it.

    Raises:
        ConfigError: the file holds mistakes, or no aws site.
    """
    settings = parse_cluster_config(raw)
    sites = {
        name: site.backend
        for name, site in settings.sites.items()
        if isinstance(site.backend, AwsBackendSettings)
    }
    if not sites:
        raise ConfigError(
            "provider.sites must hold a site with backend kind aws; there is none, so no rights "
            "in AWS are needed."
        )
    configs = _read_node_configs(raw, settings)
    cluster_name = settings.cluster_name
    statements: list[dict[str, Any]] = []
    for name, backend in sites.items():
        statements += _build_launch(
            _title(name), backend, configs.get(name, []), cluster_name=cluster_name, account=account
        )
    regions = sorted({one for site in sites.values() for one in _list_regions(site)})
    statements += _build_care(cluster_name, regions=regions, account=account)
    return {"Version": "2012-10-17", "Statement": statements}


def _read_node_configs(
    raw: Mapping[str, Any], settings: ClusterSettings
) -> dict[str, list[AwsNodeConfig]]:
    """Return the settings of each aws site's node types."""
    configs: dict[str, list[AwsNodeConfig]] = {}
    for name, node_type in settings.node_types.items():
        if isinstance(settings.sites[node_type.site].backend, AwsBackendSettings):
            node_config = raw["available_node_types"][name]["node_config"]
            parsed = AwsNodeConfig.model_validate(node_config)
            configs.setdefault(node_type.site, []).append(parsed)
    return configs


def _list_regions(backend: AwsBackendSettings) -> list[str]:
    return [backend.region, *backend.sweep_regions]


def _build_launch(
    title: str,
    backend: AwsBackendSettings,
    configs: Sequence[AwsNodeConfig],
    *,
    cluster_name: str,
    account: str,
) -> list[dict[str, Any]]:
    """Return what one site's launches need."""
    own = f"arn:aws:ec2:{backend.region}:{account}"
    tagged = {f"aws:RequestTag/{TAG_CLUSTER}": cluster_name}
    types = sorted({name for config in configs for name in config.instance_types})
    images = sorted({backend.image} | {one.image for one in configs if one.image})
    parts = [
        *(f"arn:aws:ec2:{backend.region}::image/{image}" for image in images),
        *(f"{own}:subnet/{subnet}" for subnet in sorted(backend.subnets.values())),
        *(f"{own}:security-group/{group}" for group in sorted(backend.security_groups)),
        f"{own}:network-interface/*",
        f"{own}:spot-instances-request/*",
    ]
    if backend.key_name is not None:
        parts.append(f"{own}:key-pair/{backend.key_name}")
    statements: list[dict[str, Any]] = [
        {
            "Sid": f"Launch{title}",
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": f"{own}:instance/*",
            "Condition": {
                "StringEquals": {
                    **tagged,
                    "ec2:InstanceType": types,
                    "ec2:MetadataHttpTokens": "required",
                }
            },
        },
        {
            "Sid": f"Volumes{title}",
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": f"{own}:volume/*",
            "Condition": {"StringEquals": tagged},
        },
        {
            "Sid": f"Parts{title}",
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": parts,
        },
        {
            "Sid": f"TagAtLaunch{title}",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": [f"{own}:instance/*", f"{own}:volume/*"],
            "Condition": {"StringEquals": {**tagged, "ec2:CreateAction": "RunInstances"}},
        },
    ]
    if backend.instance_profile is not None:
        statements.append(
            {
                "Sid": f"PassRole{title}",
                "Effect": "Allow",
                "Action": "iam:PassRole",
                "Resource": f"arn:aws:iam::{account}:role/{backend.instance_profile}",
                "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
            }
        )
    return statements


def _build_care(cluster_name: str, *, regions: Sequence[str], account: str) -> list[dict[str, Any]]:
    """Return what looking after the instances needs, wherever they may be."""
    instances = [f"arn:aws:ec2:{region}:{account}:instance/*" for region in regions]
    ours = {f"ec2:ResourceTag/{TAG_CLUSTER}": cluster_name}
    statements: list[dict[str, Any]] = [
        {
            "Sid": "EndStopStart",
            "Effect": "Allow",
            "Action": ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"],
            "Resource": instances,
            "Condition": {"StringEquals": ours},
        },
        {
            "Sid": "TagOurs",
            "Effect": "Allow",
            "Action": ["ec2:CreateTags", "ec2:DeleteTags"],
            "Resource": instances,
            "Condition": {
                "StringEquals": ours,
                "StringEqualsIfExists": {f"aws:RequestTag/{TAG_CLUSTER}": cluster_name},
            },
        },
        {
            "Sid": "KeepClusterTag",
            "Effect": "Deny",
            "Action": "ec2:DeleteTags",
            "Resource": "*",
            "Condition": {"ForAnyValue:StringEquals": {"aws:TagKeys": [TAG_CLUSTER]}},
        },
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": ["ec2:DescribeInstances", "ec2:DescribeImages"],
            # Describing can't be limited to resources.
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": list(regions)}},
        },
    ]
    return statements


def _title(name: str) -> str:
    """Return a site's name as a part of a statement's id, which takes letters and digits only."""
    return "".join(part.capitalize() for part in name.replace("_", "-").split("-"))


def main() -> None:
    """Write the policy of a cluster file, by default cluster/hybrid.yaml, to stdout."""
    file = sys.argv[1] if len(sys.argv) > 1 else Path(cluster.__file__).parent / "hybrid.yaml"
    policy = render_policy(read_cluster_file(file))
    sys.stdout.write(f"{json.dumps(policy, indent=2)}\n")


if __name__ == "__main__":
    main()
