"""The head's keeper restarts what crashed and leaves alone what was stopped.

A stand-in head: a script that starts a listening process named raylet with the node's mark.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.head_keeper import Head
from cluster.processes import MARK_NODE, end_marked, list_marked

NODE = f"keeper-{os.getpid()}"

# One process stands for the control store and the raylet: it has the name and holds the port.
STAND_IN = """
import socket, sys, time
open("/proc/self/comm", "w").write("raylet")
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def script(tmp_path: Path, port: int) -> str:
    program = tmp_path / "head.py"
    program.write_text(STAND_IN)
    count, note = tmp_path / "starts", tmp_path / "ray_current_cluster"
    start = f"setsid {shlex.quote(sys.executable)} {program} {port} >/dev/null 2>&1 &"
    return f"echo x >> {count}; {start}\ntouch {note}"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {
        **os.environ,
        MARK_NODE: NODE,
        "TIDEGATE_NODE_IP": "127.0.0.1",
        "TIDEGATE_RAY_TMP": str(tmp_path),
    }
    end_marked(MARK_NODE, NODE, grace_s=1.0)


def keep(script: str, port: int, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "cluster.head_keeper", "--gcs-port", str(port), script]
    return subprocess.run(command, env=environment, check=False, timeout=20).returncode


def find_head() -> list[int]:
    return [pid for pid in list_marked(MARK_NODE, NODE) if read_name(pid).startswith("raylet")]


def read_name(pid: int) -> str:
    """The name of a process, nothing if it has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_head_that_was_killed_is_started_again(
    script: str,
    port: int,
    tmp_path: Path,
    environment: dict[str, str],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    assert keep(script, port, environment) == 0
    eventually(lambda: len(find_head()) == 1)
    (first,) = find_head()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: bool(set(find_head()) - {first}))
    assert (tmp_path / "starts").read_text().split() == ["x", "x"]


def test_a_head_that_was_stopped_on_purpose_stays_stopped(
    script: str,
    port: int,
    tmp_path: Path,
    environment: dict[str, str],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    assert keep(script, port, environment) == 0
    eventually(lambda: len(find_head()) == 1)
    (tmp_path / "ray_current_cluster").unlink()
    os.kill(find_head()[0], signal.SIGKILL)
    eventually(lambda: list_marked(MARK_NODE, NODE) == [])
    assert (tmp_path / "starts").read_text().split() == ["x"]


def test_a_head_is_left_alone_while_ray_stop_still_works_on_it(
    script: str,
    port: int,
    tmp_path: Path,
    environment: dict[str, str],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    """`ray stop` ends the head first and removes Ray's note last: six seconds here, five checks."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text('#!/bin/sh\nkill -9 "$2"\nsleep 6\nrm "$3"\n')
    ray.chmod(0o755)
    assert keep(script, port, environment) == 0
    eventually(lambda: len(find_head()) == 1)
    note = tmp_path / "ray_current_cluster"
    stop = [ray, "stop", str(find_head()[0]), str(note)]
    assert subprocess.run(stop, env=environment, check=False, timeout=20).returncode == 0
    eventually(lambda: list_marked(MARK_NODE, NODE) == [])
    assert (tmp_path / "starts").read_text().split() == ["x"]


def test_a_newer_keeper_takes_over_from_the_older_one(
    script: str,
    port: int,
    tmp_path: Path,
    environment: dict[str, str],
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    """Two starts, then one crash: one restart, so three starts in all."""
    for _ in range(2):
        assert keep(f"{script} || true", port, environment) == 0
    log = tmp_path / "tidegate_head_keeper.log"
    eventually(lambda: "another keeper watches" in log.read_text())
    eventually(lambda: len(find_head()) == 1)
    os.kill(find_head()[0], signal.SIGKILL)
    eventually(lambda: "runs again" in log.read_text())
    time.sleep(2.0)
    assert (tmp_path / "starts").read_text().split() == ["x", "x", "x"]


def test_a_script_that_fails_at_first_gives_its_exit_code_and_leaves_nobody_watching(
    port: int, environment: dict[str, str]
) -> None:
    assert keep("exit 7", port, environment) == 7
    assert list_marked(MARK_NODE, NODE) == []


def test_a_head_without_its_raylet_counts_as_dead(port: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", port)):
        head = Head("127.0.0.1", port, tmp_path, node_mark="nobody-has-this")
        assert not head.is_alive()
