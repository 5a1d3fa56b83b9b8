"""Who works on an open intent, so that two processes never work on the same one.

An owner is one provider object in one process. Whoever finds an open intent may take it over only
when its owner has ended: the process is gone, the machine restarted, or the object was closed.
"""

import os
import secrets
from pathlib import Path

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_live_here: set[str] = set()


def open_owner() -> str:
    """Return a new owner's name; it counts as alive until closed, or until this process ends."""
    owner = f"{_process_name(os.getpid())}/{secrets.token_hex(4)}"
    _live_here.add(owner)
    return owner


def close_owner(owner: str) -> None:
    """Forget an owner: others may take over what it left open."""
    _live_here.discard(owner)


def is_alive(owner: str) -> bool:
    """Return whether an owner may still be at work."""
    process, _, _ = owner.rpartition("/")
    pid = process.split("/")[1] if process.count("/") == 2 else ""  # noqa: PLR2004 - boot/pid/start
    if not pid.isdigit() or process != _process_name(int(pid)):
        return False
    return int(pid) != os.getpid() or owner in _live_here


def is_of_this_machine(owner: str) -> bool:
    """Return whether an owner works on this machine, and since its last start."""
    return owner.partition("/")[0] == _read_boot_id()


def _process_name(pid: int) -> str | None:
    """Return boot id, pid and start time, which no other process ever has; None for no process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces; the start time is the 20th field behind it.
    started = status.rpartition(")")[2].split()[19]
    return f"{_read_boot_id()}/{pid}/{started}"


def _read_boot_id() -> str:
    return _BOOT_ID_FILE.read_text(encoding="ascii").strip()
