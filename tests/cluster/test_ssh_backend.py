"""Hosts are claimed once, remembered while silent, and released in order: over real SSH servers."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.backend_settings import SshAccess, SshHost
from cluster.backends.ssh import SshBackend
from cluster.backends.ssh_access import SshTarget, resolve_access
from cluster.backends.ssh_memory import HostMemory, KnownHost, Pauses
from cluster.config import PortSettings
from cluster.errors import BackendError, NoCapacityError, NodeNotFoundError
from cluster.model import (
    ClusterName,
    Cordon,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    SiteName,
)
from cluster.processes import MARK_NODE, end_marked
from tests.cluster.sshd_hosts import (
    SshdHost,
    build_ssh_settings,
    make_key,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
    watch_commands,
)

pytestmark = pytest.mark.daemon

# Marks are seen machine-wide, and tests run side by side: names of this process alone.
N1, N2 = (NodeId(f"n-{number}-{os.getpid()}") for number in (1, 2))

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

_PROGRAM = """\
#!/bin/bash
case $0 in
*stubborn) trap "" TERM ;;
esac
while true; do sleep 600; done
"""


@dataclass
class Rig:
    """Three hosts, h1 to h3, and backends of one site over them."""

    hosts: list[SshdHost]
    folder: Path
    state_dirs: set[Path] = field(default_factory=set)

    def open(
        self,
        shell: str = "first",
        *,
        cluster: str = "test",
        count: int = 2,
        grace_s: int = 2,
        **changes: Any,
    ) -> SshBackend:
        """Return a backend over the first hosts; `shell` names the machine that it runs on."""
        self.state_dirs.add(self.folder / shell / cluster)
        return SshBackend(
            build_ssh_settings(self.hosts[:count]).model_copy(update=changes),
            site=SiteName("cloud"),
            cluster=ClusterName(cluster),
            state_dir=self.folder / shell,
            ports=PORTS,
            grace_s=grace_s,
        )

    def start_process(self, host: SshdHost, node_id: NodeId, *, name: str) -> int:
        """Return the id of a process with the node's mark, as Ray would have started it."""
        program = host.folder / name
        program.write_text(_PROGRAM)
        program.chmod(0o700)
        session = host.ray_folder / f"session_{name}"
        session.mkdir(parents=True, exist_ok=True)
        started = subprocess.Popen(
            [str(program), f"--session_dir={session}"],
            env={"TIDEGATE_NODE": node_id, "PATH": os.defpath},
            start_new_session=True,
        )
        threading.Thread(target=started.wait, daemon=True).start()
        return started.pid


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SshdHost]]:
    skip_without_sshd()
    with open_hosts(tmp_path_factory.mktemp("hosts"), 3) as opened:
        yield opened


