"""Real SSH servers on loopback ports, each with a home of its own: machines, as far as SSH sees."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.backend_settings import SshBackendSettings
from cluster.backends import ssh_access

USER = pwd.getpwuid(os.geteuid()).pw_name

_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
PrintMotd no
KexAlgorithms curve25519-sha256
PrintLastLog no
MaxStartups 100
MaxSessions 100
SetEnv HOME={home}
"""


@dataclass
class SshdHost:
    """One SSH server with an address of its own; all of them are this machine."""

    folder: Path
    address: str
    port: int
    key: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def claim_file(self) -> Path:
        return self.home / ".tidegate" / "claim.json"

    @property
    def ray_folder(self) -> Path:
        return self.home / "ray"

    @property
    def log(self) -> Path:
        return self.folder / "sshd.log"

    def write(self) -> None:
        """Make its home, host key and configuration."""
        self.home.mkdir(parents=True)
        make_key(self.folder / "host_key")
        shutil.copy(self.key.with_suffix(".pub"), self.folder / "authorized_keys")
        self.write_config()

    def write_config(self, *more: str) -> None:
        text = _CONFIG.format(
            address=self.address, port=self.port, folder=self.folder, home=self.home
        )
        (self.folder / "sshd_config").write_text(text + "".join(f"{line}\n" for line in more))

    def start(self) -> None:
        """Start it and wait until it listens, 5 s at most."""
        command = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + 5
        while True:
            with socket.socket() as client:
                if client.connect_ex((self.address, self.port)) == 0:
                    return
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it and its sessions: the machine no longer answers. Idempotent."""
        if self.process is not None:
            for pid in [*_list_descendants(self.process.pid), self.process.pid]:
                _send(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Keep the port open and answer nothing, as a machine that hangs does."""
        self._send_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send_all(signal.SIGCONT)

    def _send_all(self, number: signal.Signals) -> None:
        assert self.process is not None
        for pid in [self.process.pid, *_list_descendants(self.process.pid)]:
            _send(pid, number)


@contextmanager
def open_hosts(folder: Path, count: int) -> Iterator[list[SshdHost]]:
    """Start some servers, and stop them by id at the end."""
    key = folder / "client_key"
    make_key(key)
    with ExitStack() as stack:
        hosts = []
        for number in range(count):
            address = f"127.0.3.{number + 1}"
            host = SshdHost(folder / f"h{number + 1}", address, _find_port(address), key)
            host.folder.mkdir()
            host.write()
            stack.callback(host.stop)
            host.start()
            hosts.append(host)
        yield hosts


@contextmanager
def watch_commands() -> Iterator[list[bytes]]:
    """Collect the command lines of all processes of this machine, over and over."""
    seen: list[bytes] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        seen.append((entry / "cmdline").read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()


def skip_without_sshd() -> None:
    """Skip where there is no SSH server to start."""
    for program in ("sshd", "ssh", "rsync", "flock"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            pytest.skip(f"{program} isn't installed: apt-get install openssh-server rsync")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)


def build_ssh_settings(hosts: Sequence[SshdHost], **changes: Any) -> SshBackendSettings:
    """Return a site of these hosts, named h1, h2, ..., all of type cloud_gpu."""
    values: dict[str, Any] = {
        "kind": "ssh",
        "ssh": {"user": USER, "private_key": str(hosts[0].key), "connect_s_max": 2},
        "hosts": {
            host.folder.name: {
                "address": host.address,
                "node_type": "cloud_gpu",
                "port": host.port,
            }
            for host in hosts
        },
        "env": {"TIDEGATE_RAY_TMP": "~/ray"},
        "set_aside_s": 0.2,
        "set_aside_s_max": 0.4,
    }
    return SshBackendSettings.model_validate({**values, **changes})


def remove_ssh_folder(state_dir: Path) -> None:
    """Remove what our ssh calls keep outside of a test's folder, for short socket paths."""
    shutil.rmtree(ssh_access.locate_socket_folder(state_dir), ignore_errors=True)


def make_key(file: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _find_port(address: str) -> int:
    with socket.socket() as server:
        server.bind((address, 0))
        port: int = server.getsockname()[1]
        return port


def _list_descendants(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *_list_descendants(int(entry.name))]
    return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
