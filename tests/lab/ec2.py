"""EC2 in the lab: a moto server on the router, and a network in it with the lab's addresses."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.lab.lab import AWS, SERVICES_ADDRESS, Lab

REGION = "us-east-1"
PORT = 5001
ACCESS_KEY = "AKIALABLABLABLABLAB0"
SECRET_KEY = "lab-canary-secret-access-key"  # looked for in files and logs by tests
_START_S_MAX = 60


@dataclass(frozen=True, slots=True)
class Ec2Network:
    """What a cluster file needs to know of the account."""

    subnets: dict[str, str]
    security_group: str
    image: str
    key_name: str


class Ec2:
    """The region's API. Every call goes to moto itself; a fault proxy may stand before it."""

    def __init__(self, lab: Lab, *, log: Path | None = None) -> None:
        self._lab = lab
        self.url = f"http://{SERVICES_ADDRESS}:{PORT}"
        self._process = lab.start(
            [sys.executable, "-m", "moto.server", "-H", SERVICES_ADDRESS, "-p", str(PORT)],
            env={"MOTO_EC2_LOAD_DEFAULT_AMIS": "false", "AWS_DEFAULT_REGION": REGION},
            log=log,
        )
        self._client = open_client(self.url)
        self._wait_until_up()
        self.network = self._make_network()

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to one call, `describe_instances` for example."""
        with self._lab.in_network():
            answer: dict[str, Any] = getattr(self._client, call)(**arguments)
            return answer

    def list_instances(self, *states: str) -> list[dict[str, Any]]:
        """Return the instances in some states, in all states if none is given."""
        wanted = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        pages = self.ask("describe_instances", Filters=wanted)
        return [
            instance
            for reservation in pages["Reservations"]
            for instance in reservation["Instances"]
        ]

    def list_paid(self) -> list[str]:
        """Return the ids of instances that cost money."""
        return [found["InstanceId"] for found in self.list_instances("pending", "running")]

    def _wait_until_up(self) -> None:
        deadline_s = time.monotonic() + _START_S_MAX
        while True:
            try:
                self.ask("describe_vpcs")
            except BotoCoreError:
                if time.monotonic() > deadline_s or self._process.poll() is not None:
                    raise
                time.sleep(0.1)
            else:
                return

    def _make_network(self) -> Ec2Network:
        """Return a VPC of the lab's cloud addresses, with a subnet in each of two zones."""
        vpc = self.ask("create_vpc", CidrBlock=str(AWS.network))["Vpc"]["VpcId"]
        zones = (f"{REGION}a", f"{REGION}b")
        subnets = {
            zone: self.ask("create_subnet", VpcId=vpc, CidrBlock=str(block), AvailabilityZone=zone)[
                "Subnet"
            ]["SubnetId"]
            for zone, block in zip(zones, AWS.network.subnets(new_prefix=20), strict=False)
        }
        group = self.ask("create_security_group", GroupName="lab", Description="lab", VpcId=vpc)
        image = self.ask("register_image", Name="lab-node", RootDeviceName="/dev/xvda")
        self.ask("import_key_pair", KeyName="lab", PublicKeyMaterial=self._lab.public_key.encode())
        return Ec2Network(subnets, group["GroupId"], image["ImageId"], "lab")


def open_client(url: str) -> Any:
    """Return a client with the lab's credentials that tries once."""
    return boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
    )
