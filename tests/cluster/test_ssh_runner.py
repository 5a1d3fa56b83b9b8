"""Commands and files reach a node over a real SSH server, in the node's environment."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from ray.autoscaler._private.subprocess_output_util import ProcessRunnerError

from cluster.backend_settings import SshAccess
from cluster.backends.ssh_access import SshTarget
from cluster.backends.ssh_runner import SshCommandRunner
from tests.cluster.sshd_hosts import (
    USER,
    SshdHost,
    make_key,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
    watch_commands,
)

pytestmark = pytest.mark.daemon

SECRET = "canary-5f1d0c"


@dataclass
class Rig:
    """Two machines: a node and a bastion. Opens runners of commands on the first."""

    node: SshdHost
    bastion: SshdHost
    state_dir: Path

    def target(self, **access: Any) -> SshTarget:
        values = {
            "user": USER,
            "private_key": str(self.node.key),
            "port": self.node.port,
            "connect_s_max": 2,
            **access,
        }
        return SshTarget(SshAccess(**values), self.node.address, self.state_dir)

    def open(self, *, command_limit_s: float = 20, **access: Any) -> SshCommandRunner:
        target = self.target(**access)
        environment = {
            "TIDEGATE_NODE_IP": target.address,
            "TOKEN_FILE": "~/t",
            "SITE_SECRET": SECRET,
        }
        return SshCommandRunner(
            locate=lambda: target,
            environment_at=lambda _address: environment,
            command_limit_s=command_limit_s,
        )


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SshdHost]]:
    skip_without_sshd()
    with open_hosts(tmp_path_factory.mktemp("runner"), 2) as opened:
        yield opened


@pytest.fixture
def rig(hosts: list[SshdHost], tmp_path: Path) -> Iterator[Rig]:
    state_dir = tmp_path / "state"
    yield Rig(node=hosts[0], bastion=hosts[1], state_dir=state_dir)
    remove_ssh_folder(state_dir)


def test_a_command_sees_the_nodes_environment_in_the_nodes_home(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    said = rig.open().run('pwd; echo "$TIDEGATE_NODE_IP $TOKEN_FILE"', with_output=True)
    assert capfd.readouterr().err == ""
    assert said.split() == [str(rig.node.home), rig.node.address, f"{rig.node.home}/t"]


def test_the_launchers_variables_reach_the_command_as_json_unless_they_are_text(rig: Rig) -> None:
    variables = {"RAY_OVERRIDE_RESOURCES": {"GPU": 1}, "NAME": "it's"}
    said = rig.open().run(
        'echo "$RAY_OVERRIDE_RESOURCES|$NAME"', with_output=True, environment_variables=variables
    )
    assert said.strip() == '{"GPU":1}|it\'s'


def test_a_failing_command_of_the_launcher_raises_rays_own_error(rig: Rig) -> None:
    with pytest.raises(ProcessRunnerError, match="code=3"):
        rig.open().run("exit 3")


def test_a_failing_command_of_a_person_names_the_node_and_the_code(rig: Rig) -> None:
    with pytest.raises(click.ClickException, match=r"@127\.0\.3\.1 with exit code 3"):
        rig.open().run("exit 3", exit_on_fail=True)


def test_a_command_that_takes_too_long_is_ended_on_the_node_too(rig: Rig) -> None:
    runner = rig.open(command_limit_s=1.0)
    runner.run("true")
    with pytest.raises(ProcessRunnerError, match="within 1 s"):
        runner.run("echo $$ >~/pid; sleep 600")
    pid = int((rig.node.home / "pid").read_text())
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, "the command still runs on the node"
        time.sleep(0.05)


def test_a_process_left_in_the_background_neither_holds_the_command_nor_ends_with_it(
    rig: Rig,
) -> None:
    """`ray start` leaves processes that inherit the command's output and its session."""
    rig.open().run("sleep 30.5 & echo $! >~/left")
    pid = int((rig.node.home / "left").read_text())
    time.sleep(0.3)
    assert b"30.5" in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill(pid, 9)


