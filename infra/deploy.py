"""A changed serve file put into force on a running cluster; a bad one changes nothing."""

from collections.abc import Callable
from pathlib import Path

from cluster.backend_settings import ProcessBackendSettings
from cluster.config import ClusterSettings
from cluster.errors import ConfigError
from infra.serve_api import DeployFailed, ServeApi
from infra.serve_file import ServeFile, read_serve_file

_DEPLOY_S_MAX = 3600.0


def deploy_changed(
    serve_file: Path, settings: ClusterSettings, *, on_progress: Callable[[str], None]
) -> ServeFile:
    """Return the serve file once its applications run; replicas it changes are replaced by turns.

    The dashboard is asked on this machine's loopback: `ray dashboard` brings a distant one there.

    Raises:
        ConfigError: the file holds mistakes; nothing was sent.
        DeployFailed: Serve refused it, or a replacement didn't come up; what ran before answers on.
    """
    ports = settings.ports
    if ports is None:
        raise ConfigError(f"{settings.cluster_name}: provider.ports must be given to deploy to it.")
    head_site = settings.sites[settings.node_types[settings.head_node_type].site]
    is_here = isinstance(head_site.backend, ProcessBackendSettings)
    keys_file = settings.state_dir / "keys.yaml" if is_here else None
    checked = read_serve_file(serve_file, port=ports.serve, keys_file=keys_file)
    token_file = settings.state_dir / settings.cluster_name / "auth_token"
    api = ServeApi(f"http://127.0.0.1:{ports.dashboard}", token_file)
    api.deploy(checked.config)
    try:
        api.wait_running(
            checked.application_names, timeout_s=_DEPLOY_S_MAX, on_progress=on_progress
        )
    except DeployFailed as error:
        raise DeployFailed(
            f"{serve_file} isn't in force, what ran before goes on answering: {error}\n"
            "Mend the file and deploy it again, or deploy the former one."
        ) from error
    return checked
