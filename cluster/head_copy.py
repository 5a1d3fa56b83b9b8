"""The head's copy of the cluster file: the same cluster, as its autoscaler must read it.

Paths mean something else on another machine. Two private keys, which begin with `_` as Ray's own
do and are dropped by strict parsing, tell the copies apart: `_role` is "head" in the head's copy,
and `_operator_key` in the operator's is the key that Ray itself copies to the head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROLE, _ROLE_HEAD = "_role", "head"
_OPERATOR_KEY = "_operator_key"

HEAD_KEY_PATH = "~/ray_bootstrap_key.pem"
"""Where Ray's launcher puts `auth.ssh_private_key` on the head."""

_REMOTE_KINDS = {"ssh", "aws"}


def is_for_head(provider_config: Mapping[str, Any]) -> bool:
    """Return whether a provider section is from the head's copy."""
    return provider_config.get(_ROLE) == _ROLE_HEAD


def note_operator_key(cluster_config: dict[str, Any]) -> dict[str, Any]:
    """Return the file's content with the operator's key path noted where the copy finds it.

    Ray rewrites `auth.ssh_private_key` before it asks for the head's copy.
    """
    key = (cluster_config.get("auth") or {}).get("ssh_private_key")
    if not key:
        return cluster_config
    provider = {**cluster_config["provider"], _OPERATOR_KEY: str(key)}
    return {**cluster_config, "provider": provider}


def build_head_copy(cluster_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content for the head.

    A head on this machine shares its state folder, so that path becomes absolute: a process node's
    `~` is a folder of its own. On a machine of its own, `~` stays what it says. Sites whose key is
    the one Ray copies to the head are given its path there.
    """
    provider = {**cluster_config["provider"], _ROLE: _ROLE_HEAD}
    operator_key = provider.pop(_OPERATOR_KEY, None)
    if _kind_of_head(cluster_config) not in _REMOTE_KINDS:
        provider["state_dir"] = str(Path(provider["state_dir"]).expanduser())
    elif operator_key is not None:
        provider["sites"] = {
            name: {**site, "backend": _with_head_key(site["backend"], operator_key)}
            for name, site in provider["sites"].items()
        }
    return {**cluster_config, "provider": provider}


def _kind_of_head(cluster_config: Mapping[str, Any]) -> str:
    provider = cluster_config["provider"]
    site = provider["node_types"][cluster_config["head_node_type"]]["site"]
    return str(provider["sites"][site]["backend"]["kind"])


def _with_head_key(backend: Mapping[str, Any], operator_key: str) -> dict[str, Any]:
    """Return a backend's settings with the operator's key replaced wherever it stands."""
    changed = dict(backend)
    if isinstance(backend.get("ssh"), Mapping):
        changed["ssh"] = _with_key(backend["ssh"], operator_key)
    if isinstance(backend.get("hosts"), Mapping):
        changed["hosts"] = {
            name: _with_key(host, operator_key) for name, host in backend["hosts"].items()
        }
    return changed


def _with_key(settings: Mapping[str, Any], operator_key: str) -> dict[str, Any]:
    key = settings.get("private_key")
    if key is None or Path(key).expanduser() != Path(operator_key).expanduser():
        return dict(settings)
    return {**settings, "private_key": HEAD_KEY_PATH}
