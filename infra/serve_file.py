"""A Serve file read before anything is started: its mistakes must not wait for `ray up`.

Serve itself ignores unknown keys and reports a bad pool only once the cluster runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.errors import ConfigError
from deployments.app import GatewayArgs
from deployments.spec import ModelSpec

_GATEWAY = "deployments.app:build_gateway"
_MODEL = "deployments.app:build_model"


@dataclass(frozen=True, slots=True)
class ServeFile:
    """A Serve configuration without a mistake in what is ours, ready to be deployed."""

    config: Mapping[str, Any]
    gateway: GatewayArgs

    @property
    def application_names(self) -> list[str]:
        """The applications that must run."""
        return [application["name"] for application in self.config["applications"]]

    @property
    def model_names(self) -> list[str]:
        """What clients may put into `model`."""
        return [model.name for model in self.gateway.models]

    @property
    def weights(self) -> frozenset[str]:
        """The weights its models name."""
        return frozenset(model.weights for model in self.gateway.models if model.weights)

    def count_first_replicas(self, engine: str) -> int:
        """Return how many replicas of this engine a deploy starts."""
        return sum(
            pool.min_replicas
            for model in self.gateway.models
            for pool in model.pools
            if pool.engine == engine
        )


def read_serve_file(path: Path, *, port: int, keys_file: Path | None) -> ServeFile:
    """Return the file's content, listening on `port`, with `keys_file` unless it names its own.

    Without a keys file the gateway looks for one in its own home.

    Raises:
        ConfigError: it can't be read, or holds mistakes; all of ours are listed.
    """
    config = _read_mapping(path)
    applications = [app for app in config.get("applications") or [] if isinstance(app, dict)]
    gateways = [app for app in applications if app.get("import_path") == _GATEWAY]
    if len(gateways) != 1:
        raise ConfigError(
            f"{path}: applications must hold one with import_path {_GATEWAY}; got {len(gateways)}. "
            "Start from deployments/serve.yaml."
        )
    config["http_options"] = {"host": "127.0.0.1", **(config.get("http_options") or {})}
    config["http_options"]["port"] = port
    gateway = gateways[0]
    keys = {} if keys_file is None else {"keys_file": str(keys_file)}
    gateway["args"] = {**keys, **(gateway.get("args") or {})}
    mistakes: list[str] = []
    args = _validate(GatewayArgs, gateway["args"], "gateway", mistakes)
    for app in applications:
        if app.get("import_path") == _MODEL:
            _validate(ModelSpec, app.get("args"), str(app.get("name")), mistakes)
    if mistakes or not isinstance(args, GatewayArgs):
        raise ConfigError(f"{path} holds mistakes:\n" + "\n".join(mistakes))
    return ServeFile(config, args)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} must be a readable file; got: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} must be YAML; got a syntax error:\n{error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must hold a mapping; got {type(content).__name__}. "
            "Start from deployments/serve.yaml."
        )
    return content


def _validate(
    kind: type[GatewayArgs | ModelSpec], args: object, application: str, mistakes: list[str]
) -> GatewayArgs | ModelSpec | None:
    """Return the checked arguments of one application; else add what is wrong to `mistakes`."""
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        mistakes.extend(
            f"  {application}.args.{'.'.join(map(str, found['loc']))}: {found['msg']}; "
            f"got {found['input']!r:.80}"
            for found in error.errors(include_url=False)
        )
        return None
