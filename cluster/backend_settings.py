"""Settings of the backends: how a site's nodes are started, reached and stopped.

Credentials never stand here: AWS's come from the standard chain (environment, profile, role), SSH
keys are named by path.
"""

from typing import Annotated, Literal

from pydantic import Field

from cluster.settings_types import Name, Strict

SshPort = Annotated[int, Field(ge=1, le=65535)]


class ProcessBackendSettings(Strict):
    """Nodes are folders and marked processes on this machine."""

    kind: Literal["process"]
    boot_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.0, description="seconds between a launch and the node being there (simulated)"
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="environment variables set on every node of the site"
    )


class FakeBackendSettings(Strict):
    """Nodes exist in memory only: for plans and tests."""

    kind: Literal["fake"]
    boot_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.0, description="seconds between a launch and the node being there"
    )


class SshAccess(Strict):
    """How the nodes of a site are reached over SSH."""

    user: str = Field(description="the account that runs Ray on the node")
    private_key: str = Field(description="path of the key; ~ is the home of whoever reads it")
    port: SshPort = 22
    jump: str | None = Field(default=None, description="jump host, as ssh -J takes it")
    known_hosts: str | None = Field(
        default=None,
        description="path of a known_hosts file to insist on; without it a host's key is accepted "
        "the first time and insisted on from then on",
    )
    connect_s_max: Annotated[float, Field(gt=0, le=60)] = Field(
        default=10.0, description="seconds to wait for a connection"
    )


class SshHost(Strict):
    """A machine that is there already. What isn't given here is as in the site's `ssh`."""

    address: str = Field(description="address that other nodes reach it by")
    node_type: Name = Field(description="an entry of available_node_types")
    user: str | None = None
    private_key: str | None = None
    port: SshPort | None = None
    jump: str | None = None


class SshBackendSettings(Strict):
    """Nodes are machines of our own; a claim kept on each says which cluster has it."""

    kind: Literal["ssh"]
    ssh: SshAccess
    hosts: dict[Name, SshHost] = Field(description="the machines, by name")
    env: dict[str, str] = Field(
        default_factory=dict, description="environment variables set on every node of the site"
    )
    set_aside_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="seconds a failing host is left alone at first; doubles each time"
    )
    set_aside_s_max: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="seconds a failing host is left alone at most"
    )


class AwsBackendSettings(Strict):
    """Nodes are EC2 instances of one region."""

    kind: Literal["aws"]
    region: str = Field(description="for example us-east-1")
    ssh: SshAccess
    subnets: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="subnet id by availability zone; zones are tried in this order"
    )
    security_groups: Annotated[list[str], Field(min_length=1)] = Field(
        description="security group ids"
    )
    image: str = Field(description="AMI id; `tidegate infra image` builds one")
    key_name: str | None = Field(default=None, description="EC2 key pair put on the instances")
    instance_profile: str | None = Field(
        default=None, description="name of the instance profile; none = no rights in AWS"
    )
    endpoint_url: str | None = Field(
        default=None, description="another EC2 endpoint, for a VPC endpoint or a test"
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="environment variables set on every node of the site"
    )
    calls_per_s: Annotated[float, Field(gt=0, le=100)] = Field(
        default=2.0, description="EC2 calls per second at most, in bursts of twice as many"
    )
    sold_out_s: Annotated[float, Field(gt=0)] = Field(
        default=180.0, description="seconds a sold-out offering isn't asked for again"
    )
    join_s_max: Annotated[float, Field(gt=0)] = Field(
        default=900.0, description="seconds an instance may take to run Ray; then it is ended"
    )
    lost_head_s_max: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="seconds a node runs on without the head; then it ends itself"
    )
    sweep_regions: list[str] = Field(
        default_factory=list,
        description="further regions searched for instances of this cluster that nobody knows",
    )


class AwsNodeConfig(Strict):
    """The `node_config` of a node type at an aws site."""

    instance_types: Annotated[list[str], Field(min_length=1)] = Field(
        description="EC2 instance types of equal resources, tried in this order"
    )
    zones: list[str] = Field(
        default_factory=list, description="zones to use, of the site's subnets; none = all of them"
    )
    image: str | None = Field(default=None, description="another AMI than the site's")
    volume_gb: Annotated[int, Field(ge=8)] = Field(default=200, description="root volume")
    warm_stopped_max: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="instances kept stopped instead of ended, started again first; on-demand only",
    )


BackendSettings = Annotated[
    ProcessBackendSettings | FakeBackendSettings | SshBackendSettings | AwsBackendSettings,
    Field(discriminator="kind"),
]