@pytest.fixture
def rig(servers: list[SshdHost], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(servers, tmp_path)
    yield rig
    for host in servers:
        if host.process is None:
            host.write_config()
            host.start()
        host.thaw()
    for node_id in (N1, N2):
        end_marked(MARK_NODE, node_id, grace_s=0)
    for state_dir in rig.state_dirs:
        remove_ssh_folder(state_dir)
    for host in servers:
        subprocess.run(
            ["rm", "-rf", str(host.home / ".tidegate"), str(host.ray_folder)], check=True
        )


def list_hosts(backend: SshBackend) -> dict[str, str | None]:
    return {one.spec.node_id: one.offering for one in backend.list_instances()}


def only(backend: SshBackend) -> Instance:
    (instance,) = backend.list_instances()
    return instance


Spec = Callable[..., LaunchSpec]


# --- claims


def test_of_eight_that_want_one_host_exactly_one_gets_it(rig: Rig, new_spec: Spec) -> None:
    backends = [rig.open(f"shell{n}", count=1) for n in range(8)]
    gate = threading.Barrier(8)

    def launch(number: int) -> bool:
        gate.wait()
        try:
            backends[number].launch(new_spec(f"{N1}-{number}"))
        except NoCapacityError:
            return False
        return True

    with ThreadPoolExecutor(8) as executor:
        won = [number for number, got in enumerate(executor.map(launch, range(8))) if got]
    assert len(won) == 1
    assert list(list_hosts(backends[0])) == [f"{N1}-{won[0]}"]


def test_a_host_of_another_cluster_is_not_taken_and_the_error_names_that_cluster(
    rig: Rig, new_spec: Spec
) -> None:
    other = rig.open(cluster="other", count=1)
    other.launch(new_spec(N2, cluster=ClusterName("other")))
    with pytest.raises(NoCapacityError, match=rf"h1: node {N2} of cluster other"):
        rig.open(count=1).launch(new_spec(N1))
    assert rig.open(count=1).list_instances() == []
    rig.open(count=1).terminate([N2])
    assert list(list_hosts(other)) == [N2]
    other.terminate([N2])


def test_another_shell_that_knows_nothing_finds_the_node_and_can_end_it(
    rig: Rig, new_spec: Spec
) -> None:
    rig.open().launch(new_spec(N1))
    second = rig.open("second")
    assert only(second).spec == new_spec(N1)
    second.launch(new_spec(N1))
    second.terminate([N1])
    assert not rig.hosts[0].claim_file.exists()
    assert rig.open().list_instances() == []


def test_a_full_site_says_of_each_host_why(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open()
    backend.launch(new_spec(N1))
    backend.cordon_host("h2", Cordon.CORDONED)
    with pytest.raises(NoCapacityError) as refused:
        backend.launch(new_spec(N2))
    assert f"h1: node {N1} of cluster test; h2: cordoned; to undo: tidegate uncordon h2" in str(
        refused.value
    )
    assert refused.value.retry_s > 0


def test_only_hosts_of_the_type_are_taken(rig: Rig, new_spec: Spec) -> None:
    with pytest.raises(NoCapacityError, match="no host of that type"):
        rig.open().launch(new_spec(N1, node_type="another"))


def test_a_damaged_claim_leaves_the_host_taken_until_a_person_looks(
    rig: Rig, new_spec: Spec
) -> None:
    rig.open(count=1).cordon_host("h1", None)
    rig.hosts[0].claim_file.write_text("")
    with pytest.raises(BackendError, match=r"remove ~/\.tidegate/claim\.json"):
        rig.open(count=1).launch(new_spec(N1))


def test_tags_set_from_two_machines_at_once_all_stay(rig: Rig, new_spec: Spec) -> None:
    backends = [rig.open("first"), rig.open("second")]
    backends[0].launch(new_spec(N1))
    for backend in backends:
        backend.list_instances()

    def set_tags(number: int) -> None:
        for round_ in range(4):
            backends[number].set_tags(N1, {f"tag-{number}-{round_}": "1"})

    with ThreadPoolExecutor(2) as executor:
        list(executor.map(set_tags, range(2)))
    wanted = {f"tag-{number}-{round_}" for number in range(2) for round_ in range(4)}
    assert wanted <= set(only(rig.open("third")).spec.tags)


def test_what_a_claim_says_stands_in_no_process_list(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open(count=1)
    with watch_commands() as seen:
        backend.launch(new_spec(N1, node_config={"note": "canary-71c2"}))
        backend.set_tags(N1, {"more": "canary-71c2"})
    assert "canary-71c2" in rig.hosts[0].claim_file.read_text()
    assert any(b"sh\x00-s" in line for line in seen), "the watch saw nothing"
    assert not [line for line in seen if b"canary-71c2" in line]


# --- hosts that don't answer


def test_a_silent_hosts_node_is_reported_as_it_was_and_comes_back_by_itself(
    rig: Rig, new_spec: Spec, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    rig.open(count=1).launch(new_spec(N1))
    rig.hosts[0].stop()
    # A process started later reads what the one before it had heard.
    backend = rig.open(count=1)
    silent = only(backend)
    assert (silent.is_silent, silent.state, silent.spec) == (
        True,
        InstanceState.RUNNING,
        new_spec(N1),
    )
    rig.hosts[0].start()
    eventually(lambda: not only(backend).is_silent)


def test_a_host_that_hangs_delays_a_listing_no_longer_than_its_limit(
    rig: Rig, new_spec: Spec
) -> None:
    """Over the shared connection it is 2 s to connect and 5 s for the script; once, not again."""
    backend = rig.open(set_aside_s=30, set_aside_s_max=30)
    backend.launch(new_spec(N1))
    rig.hosts[0].freeze()
    begun_s = time.monotonic()
    assert only(backend).is_silent
    assert time.monotonic() - begun_s < 15
    begun_s = time.monotonic()
    backend.launch(new_spec(N2))
    assert list_hosts(backend) == {N1: "h1", N2: "h2"}
    assert time.monotonic() - begun_s < 6


def test_a_node_on_a_silent_host_cannot_be_ended_and_the_error_says_what_to_do(
    rig: Rig, new_spec: Spec
) -> None:
    backend = rig.open(count=1)
    backend.launch(new_spec(N1))
    rig.hosts[0].stop()
    with pytest.raises(BackendError, match=rf"node {N1} on host h1 must end.*hosts-cloud\.json"):
        backend.terminate([N1])
    assert list(list_hosts(backend)) == [N1]


def test_a_listing_fails_when_no_host_answers_and_nothing_is_remembered(rig: Rig) -> None:
    for host in rig.hosts[:2]:
        host.stop()
    with pytest.raises(BackendError, match=r"none does. h1: .*; h2: .*Try: ssh"):
        rig.open().list_instances()


def test_one_host_that_never_answered_does_not_hide_the_others_but_is_warned_of(
    rig: Rig, new_spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    rig.hosts[0].stop()
    backend = rig.open()
    with caplog.at_level(logging.WARNING):
        backend.launch(new_spec(N1))
    assert list_hosts(backend) == {N1: "h2"}
    assert "h1" in caplog.text


def test_a_host_with_another_key_than_before_is_not_talked_to(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open(count=1)
    backend.list_instances()
    host = rig.hosts[0]
    host.stop()
    kept = (host.folder / "host_key").read_text()
    (host.folder / "host_key").unlink()
    (host.folder / "host_key.pub").unlink()
    make_key(host.folder / "host_key")
    host.start()
    with pytest.raises(NoCapacityError, match=r"h1: left alone for .* must show the host key"):
        backend.launch(new_spec(N1))
    host.stop()
    (host.folder / "host_key").write_text(kept)


# --- what a crash leaves


def test_a_draft_left_by_a_crash_before_the_claim_is_in_nobodys_way(
    rig: Rig, new_spec: Spec
) -> None:
    folder = rig.hosts[0].claim_file.parent
    folder.mkdir()
    (folder / ".draft.77.claim").write_text('{"node_id":"half')
    backend = rig.open(count=1)
    assert backend.list_instances() == []
    backend.launch(new_spec(N1))
    assert list(list_hosts(backend)) == [N1]


def test_a_host_claimed_without_anybody_hearing_of_it_is_released_again(
    rig: Rig, new_spec: Spec, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The first shell's claim on h1 stands for an answer that was lost on its way."""
    rig.open("lost", count=1).launch(new_spec(N1))
    rig.hosts[0].stop()
    backend = rig.open()
    backend.launch(new_spec(N1))
    assert list_hosts(backend) == {N1: "h2"}
    rig.hosts[0].start()
    eventually(lambda: backend.list_instances() != [] and not rig.hosts[0].claim_file.exists())
    assert list_hosts(backend) == {N1: "h2"}


def test_a_launch_killed_at_any_moment_and_repeated_gives_one_node(
    rig: Rig, new_spec: Spec
) -> None:
    """The connections are there already, so the claim takes some 50 ms; some kills come later."""
    backend = rig.open(grace_s=1)
    backend.list_instances()
    for delay_s in (0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2):
        launcher = os.fork()
        if launcher == 0:
            backend.launch(new_spec(N1))
            os._exit(0)
        time.sleep(delay_s)
        os.kill(launcher, 9)
        os.waitpid(launcher, 0)
        backend.launch(new_spec(N1))
        assert list(list_hosts(backend)) == [N1]
        held = [host.claim_file for host in rig.hosts if host.claim_file.exists()]
        assert len(held) == 1, f"killed after {delay_s} s: {held}"
        held[0].unlink()


def test_an_end_goes_on_when_whoever_asked_for_it_is_killed(
    rig: Rig, new_spec: Spec, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The claim goes last: as long as anything of the node may be left, it is listed."""
    backend = rig.open(count=1)
    backend.launch(new_spec(N1))
    pid = rig.start_process(rig.hosts[0], N1, name="stubborn")
    asker = os.fork()
    if asker == 0:
        backend.terminate([N1])
        os._exit(0)
    time.sleep(0.8)
    os.kill(asker, 9)
    os.waitpid(asker, 0)
    assert Path(f"/proc/{pid}").exists(), "it was ended before the asker was killed"
    assert list(list_hosts(backend)) == [N1]
    eventually(lambda: not rig.hosts[0].claim_file.exists())
    assert not Path(f"/proc/{pid}").exists()


# --- Ray on a host


def test_ending_a_node_ends_all_its_processes_and_removes_its_session_and_nothing_else(
    rig: Rig, new_spec: Spec
) -> None:
    host = rig.hosts[0]
    backend = rig.open(count=1)
    backend.launch(new_spec(N1))
    ours = [rig.start_process(host, N1, name=name) for name in ("raylet", "ray_worker")]
    stranger = rig.start_process(host, N2, name="stranger")
    current = host.ray_folder / "ray_current_cluster"
    current.write_text("10.0.0.1:6399")
    backend.terminate([N1])
    assert [pid for pid in ours if Path(f"/proc/{pid}").exists()] == []
    assert Path(f"/proc/{stranger}").exists()
    os.kill(stranger, 9)
    assert [one.name for one in host.ray_folder.iterdir()] == ["session_stranger"]
    assert not host.claim_file.exists()


def test_a_worker_whose_ray_died_is_stopped_and_a_head_is_not(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open()
    backend.launch(new_spec(N1))
    backend.launch(new_spec(N2, is_head=True))
    assert {one.state for one in backend.list_instances()} == {InstanceState.RUNNING}
    raylets = [
        rig.start_process(rig.hosts[n], one, name="raylet") for n, one in enumerate((N1, N2))
    ]
    assert {one.state for one in backend.list_instances()} == {InstanceState.RUNNING}
    for pid in raylets:
        os.killpg(pid, 9)
    states = {one.spec.node_id: one.state for one in rig.open("second").list_instances()}
    assert states == {N1: InstanceState.STOPPED, N2: InstanceState.RUNNING}


def test_a_worker_that_is_set_up_but_has_no_raylet_is_stopped(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open(count=1)
    backend.launch(new_spec(N1))
    backend.set_tags(N1, {"ray-node-status": "setting-up"})
    assert only(backend).state is InstanceState.RUNNING
    backend.set_tags(N1, {"ray-node-status": "up-to-date"})
    assert only(backend).state is InstanceState.STOPPED


def test_commands_get_the_nodes_environment(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open()
    backend.launch(new_spec(N1))
    runner = backend.open_command_runner(N1)
    said = runner.run('echo "$TIDEGATE_NODE $TIDEGATE_NODE_IP"', with_output=True)
    assert said.split() == [N1, rig.hosts[0].address]


def test_a_host_whose_node_never_ran_ray_is_given_no_other_for_a_while(
    rig: Rig, new_spec: Spec, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """Else one broken machine, first in the file, would take every launch of its type."""
    backend = rig.open(set_aside_s=2, set_aside_s_max=2)
    backend.launch(new_spec(N1))
    assert list_hosts(backend) == {N1: "h1"}
    backend.terminate([N1])
    backend.launch(new_spec(N1))
    assert list_hosts(backend) == {N1: "h2"}
    with pytest.raises(NoCapacityError, match=f"h1: given no node .* {N1} never ran Ray there"):
        backend.launch(new_spec(N2))

    def is_launched() -> bool:
        try:
            backend.launch(new_spec(N2))
        except NoCapacityError:
            return False
        return True

    eventually(is_launched)
    assert list_hosts(backend) == {N1: "h2", N2: "h1"}


# --- what people want of hosts


def test_a_cordoned_host_is_passed_over_until_it_is_uncordoned_from_anywhere(
    rig: Rig, new_spec: Spec
) -> None:
    rig.open("first").cordon_host("h1", Cordon.CORDONED)
    backend = rig.open("second", count=1)
    with pytest.raises(NoCapacityError):
        backend.launch(new_spec(N1))
    rig.open("third").cordon_host("h1", None)
    backend.launch(new_spec(N1))
    assert only(backend).cordon is None


def test_a_node_is_cordoned_by_its_hosts_name_or_its_own(rig: Rig, new_spec: Spec) -> None:
    backend = rig.open()
    backend.launch(new_spec(N1))
    backend.cordon_host(N1, Cordon.DRAINING)
    assert only(rig.open("second")).cordon is Cordon.DRAINING
    backend.cordon_host("h1", Cordon.CORDONED)
    assert only(backend).cordon is Cordon.CORDONED
    with pytest.raises(NodeNotFoundError, match="its hosts are h1, h2"):
        backend.cordon_host("h9", Cordon.CORDONED)


def test_a_host_taken_out_of_the_file_goes_home_in_order_and_is_forgotten(
    rig: Rig, new_spec: Spec
) -> None:
    before = rig.open()
    for node_id in (N1, N2):
        before.launch(new_spec(node_id))
    after = rig.open(count=1)
    assert {one.offering: one.cordon for one in after.list_instances()} == {
        "h1": None,
        "h2": Cordon.DRAINING,
    }
    after.terminate([N2])
    assert list_hosts(after) == {N1: "h1"}
    assert not rig.hosts[1].claim_file.exists()
    assert "h2" not in (rig.folder / "first" / "test" / "hosts-cloud.json").read_text()


def test_a_host_that_only_got_another_name_stays_a_node(rig: Rig, new_spec: Spec) -> None:
    rig.open(count=1).launch(new_spec(N1))
    settings = build_ssh_settings(rig.hosts[:1])
    renamed = rig.open(count=1, hosts={"new": settings.hosts["h1"]})
    assert only(renamed).offering == "new"
    assert only(renamed).cordon is None
    assert rig.hosts[0].claim_file.exists()


def test_a_host_that_gets_another_address_keeps_its_node_at_the_old_one_until_it_is_ended(
    rig: Rig, new_spec: Spec
) -> None:
    rig.open(count=1).launch(new_spec(N1))
    elsewhere = build_ssh_settings(rig.hosts).hosts["h2"]
    moved = rig.open(hosts={"h1": elsewhere})
    assert only(moved).cordon is Cordon.DRAINING
    assert only(moved).address == rig.hosts[0].address
    moved.terminate([N1])
    assert not rig.hosts[0].claim_file.exists()
    assert moved.list_instances() == []


def test_hosts_that_share_a_home_folder_are_one_host_and_say_so(rig: Rig, new_spec: Spec) -> None:
    shared = build_ssh_settings(rig.hosts[:1]).hosts["h1"]
    backend = rig.open(hosts={"h1": shared, "twin": shared})
    backend.launch(new_spec(N1))
    with pytest.raises(
        NoCapacityError, match=r"twin: node .* through a home folder shared with h1"
    ):
        backend.launch(new_spec(N2))
    assert len(backend.list_instances()) == 1


# --- without a server


def test_what_a_host_says_itself_wins_over_its_site() -> None:
    site = SshAccess(user="ray", private_key="~/.ssh/site", jump="bastion")
    host = SshHost(address="10.0.0.5", node_type="gpu", user="ops", port=2222)
    own = resolve_access(site, host)
    assert (own.user, own.port, own.private_key, own.jump) == (
        "ops",
        2222,
        "~/.ssh/site",
        "bastion",
    )


def test_rsync_gets_an_ipv6_address_in_brackets(tmp_path: Path) -> None:
    access = SshAccess(user="ray", private_key="~/.ssh/site")
    assert SshTarget(access, "fd00::5", tmp_path).locate_path("~/x") == "ray@[fd00::5]:~/x"
    assert SshTarget(access, "10.0.0.5", tmp_path).locate_path("~/x") == "ray@10.0.0.5:~/x"


def test_a_memory_that_cannot_be_written_leaves_no_drafts(tmp_path: Path) -> None:
    """Hosts are heard every second: a draft each time would soon fill what is left of a disk."""
    file = tmp_path / "hosts-cloud.json"
    memory = HostMemory(file)
    file.mkdir()
    host = KnownHost("h1", "10.0.0.5", SshAccess(user="ray", private_key="~/.ssh/site"))
    with pytest.raises(IsADirectoryError):
        memory.update([host])
    assert list(tmp_path.iterdir()) == [file]
    file.rmdir()
    memory.update([host])
    assert HostMemory(file).get("h1") is not None


@pytest.mark.parametrize("text", ["", "[]", '{"h1": []}', '{"h1": {"address": 1}}'])
def test_a_memory_that_is_damaged_is_gathered_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hosts-cloud.json"
    file.write_text(text)
    assert HostMemory(file).list_hosts() == []


def test_a_failing_host_is_left_alone_twice_as_long_each_time_up_to_a_limit() -> None:
    """30, 60, 120 ... 600 s, less up to a quarter by lot; here the lot takes nothing."""
    now_s = [0.0]
    pauses = Pauses(first_s=30, max_s=600, now_s=lambda: now_s[0], draw=lambda: 0.0)
    waits = []
    for _ in range(7):
        pauses.note_failure("h1", "no route")
        waits.append(pauses.left_s("h1"))
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    now_s[0] = 601
    assert pauses.left_s("h1") == 0
    pauses.note_success("h1")
    pauses.note_failure("h1", "no route")
    assert pauses.left_s("h1") == 30


def test_the_lot_spreads_the_returns_of_hosts_that_failed_together() -> None:
    lots = iter([0.0, 1.0])
    pauses = Pauses(first_s=40, max_s=600, now_s=lambda: 0.0, draw=lambda: next(lots))
    for name in ("h1", "h2"):
        pauses.note_failure(name, "no route")
    assert (pauses.left_s("h1"), pauses.left_s("h2")) == (40, 30)
