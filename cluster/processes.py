"""Which processes belong to a cluster, a node or a replica, and how they end.

A process belongs to something by an environment variable it inherited from whoever started it.
That survives daemonising, new sessions and the death of parents, needs no process name, and
covers programs we don't start ourselves (raylets, HAProxy, engine workers).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

MARK_CLUSTER = "TIDEGATE_CLUSTER"
MARK_NODE = "TIDEGATE_NODE"
MARK_REPLICA = "TIDEGATE_REPLICA"

# setproctitle writes titles over the environment block that /proc/PID/environ shows, unless told
# not to: without it, Ray's workers and vLLM's EngineCore would lose their marks.
KEEP_MARKS_READABLE = {"SPT_NOENV": "1"}

_KILL_ROUNDS_MAX = 50
_POLL_S = 0.1


def list_marked(name: str, value: str, *, spare: Collection[int] = ()) -> list[int]:
    """Return the ids of live processes whose environment holds `name=value`, this one excluded."""
    wanted = f"{name}={value}".encode()
    return sorted(
        pid
        for pid in _list_pids()
        if pid != os.getpid() and pid not in spare and wanted in _read_environment(pid)
    )


def list_ancestors() -> list[int]:
    """Return the ids of this process's parent, its parent, and so on up."""
    ancestors: list[int] = []
    pid = os.getppid()
    while pid > 1:
        ancestors.append(pid)
        pid = _parent_of(pid)
    return ancestors


def end_marked(
    name: str, value: str, *, grace_s: float = 5.0, spare: Collection[int] = ()
) -> list[int]:
    """Return the ids of the processes ended: asked to stop, then killed after `grace_s`.

    Idempotent. `spare` names processes to leave alone, such as the shell that asked for this.
    Blocks until no other marked process is left. Processes that appear meanwhile (a raylet may
    still start a worker) are ended too.

    Raises:
        RuntimeError: a process survives SIGKILL, which only an unfinished system call can do.
    """
    ended = set(list_marked(name, value, spare=spare))
    _send(ended, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while time.monotonic() < deadline_s and list_marked(name, value, spare=spare):
        time.sleep(_POLL_S)
    for _ in range(_KILL_ROUNDS_MAX):
        left = set(list_marked(name, value, spare=spare))
        if not left:
            return sorted(ended)
        ended |= left
        _send(left, signal.SIGKILL)
        time.sleep(_POLL_S)
    raise RuntimeError(
        f"processes {sorted(left)} marked {name}={value} must end after SIGKILL; they still run. "
        "They wait in the kernel: look at /proc/PID/wchan."
    )


def start_reaper(name: str, value: str) -> subprocess.Popen[bytes]:
    """Return a small process that ends everything marked `name=value` once this process is gone.

    The caller keeps the returned object: its open pipe is the sign of life. Works after SIGKILL of
    the caller too. The reaper itself is unmarked and in a session of its own, so nothing that ends
    the marked processes ends it first.
    """
    environment = {key: text for key, text in os.environ.items() if key != name}
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.reaper", name, value],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def _list_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent_of(pid: int) -> int:
    """Return the id of a process's parent, 0 for a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name in parentheses may hold spaces; state and parent follow it.
    return int(status.rpartition(")")[2].split()[1])


def _read_environment(pid: int) -> list[bytes]:
    """Return the environment of a live process; none for one that is gone, a zombie or not ours."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
