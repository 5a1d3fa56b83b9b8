"""The folder of one process node, and the environment its commands run in.

    <state_dir>/<cluster>/
        auth_token           the cluster's token, mode 600
        slots/<n>            link to the node that holds slot n: its address and its ports
        nodes/<node id>/     instance.json (exists = the node exists)   started (Ray was started)
                             home/  tmp/  ray/ (Ray's temporary folder)  bin/ray  env.sh
        logs/<node id>/      Ray's logs of nodes that are gone, the newest few
        gone/                where folders of ended nodes are deleted

A node stands in for a machine, so it has a home, a temporary folder, an address and ports of its
own. Unix sockets hold 107 characters, so paths that end in sockets go through a short link,
/tmp/tg-<hash>, to the slots.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.backends.node_environment import build_common_environment, build_ray_start_arguments
from cluster.config import PortSettings
from cluster.errors import NoCapacityError, StateError
from cluster.model import ClusterName, LaunchSpec, NodeId, NodeTypeName, SiteName
from cluster.private_file import write_private
from cluster.processes import MARK_REPLICA

_SLOTS_MAX = 100

# What a node takes from the environment of whoever starts it. Anything else (credentials above
# all) stays behind, as it would on a machine of its own.
_PASSED_ON = {"LANG", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TERM", "TZ", "USER"}
_PASSED_ON_PREFIXES = ("LC_", "OMP_", "TIDEGATE_", "VLLM_")

_RAY_SHIM = """\
#!/bin/sh
# This node has no machine of its own: `ray stop` ends its processes and nobody else's.
case "$1" in
stop)
    rm -f {started} {address}
    exec {python} -m cluster.backends.process_stop ;;
start)
    # A head refuses to start where this names the cluster it is about to start.
    unset RAY_ADDRESS
    # Ray gives its agents 15 s to start, whatever the load; a busy machine needs another go.
    for attempt in 1 2 3; do
        {ray} "$@" && touch {started} && exit 0
        code=$?
        {python} -m cluster.backends.process_stop
    done
    exit $code ;;
*)
    exec {ray} "$@" ;;
esac
"""


@dataclass(frozen=True, slots=True)
class ClusterFolder:
    """Where the process nodes of one cluster live."""

    path: Path
    cluster: ClusterName
    ports: PortSettings

    @property
    def token_file(self) -> Path:
        """Return where the cluster's token is."""
        return self.path / "auth_token"

    @property
    def slots(self) -> Path:
        """Return the folder of slot links."""
        return self.path / "slots"

    @property
    def nodes(self) -> Path:
        """Return the folder of node folders."""
        return self.path / "nodes"

    @property
    def logs(self) -> Path:
        """Return the folder of the logs of nodes that are gone."""
        return self.path / "logs"

    @property
    def gone(self) -> Path:
        """Return the folder where node folders are deleted, out of everybody's sight."""
        return self.path / "gone"

    def ensure_exists(self) -> None:
        """Create the folders and the token if they are missing. Idempotent."""
        for folder in (self.path, self.slots, self.nodes, self.logs, self.gone):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.locked():
            if not self.token_file.exists():
                write_private(self.token_file, secrets.token_hex(32))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock: one process at a time hands out slots."""
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def short_path(self) -> Path:
        """Return a link to the slots that is short enough for sockets; created if missing.

        Raises:
            StateError: somebody else has put something else there.
        """
        link = self._short_link()
        try:
            link.symlink_to(self.slots)
        except FileExistsError:
            if link.lstat().st_uid != os.geteuid() or link.readlink() != self.slots:
                raise StateError(
                    f"{link} must be a link of this user to {self.slots}; got something else. "
                    "Remove it, or choose another state_dir."
                ) from None
        return link

    def claim_slot(self, node_id: NodeId) -> int:
        """Return the node's slot: the one it holds already, or the lowest free one.

        Raises:
            NoCapacityError: all slots are taken.
        """
        with self.locked():
            held = {int(link.name): link for link in self.slots.iterdir()}
            for number, link in sorted(held.items()):
                if link.readlink().name == node_id:
                    return number
                if not link.exists():
                    link.unlink()
                    del held[number]
            free = next((n for n in range(_SLOTS_MAX) if n not in held), None)
            if free is None:
                raise NoCapacityError(f"this machine must have a free slot; {_SLOTS_MAX} are held.")
            (self.slots / str(free)).symlink_to(self.nodes / node_id)
            return free

    def release_slot(self, node_id: NodeId) -> None:
        """Free the node's slot, and remove the short link with the last one. Idempotent."""
        with self.locked():
            for link in list(self.slots.iterdir()):
                if link.readlink().name == node_id:
                    link.unlink()
            if not any(self.slots.iterdir()):
                self._short_link().unlink(missing_ok=True)

    def _short_link(self) -> Path:
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        return Path(f"/tmp/tg-{digest}")  # noqa: S108 - a link, checked to be ours before use


