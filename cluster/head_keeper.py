"""Keeps the head's Ray running: `python -m cluster.head_keeper --gcs-port PORT SCRIPT`.

    ray up ──▶ keeper ──runs SCRIPT──▶ Ray's head and the autoscaler
                 └─▶ watcher, detached: runs SCRIPT again when the control store or raylet died

With a control store that persists (RAY_gcs_storage=rocksdb, or Redis) the cluster goes on where it
was: workers wait for the head and rejoin, their replicas keep streaming. `ray stop` removes Ray's
note of the running cluster, though only at its end, and a crash doesn't: that is how the watcher
tells them apart.
"""

import argparse
import itertools
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.processes import MARK_NODE, end_marked, list_ancestors, list_marked

_log = logging.getLogger("head_keeper")

_CHECK_S = 1.0
_CONNECT_S = 1.0
_MISSES_MAX = 3
_SCRIPT_S_MAX = 120.0
_GRACE_S = 1.0
_BACK_OFF_S_MAX = 30.0
_RAYS_NOTE = "ray_current_cluster"
_OURS_NOTE = "tidegate_head_keeper"
_LOG_FILE = "tidegate_head_keeper.log"


@dataclass(frozen=True, slots=True)
class Head:
    """The head on this machine: where its control store listens and Ray keeps its files."""

    address: str
    gcs_port: int
    ray_folder: Path
    node_mark: str

    def is_alive(self) -> bool:
        """Whether the control store answers and a raylet of this node runs."""
        return self._answers() and bool(_list_raylets(self.node_mark))

    def was_stopped(self) -> bool:
        """Whether somebody stopped Ray on purpose."""
        return not (self.ray_folder / _RAYS_NOTE).exists()

    def is_being_stopped(self) -> bool:
        """Whether a `ray stop` is at work on this node."""
        return any(_is_ray_stop(pid) for pid in list_marked(MARK_NODE, self.node_mark))

    def clear(self) -> None:
        """End what is left of the dead head and remove Ray's note, which forbids a new start."""
        spare = [os.getpid(), *list_ancestors()]
        ended = end_marked(MARK_NODE, self.node_mark, grace_s=_GRACE_S, spare=spare)
        (self.ray_folder / _RAYS_NOTE).unlink(missing_ok=True)
        _log.info("ended %d processes the dead head left", len(ended))

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.address, self.gcs_port), timeout=_CONNECT_S):
                return True
        except OSError:
            return False


class Watcher:
    """Restarts the head when it died. A newer watcher of the same head replaces it."""

    def __init__(self, head: Head, script: str) -> None:
        self._head = head
        self._script = script
        self._word = secrets.token_hex(8)
        self._note = head.ray_folder / _OURS_NOTE

    def run(self) -> int:
        """Return 0 once the head was stopped on purpose or another watcher took over."""
        self._note.write_text(self._word, encoding="ascii")
        misses = 0
        while self._is_current():
            is_well = self._head.is_alive() or self._head.is_being_stopped()
            misses = 0 if is_well else misses + 1
            if misses >= _MISSES_MAX:
                if self._head.was_stopped():
                    _log.info("the head was stopped: nothing to keep")
                    return 0
                self._restart()
                misses = 0
            time.sleep(_CHECK_S)
        _log.info("another keeper watches this head now")
        return 0

    def _restart(self) -> None:
        """Start the head again, as often as it takes, later each time."""
        began_s, pause_s = time.monotonic(), 1.0
        _log.warning("the head's Ray died: starting it again")
        while self._is_current():
            self._head.clear()
            code = run_script(self._script)
            if code == 0:
                _log.info("the head runs again after %.1f s", time.monotonic() - began_s)
                return
            _log.error("the head's script ended with %d; next try in %.0f s", code, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _BACK_OFF_S_MAX)

    def _is_current(self) -> bool:
        try:
            return self._note.read_text(encoding="ascii") == self._word
        except FileNotFoundError:
            return False


def run_script(script: str) -> int:
    """Return the exit status of a shell script; 124 when it was ended for taking too long."""
    child = subprocess.Popen(["/bin/bash", "-ec", script], stdin=subprocess.DEVNULL)
    try:
        return child.wait(_SCRIPT_S_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return 124


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: the script's own, the first time it runs."""
    options = _parse(arguments)
    if options.watch:
        return _watch(options)
    code = run_script(options.script)
    if code == 0:
        _detach(arguments, log_file=_ray_folder() / _LOG_FILE)
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster.head_keeper", description=__doc__)
    parser.add_argument("--gcs-port", type=int, required=True, help="port of Ray's control store")
    parser.add_argument("--watch", action="store_true", help="be the watcher; the head runs")
    parser.add_argument("script", help="shell script that starts Ray's head and what goes with it")
    options = parser.parse_args(arguments)
    for name in (MARK_NODE, "TIDEGATE_NODE_IP", "TIDEGATE_RAY_TMP"):
        if not os.environ.get(name):
            parser.error(f"{name} must be set, as it is in a node's start commands; it isn't.")
    return options


def _watch(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    head = Head(
        address=os.environ["TIDEGATE_NODE_IP"],
        gcs_port=options.gcs_port,
        ray_folder=_ray_folder(),
        node_mark=os.environ[MARK_NODE],
    )
    return Watcher(head, options.script).run()


def _detach(arguments: Sequence[str], *, log_file: Path) -> None:
    command = [sys.executable, "-m", "cluster.head_keeper", "--watch", *arguments]
    with log_file.open("ab") as log:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _ray_folder() -> Path:
    return Path(os.environ["TIDEGATE_RAY_TMP"])


def _list_raylets(node_mark: str) -> list[int]:
    return [
        pid for pid in list_marked(MARK_NODE, node_mark) if _read_name(pid).startswith("raylet")
    ]


def _is_ray_stop(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    arguments = words.split("\0")
    return any(
        Path(program).name == "ray" and verb == "stop"
        for program, verb in itertools.pairwise(arguments)
    )


def _read_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
