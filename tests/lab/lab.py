"""The lab: sites, a router between them and hosts, all in namespaces of their own.

    test process ── a pipe ──▶ lab (network, mount and process namespace)
                                ├── br-onprem ── eth0 of each owned host      10.77.0.0/18
                                ├── br-aws    ── eth0 of each instance        10.77.64.0/18
                                └── 10.77.255.1: EC2's API

The lab has no network card to the outside and no route there, so nothing in it can send a packet
out. Its first process ends when the pipe closes, so the lab never outlives its owner, and with that
process end all others, and with them mounts and networks. Hosts' disks are in its memory.
"""

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.host import PATH, HostPlan, LabHost
from tests.lab.namespaces import (
    MARK_LAB,
    end_leftovers,
    enter,
    in_network_of,
    wait_for_descendant,
    write_owner,
)

SERVICES_ADDRESS = "10.77.255.1"
_INIT = Path(__file__).with_name("lab_init.sh")


@dataclass(frozen=True, slots=True)
class LabSite:
    """A network of hosts; its first address is the router's."""

    name: str
    network: IPv4Network

    @property
    def router(self) -> str:
        """Return the address of the way to the other sites."""
        return str(self.network[1])


ONPREM = LabSite("onprem", IPv4Network("10.77.0.0/18"))
AWS = LabSite("aws", IPv4Network("10.77.64.0/18"))


class Lab:
    """A running lab; leave the context to end it."""

    def __init__(self, sites: tuple[LabSite, ...] = (ONPREM, AWS)) -> None:
        self.sites = {site.name: site for site in sites}
        self.hosts: dict[str, LabHost] = {}
        self.mark = f"{MARK_LAB}={write_owner()}"
        self.private_key, self.public_key = _make_key()
        self._cards = 0

    def __enter__(self) -> Self:
        end_leftovers()
        name, _, value = self.mark.partition("=")
        routers = [
            f"{site.name}={site.router}/{site.network.prefixlen}" for site in self.sites.values()
        ]
        self._process = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--uts", "--ipc", "--pid"),
                *("--fork", "--kill-child", "--mount-proc", "bash", str(_INIT), *routers),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value, "PATH": PATH, "LAB_SERVICES_ADDRESS": SERVICES_ADDRESS},
        )
        self.pid = wait_for_descendant(self._process.pid, depth=1)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            assert self._process.stderr is not None
            raise RuntimeError(f"the lab must start; it said: {self._process.stderr.read()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in list(self.hosts.values()):
            host.kill()
        self.hosts.clear()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait(timeout=20)

    def add_host(
        self, name: str, *, site: str, address: str, env: Mapping[str, str] | None = None
    ) -> LabHost:
        """Return a new host, up. One that was here by this name before gets its disk back."""
        there = self.sites[site]
        self._cards += 1
        plan = HostPlan(
            name=name,
            site=site,
            address=f"{address}/{there.network.prefixlen}",
            router=there.router,
            env=env or {},
        )
        host = LabHost(
            plan,
            lab_pid=self.pid,
            card=f"card{self._cards}",
            key=self.public_key,
            mark=self.mark,
        )
        self.hosts[name] = host
        return host

    def remove_host(self, name: str, *, keeps_disk: bool = False) -> None:
        """End a host. Idempotent."""
        host = self.hosts.pop(name, None)
        if host is not None:
            host.kill()
        disk = self.folder / "hosts" / name
        if not keeps_disk and disk.exists():
            shutil.rmtree(disk)

    def in_network(self) -> AbstractContextManager[None]:
        """Return a context in which this thread is on the router, from where all hosts are seen."""
        return in_network_of(self.pid)

    def start(
        self, command: list[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Return a program started on the router; it ends with the lab."""
        name, _, value = self.mark.partition("=")
        with log.open("w") if log else tempfile.TemporaryFile("w") as output:
            return subprocess.Popen(
                [*enter(self.pid, "net", "mount", "pid"), *command],
                env={name: value, "PATH": f"{Path(sys.prefix) / 'bin'}:{PATH}", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )

    def run(self, command: list[str], *, text: str | None = None) -> str:
        """Return what a program on the router printed; it must succeed."""
        done = subprocess.run(
            [*enter(self.pid, "net"), *command],
            input=text,
            env={"PATH": PATH},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @property
    def folder(self) -> Path:
        """Return the lab's folder, in its memory."""
        return Path(f"/proc/{self.pid}/root/mnt")


def _make_key() -> tuple[str, str]:
    """Return a new SSH key: private, public."""
    with tempfile.TemporaryDirectory(prefix="tidegate-lab-") as folder:
        file = Path(folder) / "key"
        comment = f"lab-{secrets.token_hex(4)}"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(file)],
            check=True,
        )
        return file.read_text(), file.with_suffix(".pub").read_text().strip()
