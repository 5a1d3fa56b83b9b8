"""EC2 for the tests of cluster/ and infra/: moto in this process, the fault proxy before it."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from cluster.backend_settings import AwsBackendSettings, SshAccess
from cluster.backends.aws import AwsBackend
from cluster.backends.aws_client import CallLimits
from cluster.config import PortSettings
from cluster.model import ClusterName, LaunchSpec, Market, NodeId, NodeTypeName, SiteName
from tests.lab.ec2_faults import Ec2Faults

REGION = "us-east-1"
ZONES = ("us-east-1a", "us-east-1b")
CANARY_KEY_ID = "AKIACANARYCANARY0001"
CANARY_SECRET = "canary-secret-access-key-5d1f"
CANARY_SESSION = "canary-session-token-77aa"
MARKETS: Mapping[NodeTypeName, Market] = {
    NodeTypeName("cloud_gpu"): "on_demand",
    NodeTypeName("cloud_spot"): "spot",
}
NODE_CONFIG = {"instance_types": ["g6.2xlarge", "g5.2xlarge"]}

PORTS = PortSettings(
    gcs=21900,
    dashboard=21901,
    serve=21902,
    autoscaler_metrics=21903,
    dashboard_metrics=21904,
    proxy_metrics=21905,
    proxy_stats=21906,
    proxy_fallback=21907,
    nodes=21910,
    workers=23000,
)

# As in production, but with short pauses; answers may take long on a busy machine.
QUICK = CallLimits(
    connect_s=3.0, read_s=10.0, total_s=20.0, tries_max=4, pause_s=0.02, pause_s_max=0.1, settle_s=0
)


@dataclass
class Ec2Rig:
    """A region with two zones. `direct` asks moto itself, past the proxy."""

    faults: Ec2Faults
    direct: Any
    settings: AwsBackendSettings
    image: str
    moto_url: str
    folder: Path
    opened: list[AwsBackend] = field(default_factory=list)

    def open(
        self, *, limits: CallLimits = QUICK, site: str = "cloud", **changes: Any
    ) -> AwsBackend:
        """Return a backend, as a process of its own would have it."""
        backend = AwsBackend(
            self.settings.model_copy(update=changes),
            site=SiteName(site),
            cluster=ClusterName("test"),
            state_dir=self.folder,
            ports=PORTS,
            markets=MARKETS,
            limits=limits,
        )
        self.opened.append(backend)
        return backend

    def list_ec2(self, *states: str) -> list[dict[str, Any]]:
        """Return what EC2 truly has in some states, by default what costs money."""
        wanted = list(states) or ["pending", "running"]
        answer = self.direct.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": wanted}]
        )
        return [one for group in answer["Reservations"] for one in group["Instances"]]

    def tags_of(self, instance_id: str) -> dict[str, str]:
        answer = self.direct.describe_instances(InstanceIds=[instance_id])
        (one,) = answer["Reservations"][0]["Instances"]
        return {pair["Key"]: pair["Value"] for pair in one.get("Tags", [])}


def build_aws_spec(node_id: str = "n-1", **changes: Any) -> LaunchSpec:
    """Return what is launched in tests: an on-demand worker with two types in two zones."""
    values: dict[str, Any] = {
        "node_id": NodeId(node_id),
        "cluster": ClusterName("test"),
        "site": SiteName("cloud"),
        "node_type": NodeTypeName("cloud_gpu"),
        "is_head": False,
        "tags": {"ray-node-type": "worker", "ray-user-node-type": "cloud_gpu"},
        "node_config": NODE_CONFIG,
    }
    return LaunchSpec(**{**values, **changes})


@contextmanager
def open_moto() -> Iterator[str]:
    """Run moto in this process and yield its URL. Credentials in the environment are canaries."""
    from botocore.loaders import create_loader  # noqa: PLC0415 - seconds that few tests need
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", CANARY_KEY_ID)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY_SECRET)
        patch.setenv("AWS_SESSION_TOKEN", CANARY_SESSION)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        # Sessions are many here; each would read EC2's description (half a second) anew.
        shared = create_loader()
        patch.setattr("botocore.session.create_loader", lambda *_: shared)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            yield "http://{}:{}".format(*server.get_host_and_port())
        finally:
            server.stop()


@contextmanager
def open_rig(moto_url: str, folder: Path) -> Iterator[Ec2Rig]:
    """Yield an empty region of a moto server, behind a proxy of its own."""
    import boto3  # noqa: PLC0415 - seconds that few tests need

    urlopen(Request(f"{moto_url}/moto-api/reset", method="POST")).close()
    direct = boto3.client("ec2", region_name=REGION, endpoint_url=moto_url)
    vpc = direct.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = {
        zone: direct.create_subnet(
            VpcId=vpc, CidrBlock=f"10.9.{number}.0/24", AvailabilityZone=zone
        )["Subnet"]["SubnetId"]
        for number, zone in enumerate(ZONES)
    }
    group = direct.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)
    image = direct.register_image(Name="base")["ImageId"]
    faults = Ec2Faults(moto_url, zone_of={text: zone for zone, text in subnets.items()}).start()
    settings = AwsBackendSettings(
        kind="aws",
        region=REGION,
        ssh=SshAccess(user="ubuntu", private_key="~/.ssh/none"),
        subnets=subnets,
        security_groups=[group["GroupId"]],
        image=image,
        endpoint_url=faults.url,
        calls_per_s=100.0,
    )
    try:
        yield Ec2Rig(faults, direct, settings, image, moto_url, folder)
    finally:
        faults.stop()


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with open_moto() as url:
        yield url


@pytest.fixture
def ec2(moto_url: str, tmp_path: Path) -> Iterator[Ec2Rig]:
    with open_rig(moto_url, tmp_path) as rig:
        yield rig
