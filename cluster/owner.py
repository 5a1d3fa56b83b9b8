"""Who works on an open intent, so that two processes never work on the same one.

An owner is one provider object in one process. Whoever finds an open intent may take it over only
when its owner has ended: the process is gone, its machine restarted, or the object was closed. Of
an owner on another machine nothing is known here.
"""

import os
import secrets
from pathlib import Path

from cluster.machine import read_machine_id

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_UNKNOWN_MACHINE = "unknown"
_ENDED = frozenset({"Z", "X"})  # zombie, dead: proc_pid_stat(5)
_live_here: set[str] = set()


def open_owner() -> str:
    """Return a new owner's name; it counts as alive until closed, or until this process ends."""
    owner = f"{_here()}/{_process_name(os.getpid())}/{secrets.token_hex(4)}"
    _live_here.add(owner)
    return owner


def close_owner(owner: str) -> None:
    """Forget an owner: others may take over what it left open."""
    _live_here.discard(owner)


def is_alive(owner: str) -> bool:
    """Return whether an owner is at work on this machine."""
    prefix = f"{_here()}/"
    process = owner.removeprefix(prefix).rpartition("/")[0]
    pid = process.partition("/")[0]
    if not owner.startswith(prefix) or not pid.isdigit() or process != _process_name(int(pid)):
        return False
    return int(pid) != os.getpid() or owner in _live_here


def is_of_this_machine(owner: str) -> bool:
    """Return whether an owner works, or worked, where its process can be looked up.

    Another container on this machine is another place: process ids there mean other processes.
    """
    machine, _, rest = owner.partition("/")
    boot, _, _ = rest.partition("/")
    if owner.startswith(f"{_here()}/"):
        return True
    # The same machine under another boot id has restarted since, and nothing outlives that.
    return machine == _machine() != _UNKNOWN_MACHINE and boot != _boot_id()


def has_ended(owner: str) -> bool:
    """Return whether an owner is known to be gone; never of one on another machine."""
    return is_of_this_machine(owner) and not is_alive(owner)


def _here() -> str:
    """Return where process ids mean what they mean to us: machine, boot, pid namespace."""
    namespace = Path("/proc/self/ns/pid").readlink().name.removeprefix("pid:")
    return f"{_machine()}/{_boot_id()}/{namespace}"


def _machine() -> str:
    return read_machine_id() or _UNKNOWN_MACHINE


def _boot_id() -> str:
    return _BOOT_ID_FILE.read_text(encoding="ascii").strip()


def _process_name(pid: int) -> str | None:
    """Return pid and start time, which no other process here ever has; None for no process.

    One that has ended is none, even while its parent hasn't asked how it ended.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces; the start time is the 20th field behind it.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else f"{pid}/{fields[19]}"
