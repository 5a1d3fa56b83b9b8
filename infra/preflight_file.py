"""What can be said about a cluster of SSH hosts and EC2 from its file and this machine alone."""

import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.backend_settings import AwsBackendSettings, SshAccess, SshBackendSettings
from cluster.config import ClusterSettings
from cluster.config_rules_remote import TOKEN_ON_NODES
from infra.preflight import Finding

_TOOLS = ("ssh", "rsync")
_COMMAND_LISTS = ("initialization_commands", "setup_commands", "head_setup_commands",
                  "worker_setup_commands")  # fmt: skip
_DOWNLOADS = re.compile(
    r"\b(apt|apt-get|dnf|yum|apk|conda|mamba|snap) (\S+ )*?install\b|\b(curl|wget)\b|"
    r"\bgit clone\b|\b(docker|podman) pull\b|\bhuggingface-cli\b|\bhf download\b"
)
_PIP = re.compile(r"\bpip3? install\b(?P<options>[^;&|}]*)")
_PLACEHOLDER = re.compile(r"^(ami|subnet|sg)-0{10}")
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"


def inspect_file(raw: Mapping[str, Any], settings: ClusterSettings) -> Iterator[Finding]:
    """Yield a finding for each check that needs no other machine."""
    yield from (_check_tool(name) for name in _TOOLS)
    yield from (_check_key(path) for path in list_keys(raw, settings))
    yield from _check_mounts(raw, settings)
    yield from _check_boot(raw)
    yield from _check_dashboard(raw)
    yield from _check_prices(settings)
    for name, site in settings.sites.items():
        if isinstance(site.backend, AwsBackendSettings):
            yield from _check_placeholders(name, site.backend)
            yield from _check_dead_man(name, site.backend)


def list_keys(raw: Mapping[str, Any], settings: ClusterSettings) -> list[str]:
    """Return the paths of all SSH keys the file names."""
    keys = {str((raw.get("auth") or {}).get("ssh_private_key", ""))} - {""}
    for site in settings.sites.values():
        if isinstance(site.backend, SshBackendSettings):
            keys |= {host.private_key for host in site.backend.hosts.values() if host.private_key}
        if isinstance(site.backend, SshBackendSettings | AwsBackendSettings):
            access: SshAccess = site.backend.ssh
            keys.add(access.private_key)
    return sorted(keys)


def find_downloads(command: str) -> str | None:
    """Return the part of a command that fetches something when it runs, None if none does."""
    found = _DOWNLOADS.search(command)
    if found:
        return found.group(0)
    for pip in _PIP.finditer(command):
        if "--no-index" not in pip.group("options"):
            return pip.group(0).strip()[:60]
    return None


def _check_tool(name: str) -> Finding:
    path = shutil.which(name)
    if path:
        return Finding(name, "pass", path)
    return Finding(name, "fail", f"{name} isn't on this machine", f"Type: apt install {name}")


def _check_key(path: str) -> Finding:
    file, check = Path(path).expanduser(), f"key {path}"
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        fix = f"Make one: ssh-keygen -t ed25519 -f {path}; its .pub belongs on every host."
        return Finding(check, "fail", f"must be readable; {error.strerror}", fix)
    if mode & 0o077:
        return Finding(
            check, "fail", f"others can read it (mode {mode:03o})", f"Type: chmod 600 {path}"
        )
    return Finding(check, "pass", f"mode {mode:03o}")


def _check_mounts(raw: Mapping[str, Any], settings: ClusterSettings) -> Iterator[Finding]:
    keys = set(list_keys(raw, settings))
    for target, source in raw["file_mounts"].items():
        file = Path(source).expanduser()
        if target == TOKEN_ON_NODES:
            yield _check_token(file)
        elif source in keys or target in keys:
            fix = "Use one key for all sites, auth.ssh_private_key: only the head gets that one."
            detail = f"{source} is a private key, and every node gets it, rented ones too"
            yield Finding("file_mounts", "warn", detail, fix)
        elif not file.exists():
            fix = "Type: make wheel" if "wheel" in source else "Make it, or remove the entry."
            yield Finding(f"mount {target}", "fail", f"{source} isn't there", fix)
        elif file.is_dir() and "wheel" in source:
            yield _check_wheels(target, sorted(file.glob("*.whl")))
        else:
            yield Finding(f"mount {target}", "pass", source)