def test_files_and_folders_go_up_and_come_down_with_their_modes(rig: Rig, tmp_path: Path) -> None:
    source = tmp_path / "wheel"
    source.mkdir()
    (source / "a b.whl").write_text("one")
    (source / "skip.log").write_text("two")
    token = tmp_path / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    runner = rig.open()
    runner.run("mkdir -p ~/.tidegate/wheel")
    runner.run_rsync_up(f"{source}/", "~/.tidegate/wheel/", {"rsync_exclude": ["*.log"]})
    runner.run_rsync_up(str(token), "~/.tidegate/auth_token")
    arrived = rig.node.home / ".tidegate"
    assert [one.name for one in (arrived / "wheel").iterdir()] == ["a b.whl"]
    assert (arrived / "auth_token").stat().st_mode & 0o777 == 0o600
    runner.run_rsync_down("~/.tidegate/auth_token", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == SECRET


def test_secrets_of_the_environment_stand_in_no_process_list_and_no_log(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    with watch_commands() as seen:
        rig.open().run("env -0 >~/seen; sleep 0.3")
    assert f"SITE_SECRET={SECRET}" in (rig.node.home / "seen").read_text()
    assert any(b"sleep 0.3" in line for line in seen), "the watch saw nothing"
    assert not [line for line in seen if SECRET.encode() in line]
    assert (rig.node.home / ".tidegate" / "env.sh").stat().st_mode & 0o777 == 0o600
    assert SECRET not in "".join(capfd.readouterr())
    assert SECRET not in rig.node.log.read_text()


def test_a_node_behind_a_jump_host_is_reached_through_it(rig: Rig) -> None:
    before = rig.bastion.log.read_text()
    said = rig.open(jump=f"{USER}@{rig.bastion.address}:{rig.bastion.port}").run(
        "echo here", with_output=True
    )
    assert said.strip() == "here"
    assert "Accepted publickey" in rig.bastion.log.read_text().removeprefix(before)


def test_a_host_that_shows_another_key_than_before_is_refused(rig: Rig) -> None:
    rig.open().run("true")
    known = rig.state_dir / "known_hosts"
    other = rig.state_dir / "other"
    make_key(other)
    kind, key, *_ = other.with_suffix(".pub").read_text().split()
    known.write_text(f"[{rig.node.address}]:{rig.node.port} {kind} {key}\n")
    _end_shared_connection(rig.target())
    with pytest.raises(click.ClickException, match="ssh-keygen -R"):
        rig.open().run("true")


def test_with_a_known_hosts_file_an_unknown_host_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "known").write_text("")
    with pytest.raises(click.ClickException, match=r"must show the host key in .*/known;"):
        rig.open(known_hosts=str(tmp_path / "known")).run("true")
    assert (tmp_path / "known").read_text() == ""


def test_a_refused_key_names_the_key_and_the_fix(rig: Rig, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    with pytest.raises(click.ClickException, match=r"must accept the key .*stranger.*authorized"):
        rig.open(private_key=str(tmp_path / "stranger")).run("true")


def test_a_port_without_a_server_names_the_address_and_what_to_try(rig: Rig) -> None:
    with pytest.raises(click.ClickException, match=r"\(port 1\) must be reachable .* Try: ssh"):
        rig.open(port=1).run("true")


def test_an_interrupted_person_leaves_no_ssh_and_no_command_behind(rig: Rig) -> None:
    rig.open().run("true")
    person = _start_person(rig, 'run("sleep 600.25", exit_on_fail=True)')
    _wait(lambda: _count_commands(b"sleep\x00600.25") == 1)
    person.send_signal(2)
    person.wait(30)
    _wait(lambda: _count_commands(b"600.25") == 0)


def test_a_port_of_the_node_is_forwarded_until_the_person_interrupts(rig: Rig) -> None:
    with socket.socket() as free, socket.socket() as server:
        for one in (free, server):
            one.bind(("127.0.0.1", 0))
        server.listen()
        local, remote = free.getsockname()[1], server.getsockname()[1]
        free.close()
        call = f"run(port_forward=[({local}, {remote})])"
        person = _start_person(rig, call)
        _wait(lambda: _connects(local))
        person.send_signal(2)
        person.wait(30)
        _wait(lambda: not _connects(local))


def test_the_shell_command_for_people_reaches_the_node(rig: Rig) -> None:
    command = rig.open().remote_shell_command_str()
    said = subprocess.run(
        f"{command} 'echo $HOME'", shell=True, check=True, capture_output=True, text=True
    ).stdout
    assert said.strip() == str(rig.node.home)


_PERSON = """
from pathlib import PosixPath
from cluster.backend_settings import SshAccess
from cluster.backends.ssh_access import SshTarget
from cluster.backends.ssh_runner import SshCommandRunner
target = {target!r}
runner = SshCommandRunner(locate=lambda: target, environment_at=lambda _: {{}})
runner.{call}
"""


def _start_person(rig: Rig, call: str) -> subprocess.Popen[bytes]:
    """Return a process that does something with a runner of the node, as `ray exec` does."""
    return subprocess.Popen(
        [sys.executable, "-c", _PERSON.format(target=rig.target(), call=call)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _end_shared_connection(target: SshTarget) -> None:
    subprocess.run(target.build_ssh("-O", "exit"), check=False, capture_output=True)


def _wait(is_so: Any) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s, "it never became so"
        time.sleep(0.05)


def _count_commands(part: bytes) -> int:
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += part in (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found
