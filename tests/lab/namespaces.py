"""Linux namespaces, as far as the lab needs them: may we, enter one, find who lives in one."""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK_LAB = "TIDEGATE_LAB"
"""Variable of everything in a lab: who owns it, as `pid:start time`."""

_CLONE_NEWNET = 0x40000000
_NEEDED = ("ip", "nft", "nsenter", "rsync", "ssh", "ssh-keygen", "sshd", "tc", "unshare")
_TRIAL = """
mount -t tmpfs trial /mnt && mkdir /mnt/u /mnt/w /mnt/r &&
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r &&
ip link add br-trial type bridge && ip link add trial type veth peer name trial1 &&
nft add table inet trial
"""


def explain_missing() -> str | None:
    """Return why there can be no lab on this machine, None if there can."""
    if os.geteuid() != 0:
        return "the lab needs root: it makes network, process and mount namespaces"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in _NEEDED if shutil.which(name, path=search) is None]
    if missing:
        return f"the lab needs {', '.join(missing)}; none found. Type: sudo .ci/install-debian"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", _TRIAL],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    if trial.returncode != 0:
        return f"the lab needs namespaces and overlay mounts; refused: {trial.stderr.strip()}"
    return None


def enter(pid: int, *kinds: str) -> list[str]:
    """Return the words that run a command in another process's namespaces."""
    return ["nsenter", f"--target={pid}", *(f"--{kind}" for kind in kinds), "--"]


def kill_entered(process: subprocess.Popen[str]) -> None:
    """Kill what was started with `enter` and `process_group=0`: nsenter and its child."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


@contextmanager
def in_network_of(pid: int) -> Iterator[None]:
    """Be in a process's network: this thread's sockets, its subprocesses, threads it starts.

    Sockets stay in the network they were opened in.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        _set_network(other)
        try:
            yield
        finally:
            _set_network(own)
    finally:
        os.close(own)
        os.close(other)


def _set_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns must succeed: {os.strerror(number)}")


def wait_for_descendant(pid: int, *, depth: int, timeout_s: float = 10.0) -> int:
    """Return the process that is `depth` generations below, each with one child."""
    deadline_s = time.monotonic() + timeout_s
    found = pid
    for _ in range(depth):
        while not (children := list_children(found)):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"process {found} must start a child within {timeout_s:g} s")
            time.sleep(0.002)
        found = children[0]
    return found


def list_children(pid: int) -> list[int]:
    """Return a process's children, none if it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def list_members(pid: int, kind: str = "pid") -> list[int]:
    """Return the processes that share a namespace with `pid`."""
    return list_in_namespace(read_namespace(pid, kind), kind)


def list_in_namespace(namespace: str, kind: str) -> list[int]:
    """Return the processes in a namespace, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if read_namespace(int(entry.name), kind) == namespace:
                members.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return sorted(members)


def read_namespace(pid: int, kind: str) -> str:
    """Return a namespace's name, such as `net:[4026532262]`."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def write_owner() -> str:
    """Return this process as an owner: its number alone may be given out again."""
    return f"{os.getpid()}:{_read_start_time(os.getpid())}"


def end_leftovers() -> list[int]:
    """Return the processes of labs whose owner is gone, killed now.

    There are none unless a lab's first process was stopped by a signal: it ends with its owner.
    """
    ended = []
    for entry in Path("/proc").iterdir():
        owner = _read_mark(entry)
        if owner is None:
            continue
        owner_pid, _, started = owner.partition(":")
        if _read_start_time(int(owner_pid)) != started:
            os.kill(int(entry.name), signal.SIGKILL)
            ended.append(int(entry.name))
    return ended


def _read_mark(entry: Path) -> str | None:
    if not entry.name.isdigit():
        return None
    try:
        environment = (entry / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for item in environment:
        if item.startswith(MARK_LAB.encode() + b"="):
            return item.partition(b"=")[2].decode()
    return None


def _read_start_time(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
