"""The RunInstances call of one node: what can be asked for, in order, and how. Pure.

One call asks for one instance of one offering. Its ClientToken is made of the node and the
offering, so the same call can be sent again after a lost answer and gives the same instance.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cluster.backend_settings import AwsBackendSettings, AwsNodeConfig
from cluster.backends.aws_tags import render_tags, to_ec2
from cluster.backends.sold_out import Offering
from cluster.errors import BackendError
from cluster.model import LaunchSpec, Market, NodeId

_TOKEN_CHARS = 64


def read_node_config(spec: LaunchSpec) -> AwsNodeConfig:
    """Return the node type's settings that came with the launch.

    Raises:
        BackendError: they hold mistakes.
    """
    try:
        return AwsNodeConfig.model_validate(dict(spec.node_config))
    except ValidationError as exc:
        mistakes = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors()
        )
        raise BackendError(
            f"node_config of {spec.node_type} must be settings of an aws node type; got mistakes: "
            f"{mistakes}. Correct it in available_node_types."
        ) from exc


def list_offerings(
    config: AwsNodeConfig, settings: AwsBackendSettings, market: Market
) -> list[Offering]:
    """Return what may be asked for, first choice first: each type in each zone, then the next.

    Raises:
        BackendError: a zone has no subnet.
    """
    zones = config.zones or list(settings.subnets)
    lacking = [zone for zone in zones if zone not in settings.subnets]
    if lacking:
        raise BackendError(
            f"zones must have a subnet in the site's settings; {', '.join(lacking)} has none. "
            f"Known are {', '.join(settings.subnets)}."
        )
    return [Offering(name, zone, market) for name in config.instance_types for zone in zones]


def build_token(node_id: NodeId, offering: Offering, *, after: Sequence[str] = ()) -> str:
    """Return the ClientToken of a node's call for an offering.

    `after` names instances that this call gave before and that are gone: a node that is launched
    anew on purpose needs another token, and the same one each time.
    """
    parts = [node_id, offering.instance_type, offering.zone, offering.market, *after]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_TOKEN_CHARS]


def build_request(
    spec: LaunchSpec,
    *,
    offering: Offering,
    config: AwsNodeConfig,
    settings: AwsBackendSettings,
    root_device: str,
    token: str,
) -> dict[str, Any]:
    """Return the arguments of RunInstances.

    The instance is tagged by the same call, ends when it shuts itself down, and answers questions
    about its own credentials only to those who ask in the way of IMDSv2.
    """
    tags = to_ec2(render_tags(spec))
    request: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token,
        "ImageId": config.image or settings.image,
        "InstanceType": offering.instance_type,
        "SubnetId": settings.subnets[offering.zone],
        "SecurityGroupIds": list(settings.security_groups),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": root_device,
                "Ebs": {
                    "VolumeSize": config.volume_gb,
                    "VolumeType": "gp3",
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": tags},
            {"ResourceType": "volume", "Tags": tags},
        ],
    }
    if settings.key_name is not None:
        request["KeyName"] = settings.key_name
    if settings.instance_profile is not None:
        request["IamInstanceProfile"] = {"Name": settings.instance_profile}
    if offering.market == "spot":
        request["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
    return request
