"""The agent over real processes, a metadata service on loopback and a head that is a socket."""

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.gcs_ping import answers
from cluster.imds import MetadataService
from cluster.node_agent import AgentSettings, NodeAgent, has_raylet
from cluster.processes import MARK_NODE, end_marked, list_marked
from tests.cluster.fake_imds import FakeImds, run_fake_imds

_ROOT = Path(__file__).parents[2]
_SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@dataclass
class Head:
    """A server that greets as a GCS does; `is_mute` accepts connections and says nothing."""

    listener: socket.socket
    is_mute: bool = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            with link:
                if not self.is_mute:
                    link.sendall(_SETTINGS_FRAME)
                    link.recv(64)
                else:
                    time.sleep(0.5)


@pytest.fixture
def head() -> Iterator[Head]:
    listener = socket.create_server(("127.0.0.1", 0))
    served = Head(listener)
    thread = threading.Thread(target=served.serve, daemon=True)
    thread.start()
    yield served
    # Closing alone doesn't wake a thread that waits in accept().
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@dataclass
class Node:
    """A node of marked processes: its raylet is a `sleep` of that name."""

    name: str
    folder: Path
    now_s: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {MARK_NODE: self.name, "PYTHONPATH": str(_ROOT)}

    def start(self, program: str) -> subprocess.Popen[bytes]:
        copy = self.folder / program
        if not copy.exists():
            shutil.copy(shutil.which("sleep") or "sleep", copy)
        return subprocess.Popen([copy, "600"], env=self.environment)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(f"cloud-{secrets.token_hex(4)}", tmp_path)
    yield made
    end_marked(MARK_NODE, made.name, grace_s=1)


@pytest.fixture
def settings(node: Node, head: Head, tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        node=node.name,
        address="127.0.0.1",
        gcs_address=head.address,
        lost_head_s_max=300.0,
        shutdown_command=("touch", str(tmp_path / "off")),
    )


def agent_of(settings: AgentSettings, node: Node, imds: FakeImds | None = None) -> NodeAgent:
    metadata = None
    if imds is not None:
        metadata = MetadataService(imds.endpoint, now_s=time.time, timeout_s=0.5)
    return NodeAgent(settings, metadata, clock=lambda: node.now_s)


def test_a_node_without_its_head_ends_what_runs_on_it_and_the_machine(
    settings: AgentSettings, node: Node, head: Head, tmp_path: Path
) -> None:
    raylet, replica = node.start("raylet"), node.start("replica")
    agent = agent_of(settings, node)
    head.is_mute = True
    node.now_s = 299.0
    assert agent.step() is False
    assert replica.poll() is None
    node.now_s = 301.0
    assert agent.step() is True
    assert (raylet.wait(5), replica.wait(5)) == (-15, -15)
    assert (tmp_path / "off").exists()


def test_a_head_that_comes_back_in_time_starts_the_count_anew(
    settings: AgentSettings, node: Node, head: Head
) -> None:
    node.start("raylet")
    agent = agent_of(settings, node)
    for now_s, is_mute in ((200.0, True), (290.0, False), (500.0, True)):
        node.now_s, head.is_mute = now_s, is_mute
        assert agent.step() is False


def test_a_node_without_a_raylet_ends_although_the_head_answers(
    settings: AgentSettings, node: Node, tmp_path: Path
) -> None:
    agent = agent_of(settings, node)
    node.now_s = 301.0
    assert agent.step() is True
    assert (tmp_path / "off").exists()


def test_an_owned_node_outlives_its_head(
    settings: AgentSettings, node: Node, tmp_path: Path
) -> None:
    replica = node.start("replica")
    agent = agent_of(replace(settings, lost_head_s_max=None, gcs_address="127.0.0.1:9"), node)
    node.now_s = 1e6
    assert agent.step() is False
    assert replica.poll() is None
    assert not (tmp_path / "off").exists()


def test_a_machine_that_does_not_go_is_asked_again(
    settings: AgentSettings, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_of(replace(settings, shutdown_command=("false",)), node)
    node.now_s = 301.0
    assert [agent.step(), agent.step()] == [False, False]
    assert caplog.text.count("false ended with 1, to be tried again") == 2


def test_silent_metadata_is_said_once_and_harms_nothing(
    settings: AgentSettings, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.start("raylet")
    with run_fake_imds() as imds:
        imds.status = 500
        agent = agent_of(settings, node, imds)
        assert [agent.step() for _ in range(3)] == [False] * 3
        assert caplog.text.count("no notices can be read for now") == 1
        imds.status = 200
        agent.step()
        assert caplog.text.count("notices can be read again") == 1


def test_a_notice_drains_once_ray_accepts_it_and_is_repeated_until_then(
    settings: AgentSettings, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's answers are stood in for: refused, accepted; a notice said again asks for no third."""
    node.start("raylet")
    answers_left = [False, True]
    asked: list[list[str]] = []

    def run(command: list[str], *, limit_s: float) -> bool:
        asked.append(command[3:])
        return answers_left.pop(0)

    monkeypatch.setattr("cluster.node_agent._run", run)
    with run_fake_imds() as imds:
        agent = agent_of(settings, node, imds)
        imds.announce(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 900)))
        assert [agent.step() for _ in range(4)] == [False] * 4
    assert len(asked) == 2
    assert asked[1][-4:] == ["--kind", "interruption", "--left-s", "120.0"]


def test_a_raylet_counts_by_its_name_and_its_mark(node: Node) -> None:
    node.start("replica")
    assert not has_raylet(node.name)
    node.start("raylet")
    time.sleep(0.1)
    assert has_raylet(node.name)
    assert not has_raylet("another-node")


def test_a_port_that_only_accepts_connections_is_no_head(head: Head) -> None:
    assert answers(head.address, timeout_s=1)
    head.is_mute = True
    assert not answers(head.address, timeout_s=0.3)
    assert not answers("127.0.0.1:9", timeout_s=0.3)


def test_an_agent_that_starts_ends_the_one_before_it(node: Node, head: Head) -> None:
    port = head.address.rpartition(":")[2]
    environment = node.environment | {
        "TIDEGATE_NODE_IP": "127.0.0.1",
        "RAY_HEAD_IP": "127.0.0.1",
        "TIDEGATE_PORT_GCS": port,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "cluster.node_agent"]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    assert "waiting: no notice" in first.stderr.readline()
    second = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert first.wait(20) == -15
    assert list_marked(MARK_NODE, node.name) == [second.pid]
    end_marked(MARK_NODE, node.name, grace_s=1)
    second.wait(5)
    first.stderr.close()


def test_an_environment_that_is_not_a_nodes_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="TIDEGATE_NODE_IP, RAY_HEAD_IP, TIDEGATE_PORT_GCS"):
        AgentSettings.from_environment({MARK_NODE: "n"})
