"""A process node stands in for a machine: own home, own address, and it ends completely."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from ray.autoscaler._private.subprocess_output_util import ProcessRunnerError

from cluster.backend_settings import ProcessBackendSettings
from cluster.backends.process import ProcessBackend
from cluster.backends.process_node import ClusterFolder, NodeFolder
from cluster.backends.process_runner import ProcessCommandRunner
from cluster.config import PortSettings
from cluster.errors import StateError
from cluster.model import ClusterName, InstanceState, LaunchSpec, NodeId, SiteName
from cluster.processes import MARK_NODE, list_marked

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
# Marks are seen machine-wide, and tests run side by side: names of this process alone.
NODE = NodeId(f"n-1-{os.getpid()}")
SECOND = NodeId(f"n-2-{os.getpid()}")
THIRD = NodeId(f"n-3-{os.getpid()}")
Open = Callable[..., ProcessBackend]


@pytest.fixture
def open_backend(tmp_path: Path) -> Iterator[Open]:
    opened: list[ProcessBackend] = []

    def open_one(*, site: str = "cloud", env: dict[str, str] | None = None) -> ProcessBackend:
        backend = ProcessBackend(
            ProcessBackendSettings(kind="process", env=env or {}),
            site=SiteName(site),
            cluster=ClusterName("test"),
            state_dir=tmp_path,
            ports=PORTS,
            grace_s=0.5,
        )
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        backend.terminate([one.spec.node_id for one in backend.list_instances()])


def run(backend: ProcessBackend, command: str, **options: Any) -> str:
    runner = backend.open_command_runner(NODE)
    return runner.run(command, with_output=True, **options).strip()


def test_a_node_has_its_own_environment_and_takes_no_credentials_from_outside(
    open_backend: Open,
    new_spec: Callable[..., LaunchSpec],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_ADDRESS", "TIDEGATE_REPLICA"):
        monkeypatch.setenv(name, "from-outside")
    monkeypatch.setenv("TIDEGATE_MODELS_DIR", "/models")
    backend = open_backend(env={"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    backend.launch(new_spec())
    listed = run(backend, "env").splitlines()
    seen = dict(line.split("=", 1) for line in listed)
    assert {"AWS_SECRET_ACCESS_KEY", "RAY_ADDRESS", "TIDEGATE_REPLICA"}.isdisjoint(seen)
    assert seen["TIDEGATE_MODELS_DIR"] == "/models"
    assert seen["TIDEGATE_NODE"] == NODE
    assert seen["TIDEGATE_CLUSTER"] == "test"
    assert seen["HOME"] == str(tmp_path / "test" / "nodes" / NODE / "home")
    assert seen["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert seen["RAY_AUTH_MODE"] == "token"
    assert seen["TIDEGATE_PORT_GCS"] == "21900"


def test_the_clusters_token_is_made_once_and_only_its_owner_can_read_it(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    token_file = Path(run(backend, "echo $RAY_AUTH_TOKEN_PATH"))
    token = token_file.read_text(encoding="ascii")
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert len(token) == 64
    open_backend()
    assert token_file.read_text(encoding="ascii") == token


def test_paths_that_end_in_sockets_leave_room_for_them(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    """A socket's path holds 107 characters; Ray adds up to 70 to its temporary folder's."""
    backend = open_backend()
    backend.launch(new_spec("a-node-with-quite-a-long-name-1234567890"))
    instance = backend.list_instances()[0]
    runner = backend.open_command_runner(instance.spec.node_id)
    for variable in ("TIDEGATE_RAY_TMP", "TMPDIR"):
        folder = runner.run(f"cd ${variable} && echo ${variable}", with_output=True).strip()
        assert len(folder) <= 37
    socket = runner.run("echo $RAY_SERVE_HAPROXY_SOCKET_PATH", with_output=True).strip()
    assert len(socket) <= 107


def test_somebody_elses_link_is_refused(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "test", ClusterName("test"), PORTS)
    folder.ensure_exists()
    link = folder.short_path()
    assert folder.short_path() == link
    link.unlink()
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(StateError, match="must be a link of this user to"):
            folder.short_path()
    finally:
        link.unlink()


def test_nodes_of_all_sites_share_one_row_of_slots_and_free_them_when_they_go(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    cloud, onprem = open_backend(), open_backend(site="onprem")
    cloud.launch(new_spec(NODE))
    onprem.launch(new_spec(SECOND, site=SiteName("onprem")))
    assert [one.address for one in cloud.list_instances()] == ["127.0.1.1"]
    assert [one.address for one in onprem.list_instances()] == ["127.0.1.2"]
    cloud.terminate([NODE])
    onprem.launch(new_spec(THIRD, site=SiteName("onprem")))
    assert {one.address for one in onprem.list_instances()} == {"127.0.1.1", "127.0.1.2"}


def test_terminating_ends_every_process_that_carries_the_mark_however_it_was_started(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    """One process left its session, one ignores SIGTERM; both end, and only on this node."""
    backend = open_backend()
    for node_id in (NODE, SECOND):
        backend.launch(new_spec(node_id))
        runner = backend.open_command_runner(NodeId(node_id))
        runner.run("setsid sleep 300 >/dev/null 2>&1 &")
        runner.run("(trap '' TERM; exec sleep 300 >/dev/null 2>&1) &")
    assert len(list_marked(MARK_NODE, NODE)) == 2
    backend.terminate([NODE])
    assert list_marked(MARK_NODE, NODE) == []
    assert len(list_marked(MARK_NODE, SECOND)) == 2


def test_ray_stop_ends_this_nodes_processes_and_not_the_shell_that_asked(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    for node_id in (NODE, SECOND):
        backend.launch(new_spec(node_id))
        backend.open_command_runner(NodeId(node_id)).run("sleep 300 >/dev/null 2>&1 &")
    said = run(backend, "ray stop --force; echo and on")
    assert said.splitlines() == [f"Stopped 1 processes of node {NODE}.", "and on"]
    assert len(list_marked(MARK_NODE, SECOND)) == 1


def test_a_worker_whose_ray_died_is_stopped_and_a_head_is_not(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    backend = open_backend()
    backend.launch(new_spec(NODE))
    backend.launch(new_spec(SECOND, is_head=True))
    for node_id in (NODE, SECOND):
        (tmp_path / "test" / "nodes" / node_id / "started").touch()
    states = {one.spec.node_id: one.state for one in backend.list_instances()}
    assert states == {NODE: InstanceState.STOPPED, SECOND: InstanceState.RUNNING}


def test_files_are_copied_to_the_nodes_home_and_back(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    runner = backend.open_command_runner(NODE)
    runner.run_rsync_up(str(tmp_path / "source") + "/", "~/copied/")
    assert run(backend, "cat ~/copied/file") == "content"
    runner.run_rsync_down("~/copied/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "content"


def test_a_file_is_replaced_in_one_step_so_that_nobody_reads_half_of_it(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    """A reader that has the former file open goes on reading the former file."""
    backend = open_backend()
    backend.launch(new_spec())
    runner = backend.open_command_runner(NODE)
    (tmp_path / "file").write_text("former")
    runner.run_rsync_up(str(tmp_path / "file"), "~/folder/file")
    copied = Path(run(backend, "echo -n ~/folder/file"))
    with copied.open() as reader:
        (tmp_path / "file").write_text("new")
        runner.run_rsync_up(str(tmp_path / "file"), "~/folder/file")
        assert reader.read() == "former"
    assert run(backend, "cat ~/folder/file; ls -A ~/folder").split() == ["newfile"]


def test_the_launchers_literal_ray_folder_is_the_nodes_own(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    logs = "/tmp/ray/session_latest/logs"
    run(backend, f"mkdir -p {logs} && echo hello >{logs}/monitor.log")
    assert run(backend, f"cat {logs}/monitor*") == "hello"


def test_a_failed_command_says_which_and_how(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    with pytest.raises(click.ClickException, match="exit code 3:\n\n  exit 3"):
        run(backend, "exit 3", exit_on_fail=True)
    with pytest.raises(ProcessRunnerError, match="code=3"):
        run(backend, "exit 3")


def test_a_command_that_does_not_end_is_killed_with_all_it_started_and_named(
    open_backend: Open,
    new_spec: Callable[..., LaunchSpec],
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    open_backend().launch(new_spec())
    folder = ClusterFolder(tmp_path / "test", ClusterName("test"), PORTS)
    runner = ProcessCommandRunner(NodeFolder(folder, NODE), command_limit_s=0.3)
    with pytest.raises(ProcessRunnerError, match=r"within 0\.3 s.*command=sleep 30 & sleep 31"):
        runner.run("sleep 30 & sleep 31")
    # What was killed takes a moment to go on a busy machine, and 30 s if it wasn't.
    eventually(lambda: list_marked(MARK_NODE, NODE) == [])


def test_a_persons_command_may_last(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    """`ray exec` and `ray attach` say `exit_on_fail`; somebody watches them."""
    open_backend().launch(new_spec())
    folder = ClusterFolder(tmp_path / "test", ClusterName("test"), PORTS)
    runner = ProcessCommandRunner(NodeFolder(folder, NODE), command_limit_s=0.01)
    assert runner.run("sleep 0.1; echo on", exit_on_fail=True, with_output=True) == "on\n"


def test_a_launch_cut_off_half_way_is_undone_by_terminating_what_is_not_listed(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    backend = open_backend()
    folder = ClusterFolder(tmp_path / "test", ClusterName("test"), PORTS)
    NodeFolder(folder, NODE).path.mkdir()
    folder.claim_slot(NODE)
    assert backend.list_instances() == []
    backend.terminate([NODE])
    assert [*folder.nodes.iterdir(), *folder.slots.iterdir()] == []


def test_variables_reach_the_command_as_text_or_json(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    variables: dict[str, object] = {"TEXT": "a 'b' $c", "NUMBER": 0, "MAPPING": {"GPU": 1}}
    said = run(backend, 'echo "$TEXT|$NUMBER|$MAPPING"', environment_variables=variables)
    assert said == "a 'b' $c|0|{\"GPU\":1}"


def test_rays_logs_outlive_the_node(
    open_backend: Open, new_spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    backend = open_backend()
    backend.launch(new_spec())
    logs = tmp_path / "test" / "nodes" / NODE / "ray" / "session_2025" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("last words")
    backend.terminate([NODE])
    assert (tmp_path / "test" / "logs" / NODE / "raylet.out").read_text() == "last words"
    assert list((tmp_path / "test" / "nodes").iterdir()) == []


def test_the_last_node_takes_the_short_link_with_it(
    open_backend: Open, new_spec: Callable[..., LaunchSpec]
) -> None:
    backend = open_backend()
    backend.launch(new_spec(NODE))
    backend.launch(new_spec(SECOND))
    link = Path(run(backend, "dirname $RAY_TMPDIR"))
    backend.terminate([SECOND])
    assert link.is_symlink()
    backend.terminate([NODE])
    assert not link.is_symlink()
