"""The agent on a rented node: `python -m cluster.node_agent`, once for each node, beside Ray.

    every 2 s:  metadata service ─┐
                own raylet       ─┼─▶ decide_agent ─▶ drain through Ray │ end the node
                the head's GCS   ─┘   (node_leaving)   (self_drain)

Everything it must know is in the node's environment: TIDEGATE_NODE, TIDEGATE_NODE_IP, RAY_HEAD_IP,
TIDEGATE_PORT_GCS; and TIDEGATE_LOST_HEAD_S_MAX, without which the node never ends itself. An agent
that starts ends the one before it. Imports no Ray: Ray's client ends its process when the head is
away, which is just when the agent has work.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import BackendError, ConfigError
from cluster.gcs_ping import answers
from cluster.imds import MetadataService
from cluster.node_leaving import Drain, EndNode, Observation, decide_agent
from cluster.processes import MARK_NODE, end_marked, list_marked

if TYPE_CHECKING:
    from cluster.notices import NoticeKind

_POLL_S = 2.0
_DRAIN_S_MAX = 30.0
_SHUTDOWN_S_MAX = 60.0
_END_GRACE_S = 5.0
_MODULE = "cluster.node_agent"

logger = logging.getLogger("cluster.node_agent")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the agent must know. `lost_head_s_max` None = the node never ends itself."""

    node: str
    address: str
    gcs_address: str
    lost_head_s_max: float | None
    shutdown_command: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "AgentSettings":
        """The settings in a node's environment.

        Raises:
            ConfigError: a variable is missing.
        """
        wanted = (MARK_NODE, "TIDEGATE_NODE_IP", "RAY_HEAD_IP", "TIDEGATE_PORT_GCS")
        missing = [name for name in wanted if not environment.get(name)]
        if missing:
            raise ConfigError(
                f"the node agent must find {', '.join(missing)} in its environment. Start it from "
                "worker_start_ray_commands, as cluster/hybrid.yaml does."
            )
        limit = environment.get("TIDEGATE_LOST_HEAD_S_MAX")
        default = "shutdown -h now" if os.geteuid() == 0 else "sudo -n shutdown -h now"
        command = environment.get("TIDEGATE_SHUTDOWN_COMMAND") or default
        return cls(
            node=environment[MARK_NODE],
            address=environment["TIDEGATE_NODE_IP"],
            gcs_address=f"{environment['RAY_HEAD_IP']}:{environment['TIDEGATE_PORT_GCS']}",
            lost_head_s_max=float(limit) if limit else None,
            shutdown_command=tuple(shlex.split(command)),
        )


class NodeAgent:
    """Looks and acts. `clock` counts seconds and is never set: wall time may jump by minutes."""

    def __init__(
        self,
        settings: AgentSettings,
        metadata: MetadataService | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._clock = clock
        self._raylet_seen_s = clock()
        self._head_seen_s = clock()
        self._drained_for: NoticeKind | None = None
        self._is_metadata_silent = False
        self._said = ""

    def run(self) -> None:
        """Look and act until the node ends."""
        while not self.step():
            time.sleep(_POLL_S)

    def step(self) -> bool:
        """Look once and act; returns whether the node has ended."""
        action = decide_agent(self._observe())
        if isinstance(action, Drain):
            logger.warning("draining this node: %s", action.reason)
            if self._drain(action):
                self._drained_for = action.kind
            return False
        if isinstance(action, EndNode):
            logger.critical("ending this node: %s", action.reason)
            return self._end_node()
        if action.reason != self._said:
            self._said = action.reason
            logger.info("waiting: %s", action.reason)
        return False

    def _observe(self) -> Observation:
        now_s = self._clock()
        if has_raylet(self._settings.node):
            self._raylet_seen_s = now_s
        if answers(self._settings.gcs_address):
            self._head_seen_s = now_s
        left_s, has_advice = self._read_notices()
        return Observation(
            raylet_lost_s=now_s - self._raylet_seen_s,
            head_lost_s=now_s - self._head_seen_s,
            lost_head_s_max=self._settings.lost_head_s_max,
            interruption_left_s=left_s,
            has_rebalance_advice=has_advice,
            drained_for=self._drained_for,
        )

    def _read_notices(self) -> tuple[float | None, bool]:
        """Return what the site announces; nothing while its metadata can't be read."""
        if self._metadata is None:
            return None, False
        try:
            found = (self._metadata.find_interruption(), self._metadata.has_rebalance_advice())
        except BackendError as exc:
            if not self._is_metadata_silent:
                logger.warning("no notices can be read for now: %s", exc)
            self._is_metadata_silent = True
            return None, False
        if self._is_metadata_silent:
            logger.info("notices can be read again")
        self._is_metadata_silent = False
        return found

    def _drain(self, action: Drain) -> bool:
        """Have Ray drain this node; returns whether it accepted. Asked again until it does."""
        command = [
            *(sys.executable, "-m", "cluster.self_drain"),
            *("--gcs-address", self._settings.gcs_address),
            *("--node", self._settings.node, "--address", self._settings.address),
            *("--kind", action.kind),
        ]
        if action.left_s is not None:
            command += ["--left-s", f"{action.left_s:.1f}"]
        return _run(command, limit_s=_DRAIN_S_MAX)

    def _end_node(self) -> bool:
        """End what runs here and the machine; returns whether the machine takes it."""
        try:
            ended = end_marked(MARK_NODE, self._settings.node, grace_s=_END_GRACE_S)
            logger.info("ended %d processes of this node", len(ended))
        except RuntimeError:
            logger.exception("some processes of this node can't be ended; the machine goes anyway")
        return _run(self._settings.shutdown_command, limit_s=_SHUTDOWN_S_MAX)


def has_raylet(node: str) -> bool:
    """Return whether a raylet with the node's mark runs on this machine."""
    return any(_read_process(pid, "comm") == "raylet" for pid in list_marked(MARK_NODE, node))


def end_older_agents(node: str) -> None:
    """End every other agent of this node: each `ray up` starts one, and one is enough."""
    for pid in list_marked(MARK_NODE, node):
        if _MODULE not in _read_process(pid, "cmdline").split("\0"):
            continue
        logger.info("ending the agent that ran before, process %d", pid)
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def main() -> int:
    """Return 0 after the node has ended, 2 if the environment isn't a node's."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = AgentSettings.from_environment(os.environ)
    except ConfigError as exc:
        logger.critical("%s", exc)
        return 2
    end_older_agents(settings.node)
    NodeAgent(settings, MetadataService.from_environment(os.environ, now_s=time.time)).run()
    return 0


def _run(command: list[str] | tuple[str, ...], *, limit_s: float) -> bool:
    """Run a command for at most `limit_s`; returns whether it succeeded, and logs why not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        logger.warning("%s failed, to be tried again: %s", command[0], exc)
        return False
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        logger.warning(
            "%s ended with %d, to be tried again: %s",
            shlex.join(command),
            done.returncode,
            said[-1] if said else "it said nothing",
        )
    return done.returncode == 0


def _read_process(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
