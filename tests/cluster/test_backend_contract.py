"""Every backend keeps the promises of cluster/backends/contract.py."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.backend_settings import FakeBackendSettings, ProcessBackendSettings
from cluster.backends.contract import NodeBackend
from cluster.backends.fake import FakeBackend
from cluster.backends.process import ProcessBackend
from cluster.backends.ssh import SshBackend
from cluster.config import PortSettings
from cluster.model import (
    TAG_CORDON,
    ClusterName,
    Cordon,
    InstanceState,
    LaunchSpec,
    NodeId,
    SiteName,
)
from tests.cluster.aws_rig import NODE_CONFIG, Ec2Rig
from tests.cluster.sshd_hosts import (
    SshdHost,
    build_ssh_settings,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
)

# Marks are seen machine-wide, and tests run side by side: names of this process alone.
FIRST, SECOND, THIRD = (NodeId(f"n-{number}-{os.getpid()}") for number in (1, 2, 3))

PORTS = PortSettings(
    gcs=21900,
    dashboard=21901,
    serve=21902,
    autoscaler_metrics=21903,
    dashboard_metrics=21904,
    proxy_metrics=21905,
    proxy_stats=21906,
    proxy_fallback=21907,
    nodes=21910,
)


@dataclass
class Rig:
    """Opens backends of one kind for one site, and ends what they started."""

    kind: str
    state_dir: Path
    opened: list[NodeBackend] = field(default_factory=list)
    hosts: Sequence[SshdHost] = ()
    ec2: Ec2Rig | None = None

    def open(self, *, boot_s: float = 0.0, site: str = "cloud") -> NodeBackend:
        backend: NodeBackend
        if self.kind == "fake":
            backend = FakeBackend(FakeBackendSettings(kind="fake", boot_s=boot_s))
        elif self.ec2 is not None:
            if boot_s:
                self.ec2.faults.add("hide_new", seconds=boot_s)
            backend = self.ec2.open(site=site)
        elif self.kind == "ssh":
            if boot_s:
                pytest.skip("a machine that is there already doesn't boot")
            backend = SshBackend(
                build_ssh_settings(self.hosts),
                site=SiteName(site),
                cluster=ClusterName("test"),
                state_dir=self.state_dir,
                ports=PORTS,
            )
        else:
            backend = ProcessBackend(
                ProcessBackendSettings(kind="process", boot_s=boot_s),
                site=SiteName(site),
                cluster=ClusterName("test"),
                state_dir=self.state_dir,
                ports=PORTS,
            )
        self.opened.append(backend)
        return backend

    def close(self) -> None:
        for backend in self.opened:
            backend.terminate([one.spec.node_id for one in backend.list_instances()])


@pytest.fixture(scope="module")
def ssh_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SshdHost]]:
    skip_without_sshd()
    with open_hosts(tmp_path_factory.mktemp("contract"), 3) as opened:
        yield opened


@pytest.fixture(
    params=[
        "fake",
        "process",
        *(pytest.param(kind, marks=pytest.mark.daemon) for kind in ("ssh", "aws")),
    ]
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    opened = Rig(kind=request.param, state_dir=tmp_path)
    if opened.kind == "ssh":
        opened.hosts = request.getfixturevalue("ssh_hosts")
    if opened.kind == "aws":
        opened.ec2 = request.getfixturevalue("ec2")
    yield opened
    opened.close()
    remove_ssh_folder(tmp_path / "test")


@pytest.fixture
def new_spec(rig: Rig, new_spec: Callable[..., LaunchSpec]) -> Callable[..., LaunchSpec]:
    """Return a builder of specs; aws reads `node_config` strictly, the others not at all."""
    if rig.kind != "aws":
        return new_spec

    def build(node_id: str = FIRST, **changes: Any) -> LaunchSpec:
        return new_spec(node_id, **{**changes, "node_config": NODE_CONFIG})

    return build


def list_ids(backend: NodeBackend) -> set[str]:
    return {one.spec.node_id for one in backend.list_instances()}


def test_nothing_is_listed_before_a_launch(rig: Rig) -> None:
    assert rig.open().list_instances() == []


def test_a_launched_node_is_listed_with_the_spec_it_was_launched_with(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    spec = new_spec(node_config={"instance": "x", "zones": ["a", "b"]}, is_head=True)
    backend.launch(spec)
    (instance,) = backend.list_instances()
    assert instance.spec == spec
    assert instance.state is InstanceState.RUNNING
    assert instance.address


def test_launching_the_same_spec_twice_gives_one_node(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    backend.launch(new_spec())
    first = backend.list_instances()
    backend.launch(new_spec())
    assert backend.list_instances() == first


def test_a_node_boots_before_it_runs_and_the_launch_does_not_wait_for_it(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open(boot_s=3600)
    backend.launch(new_spec())
    assert [one.state for one in backend.list_instances()] == [InstanceState.BOOTING]


def test_nodes_have_addresses_of_their_own(rig: Rig, new_spec: Callable[..., LaunchSpec]) -> None:
    backend = rig.open()
    for node_id in (FIRST, SECOND, THIRD):
        backend.launch(new_spec(node_id))
    assert len({one.address for one in backend.list_instances()}) == 3


def test_a_terminated_node_is_gone_and_the_others_stay(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    for node_id in (FIRST, SECOND, THIRD):
        backend.launch(new_spec(node_id))
    backend.terminate([FIRST, THIRD])
    assert list_ids(backend) == {SECOND}


def test_terminating_what_is_gone_or_never_was_is_success(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    backend.launch(new_spec())
    for _ in range(2):
        backend.terminate([FIRST, NodeId("never-was")])
    assert list_ids(backend) == set()


def test_an_id_can_be_launched_again_after_its_node_is_gone(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    backend.launch(new_spec())
    backend.terminate([FIRST])
    backend.launch(new_spec())
    assert list_ids(backend) == {FIRST}


def test_commands_run_on_the_node(rig: Rig, new_spec: Callable[..., LaunchSpec]) -> None:
    if rig.kind == "aws":
        pytest.skip("moto's instances are no machines; the lab puts some behind them")
    backend = rig.open()
    backend.launch(new_spec())
    runner: Any = backend.open_command_runner(FIRST)
    runner.run("true", environment_variables={"A": {"GPU": 1}})
    runner.run_init(as_head=False, file_mounts={}, sync_run_yet=False)
    assert isinstance(runner.remote_shell_command_str(), str)


def test_tags_set_later_are_listed_with_the_node_and_an_empty_one_is_removed(
    rig: Rig, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = rig.open()
    spec = new_spec(tags={"ray-node-status": "setting-up", "kept": "1"})
    backend.launch(spec)
    backend.set_tags(spec.node_id, {"ray-node-status": "up-to-date", TAG_CORDON: "draining"})
    (instance,) = rig.open().list_instances() if rig.kind != "fake" else backend.list_instances()
    assert instance.spec.tags["ray-node-status"] == "up-to-date"
    assert instance.spec.tags["kept"] == "1"
    assert instance.cordon is Cordon.DRAINING
    backend.set_tags(spec.node_id, {TAG_CORDON: ""})
    (instance,) = backend.list_instances()
    assert instance.cordon is None


def test_tags_of_an_unknown_node_are_ignored(rig: Rig) -> None:
    backend = rig.open()
    backend.set_tags(NodeId("never-was"), {"a": "b"})
    assert backend.list_instances() == []