def _check_token(file: Path) -> Finding:
    if not file.exists():
        return Finding("token", "pass", f"`ray up` will make {file}")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        fix = f"Type: chmod 600 {file}. If others could read it, replace it: remove it, `ray up`."
        return Finding("token", "fail", f"others can read {file} (mode {mode:03o})", fix)
    return Finding("token", "pass", f"{file}, mode {mode:03o}")


def _check_wheels(target: str, wheels: Sequence[Path]) -> Finding:
    names = ", ".join(wheel.name for wheel in wheels)
    if len(wheels) == 1:
        return Finding(f"mount {target}", "pass", names)
    if not wheels:
        return Finding(f"mount {target}", "fail", "holds no wheel", "Type: make wheel")
    fix = "Remove the old ones: `make wheel` leaves one."
    return Finding(f"mount {target}", "warn", f"the newest of {names} is used", fix)


def _check_boot(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """A node that installs something while it boots joins late, and not at all offline."""
    named = {key: raw.get(key) or [] for key in _COMMAND_LISTS}
    for name, node_type in raw["available_node_types"].items():
        named[f"{name}.worker_setup_commands"] = node_type.get("worker_setup_commands") or []
    found = [
        (key, part)
        for key, commands in named.items()
        for command in commands
        if (part := find_downloads(command)) is not None
    ]
    for key, part in found:
        fix = "Put it into the nodes' image: tidegate infra image --help"
        yield Finding("boot", "warn", f"{key} may download while a node boots: {part}", fix)
    if not found:
        yield Finding("boot", "pass", "nothing is downloaded while a node boots")


def _check_dashboard(raw: Mapping[str, Any]) -> Iterator[Finding]:
    for command in raw["head_start_ray_commands"]:
        match = re.search(r"--dashboard-host[= ](\S+)", command)
        if match and match.group(1) not in {"127.0.0.1", "localhost", "::1"}:
            fix = "Write --dashboard-host=127.0.0.1 and use `ray dashboard`, which forwards it."
            detail = f"it listens on {match.group(1)}, and runs code for whoever has the token"
            yield Finding("dashboard", "warn", detail, fix)
            return
    yield Finding("dashboard", "pass", "on the head's loopback")


def _check_prices(settings: ClusterSettings) -> Iterator[Finding]:
    limit = settings.limits.usd_per_hour
    for name, kind in settings.node_types.items():
        if kind.usd_per_hour > limit:
            fix = "Raise the limit, or remove the type."
            detail = f"{name} at {kind.usd_per_hour} $/h can never start under {limit} $/h"
            yield Finding("limits", "warn", detail, fix)


def _check_placeholders(site: str, backend: AwsBackendSettings) -> Iterator[Finding]:
    used = [backend.image, *backend.subnets.values(), *backend.security_groups]
    left = [name for name in used if _PLACEHOLDER.match(name)]
    if left:
        fix = f"Edit provider.sites.{site}.backend."
        yield Finding(f"site {site}", "fail", f"still placeholders: {', '.join(left)}", fix)


def _check_dead_man(site: str, backend: AwsBackendSettings) -> Iterator[Finding]:
    waits_s = backend.env.get(_RECONNECT, "60")
    if waits_s.isdigit() and int(waits_s) > backend.lost_head_s_max:
        fix = f"Lower {_RECONNECT} in its env, or raise lost_head_s_max."
        detail = (
            f"Ray waits {waits_s} s for a lost head, the machine ends itself after "
            f"{backend.lost_head_s_max:g} s"
        )
        yield Finding(f"site {site}", "warn", detail, fix)