@dataclass(frozen=True, slots=True)
class ProcessInstance:
    """What is written about a node in its folder."""

    spec: LaunchSpec
    slot: int
    launched_s: float
    ready_s: float

    @property
    def address(self) -> str:
        """Return the loopback address that belongs to the node alone."""
        return f"127.0.1.{self.slot + 1}"

    @classmethod
    def from_json(cls, text: str) -> "ProcessInstance":
        """Return an instance from its file's content."""
        content = json.loads(text)
        spec = content.pop("spec")
        return cls(
            spec=LaunchSpec(
                node_id=NodeId(spec["node_id"]),
                cluster=ClusterName(spec["cluster"]),
                site=SiteName(spec["site"]),
                node_type=NodeTypeName(spec["node_type"]),
                is_head=spec["is_head"],
                tags=spec["tags"],
                node_config=spec["node_config"],
            ),
            **content,
        )


class NodeFolder:
    """One node's folder."""

    def __init__(self, cluster: ClusterFolder, node_id: NodeId) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.path = cluster.nodes / node_id
        self.started_file = self.path / "started"
        self.env_file = self.path / "env.sh"
        self.ray_folder = self.path / "ray"
        self.home = self.path / "home"

    def read_instance(self) -> ProcessInstance | None:
        """Return what is written about the node, None if there is no such node."""
        try:
            return ProcessInstance.from_json(
                (self.path / "instance.json").read_text(encoding="utf-8")
            )
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, instance: ProcessInstance, *, extra_env: Mapping[str, str]) -> None:
        """Fill the folder; the node exists once this returns. Idempotent."""
        for folder in (self.home, self.path / "tmp", self.path / "h", self.ray_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_ray_shim()
        environment = self.build_environment(instance, os.environ, extra_env)
        exports = [f"export {key}={shlex.quote(text)}\n" for key, text in environment.items()]
        write_private(self.env_file, "".join(exports))
        self.write_instance(instance)

    def write_instance(self, instance: ProcessInstance) -> None:
        """Write what there is to know about the node, in one step."""
        write_private(self.path / "instance.json", json.dumps(asdict(instance), indent=1))

    def build_environment(
        self, instance: ProcessInstance, outside: Mapping[str, str], extra: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the environment of everything that runs on the node."""
        short = self.cluster.short_path() / str(instance.slot)
        return {
            **{key: text for key, text in outside.items() if _is_passed_on(key)},
            "PATH": _build_path(self.path / "bin", outside.get("PATH", os.defpath)),
            "HOME": str(self.home),
            "TMPDIR": str(short / "tmp"),
            **build_common_environment(self.cluster.ports, instance.spec, address=instance.address),
            "HF_HUB_OFFLINE": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Workers started ahead of need cost a shared machine more than they save.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_AUTH_TOKEN_PATH": str(self.cluster.token_file),
            # Ray's temporary folder is the folder `ray` inside of this one.
            "RAY_TMPDIR": str(short),
            "TIDEGATE_RAY_TMP": str(short / "ray"),
            "TIDEGATE_RAY_START_ARGS": build_ray_start_arguments(
                self.cluster.ports, slot=instance.slot, worker_port=None
            ),
            # Serve adds a node id to this folder, and HAProxy takes 97 characters for its socket.
            **_build_haproxy_files(short / "h"),
            **extra,
        }

    def _write_ray_shim(self) -> None:
        shim = self.path / "bin" / "ray"
        shim.parent.mkdir(exist_ok=True, mode=0o700)
        python = Path(sys.executable)
        text = _RAY_SHIM.format(
            python=shlex.quote(str(python)),
            ray=shlex.quote(str(python.with_name("ray"))),
            started=shlex.quote(str(self.started_file)),
            # Ray's note of the running cluster, which the real `ray stop` removes too.
            address=shlex.quote(str(self.ray_folder / "ray_current_cluster")),
        )
        write_private(shim, text, mode=0o700)


def _is_passed_on(key: str) -> bool:
    return key != MARK_REPLICA and (key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES))


def _build_path(own: Path, outside: str) -> str:
    """Return the search path: the node's commands, this Python's, then the outside's.

    A node started from a node must not find that one's commands, so they are taken out.
    """
    nodes_of_this_kind = own.parent.parent
    python = str(Path(sys.executable).parent)
    rest = [
        part
        for part in outside.split(os.pathsep)
        if part and part != python and nodes_of_this_kind not in Path(part).parents
    ]
    return os.pathsep.join([str(own), python, *rest])


def _build_haproxy_files(folder: Path) -> dict[str, str]:
    """Return where Serve's HAProxy keeps its files; two of them would share the defaults."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }
