"""Whether AWS would do what the cluster file asks for: credentials, and launches as dry runs.

A dry run is EC2's own: it checks rights and parameters of a launch and starts nothing.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.backend_settings import AwsBackendSettings, AwsNodeConfig
from cluster.config import ClusterSettings, NodeTypeSettings
from cluster.errors import BackendError, CredentialsError
from cluster.model import LaunchSpec, NodeId, SiteName
from infra.preflight import Finding

_WOULD_SUCCEED = "DryRunOperation"
_NOT_ALLOWED = "UnauthorizedOperation"
_RUNS_MAX = 20


def inspect_aws(
    raw: Mapping[str, Any],
    settings: ClusterSettings,
    site: SiteName,
    backend: AwsBackendSettings,
    *,
    on_progress: Callable[[str], None],
) -> Iterator[Finding]:
    """Yield the findings about one AWS site; changes nothing there."""
    check = f"site {site}"
    if importlib.util.find_spec("boto3") is None:
        yield Finding(check, "fail", "boto3 isn't installed", "Type: make setup")
        return
    on_progress(f"{site}: credentials")
    credentials = _check_credentials(check)
    yield credentials
    if credentials.verdict == "fail":
        return
    types = [kind for kind in settings.node_types.values() if kind.site == site]
    on_progress(f"{site}: dry runs of {len(types)} node types")
    for kind in types:
        node_config = raw["available_node_types"][kind.name]["node_config"]
        config = AwsNodeConfig.model_validate(node_config)
        yield _try_type(settings, kind, config, backend, check=f"{check}: {kind.name}")


def _check_credentials(check: str) -> Finding:
    import boto3  # noqa: PLC0415 - only where AWS is used
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    fix = "Give some by AWS's standard chain (environment, profile, role): `aws configure`."
    try:
        found = boto3.Session().get_credentials()
    except BotoCoreError as error:
        return Finding(check, "fail", f"credentials can't be read: {error}", fix)
    if found is None:
        return Finding(check, "fail", "no AWS credentials here; the head needs its own too", fix)
    return Finding(check, "pass", f"credentials from {found.method}")


def _try_type(
    settings: ClusterSettings,
    kind: NodeTypeSettings,
    config: AwsNodeConfig,
    backend: AwsBackendSettings,
    *,
    check: str,
) -> Finding:
    """Return what EC2 says about a launch of the type in each zone, its first instance type."""
    from cluster.backends.aws_client import Ec2CallError, Ec2Client  # noqa: PLC0415 - boto3
    from cluster.backends.aws_launch import build_request, list_offerings  # noqa: PLC0415

    client = Ec2Client(
        backend.region, endpoint_url=backend.endpoint_url, calls_per_s=backend.calls_per_s
    )
    spec = LaunchSpec(
        node_id=NodeId("tidegate-doctor"),
        cluster=settings.cluster_name,
        site=kind.site,
        node_type=kind.name,
        is_head=False,
        node_config=config.model_dump(),
    )
    tried: list[str] = []
    for offering in list_offerings(config, backend, kind.market)[:_RUNS_MAX]:
        request = build_request(
            spec,
            offering=offering,
            config=config,
            settings=backend,
            root_device="/dev/sda1",
            token=f"doctor-{offering.instance_type}-{offering.zone}"[:64],
        )
        try:
            client.call("run_instances", **request, DryRun=True)
        except Ec2CallError as error:
            if error.code != _WOULD_SUCCEED:
                return Finding(check, "fail", f"{offering}: {error}", _advise(error.code))
        except CredentialsError as error:
            return Finding(check, "fail", str(error), "Renew them: `aws sso login` or your way.")
        except BackendError as error:
            return Finding(check, "fail", str(error), "Is the endpoint reachable from here?")
        tried.append(str(offering))
    return Finding(check, "pass", f"EC2 would launch {', '.join(tried)}")


def _advise(code: str) -> str:
    if code == _NOT_ALLOWED:
        return "Compare your rights with: tidegate infra policy"
    return "Correct the ids in the cluster file: image, subnets, security groups, key pair."
