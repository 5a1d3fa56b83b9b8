"""Opens the backend that a site's settings ask for. SSH and EC2 are imported only when used."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cluster.backend_settings import (
    AwsBackendSettings,
    FakeBackendSettings,
    ProcessBackendSettings,
    SshBackendSettings,
)
from cluster.backends.contract import NodeBackend
from cluster.backends.fake import FakeBackend
from cluster.backends.process import ProcessBackend
from cluster.config import PortSettings, ProviderSettings
from cluster.errors import ConfigError
from cluster.model import ClusterName, Market, NodeTypeName, SiteName


def open_backend(
    settings: ProviderSettings,
    site: SiteName,
    *,
    cluster: ClusterName,
    state_dir: Path,
) -> NodeBackend:
    """Return the machinery of one site.

    Raises:
        ConfigError: the settings lack what the backend needs.
    """
    backend = settings.sites[site].backend
    if isinstance(backend, FakeBackendSettings):
        return FakeBackend(backend)
    ports = settings.ports
    if ports is None:
        raise ConfigError(f"provider.ports must be given: nodes of {site} need pinned ports.")
    if isinstance(backend, ProcessBackendSettings):
        return ProcessBackend(backend, site=site, cluster=cluster, state_dir=state_dir, ports=ports)
    if isinstance(backend, SshBackendSettings):
        return _open_ssh(backend, site, cluster, state_dir, ports)
    markets = {
        NodeTypeName(name): offer.market
        for name, offer in settings.node_types.items()
        if offer.site == site
    }
    return _open_aws(backend, site, cluster, state_dir, ports, markets=markets)


def write_token(settings: ProviderSettings, folder: Path) -> None:
    """Make the cluster's token, mode 600, unless it is there. Idempotent.

    Nodes on machines of their own get it by the cluster file's `file_mounts`.
    """
    kinds = {site.backend.kind for site in settings.sites.values()}
    if not kinds & {"ssh", "aws"}:
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f".auth_token.{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(secrets.token_hex(32))
    try:
        # A link, unlike a rename, keeps the token that another process made first.
        os.link(draft, folder / "auth_token")
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _open_ssh(
    backend: SshBackendSettings,
    site: SiteName,
    cluster: ClusterName,
    state_dir: Path,
    ports: PortSettings,
) -> NodeBackend:
    from cluster.backends.ssh import SshBackend  # noqa: PLC0415 - only where it is used

    return SshBackend(backend, site=site, cluster=cluster, state_dir=state_dir, ports=ports)


def _open_aws(
    backend: AwsBackendSettings,
    site: SiteName,
    cluster: ClusterName,
    state_dir: Path,
    ports: PortSettings,
    *,
    markets: Mapping[NodeTypeName, Market],
) -> NodeBackend:
    from cluster.backends.aws import AwsBackend  # noqa: PLC0415 - imports boto3

    return AwsBackend(
        backend, site=site, cluster=cluster, state_dir=state_dir, ports=ports, markets=markets
    )
