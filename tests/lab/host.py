"""One lab host: a machine as far as Ray, SSH and we can tell, made of namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.namespaces import (
    enter,
    in_network_of,
    kill_entered,
    list_members,
    wait_for_descendant,
)

HOME = "/home/root"
"""Home of root in a host: the real one stays out of sight."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("mount", "uts", "ipc", "net", "pid")
_INIT = Path(__file__).with_name("host_init.sh")
_VENV = Path(sys.prefix)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What a host is to be. `address` has a prefix length; `env` reaches all that sshd starts."""

    name: str
    site: str
    address: str
    router: str
    env: Mapping[str, str] = field(default_factory=dict)


class LabHost:
    """A running host. It ends with the lab, with `kill`, or when it shuts itself down."""

    def __init__(self, plan: HostPlan, *, lab_pid: int, card: str, key: str, mark: str) -> None:
        self.plan = plan
        self.address = plan.address.partition("/")[0]
        self.env = {
            "PATH": f"/opt/tidegate/venv/bin:{PATH}",
            "HOME": HOME,
            "USER": "root",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            mark.partition("=")[0]: mark.partition("=")[2],
            **plan.env,
        }
        self._process = subprocess.Popen(
            [
                *enter(lab_pid, *_NAMESPACES),
                *("unshare", "--net", "--mount", "--uts", "--ipc", "--pid"),
                *("--fork", "--kill-child", "bash", str(_INIT)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_build_init_environment(plan, key=key, mark=mark),
        )
        try:
            # nsenter, unshare, then the first process of the host's own process namespace.
            self.pid = wait_for_descendant(self._process.pid, depth=2)
            _plug_in(lab_pid=lab_pid, host_pid=self.pid, card=card, bridge=f"br-{plan.site}")
            self._wait_until_up()
        except BaseException:
            self.kill()
            raise

    @property
    def name(self) -> str:
        """Return the host's name."""
        return self.plan.name

    @property
    def is_up(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def run(
        self, command: str, *, timeout_s: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Return a finished command, run at the console: no network and no SSH is needed."""
        process = self.start(command, env=env)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            kill_entered(process)
            raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def check(
        self, command: str, *, timeout_s: float = 60, env: Mapping[str, str] | None = None
    ) -> str:
        """Return what a command printed; it must succeed."""
        done = self.run(command, timeout_s=timeout_s, env=env)
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"{self.name}: {command}: {done.returncode}\n{said}"
        return done.stdout

    def start(
        self,
        command: str,
        *,
        env: Mapping[str, str] | None = None,
        output: int | None = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Return a command started at the console; output None = our own."""
        return subprocess.Popen(
            [*self.console(), "/bin/bash", "-c", command],
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )

    def console(self) -> list[str]:
        """Return the words that run a command in the host."""
        return [*enter(self.pid, *_NAMESPACES)[:-1], f"--wdns={HOME}", "--"]

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Put a file on the host's disk; `~/` is its home."""
        file = self.locate(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=mode)
        file.chmod(mode)
        file.write_text(text, encoding="utf-8")

    def locate(self, path: str) -> Path:
        """Return where a file of the host is for us, while it runs."""
        absolute = path.replace("~", HOME, 1) if path.startswith("~/") else path
        return Path(f"/proc/{self.pid}/root{absolute}")

    def freeze(self) -> None:
        """Stop every process of the host, as a hung machine does."""
        for _ in range(3):
            for pid in list_members(self.pid):
                _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        for pid in list_members(self.pid):
            _signal(pid, signal.SIGCONT)

    def kill(self) -> None:
        """Pull the plug. Idempotent; every process, mount and network card of the host is gone."""
        pid = getattr(self, "pid", None)
        if pid is not None and self.is_up:
            _signal(pid, signal.SIGKILL)
        else:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait(timeout=20)

    def shut_down(self) -> None:
        """Turn it off in order, as `shutdown -h now` on it does. Returns at once."""
        _signal(self.pid, signal.SIGTERM)

    def in_network(self) -> AbstractContextManager[None]:
        """Return a context in which this thread's sockets are the host's."""
        return in_network_of(self.pid)

    def _wait_until_up(self) -> None:
        """Say that the network card is there, then wait for the SSH server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("card\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "ready\n":
            errors = self._process.stderr.read() if self._process.stderr else ""
            raise RuntimeError(f"lab host {self.name} must come up; it said: {errors}")
        deadline_s = time.monotonic() + 10
        log = self.locate("/var/log/lab_sshd.log")
        while "listening" not in log.read_text():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"sshd of {self.name} must listen; it said: {log.read_text()}")
            time.sleep(0.01)


def _build_init_environment(plan: HostPlan, *, key: str, mark: str) -> dict[str, str]:
    name, _, value = mark.partition("=")
    pairs = {name: value, **plan.env}
    set_env = " ".join(f'"{key}={text}"' for key, text in pairs.items())
    return {
        name: value,
        "PATH": PATH,
        "LAB_NAME": plan.name,
        "LAB_ADDRESS": plan.address,
        "LAB_ROUTER": plan.router,
        "LAB_HOME": HOME,
        "LAB_KEY": key,
        "LAB_VENV": str(_VENV),
        "LAB_SET_ENV": f"SetEnv {set_env}",
    }


def _plug_in(*, lab_pid: int, host_pid: int, card: str, bridge: str) -> None:
    """Connect a new network card of the host, named eth0, to its site's bridge."""
    steps = (
        f"link add {card} type veth peer name eth0 netns {host_pid}\n"
        f"link set {card} master {bridge} up\n"
    )
    subprocess.run(
        [*enter(lab_pid, "net"), _find("ip"), "-batch", "-"],
        input=steps,
        text=True,
        check=True,
        capture_output=True,
    )


def _find(program: str) -> str:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or program


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
