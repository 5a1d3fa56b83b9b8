"""Two providers, each with a ledger of its own, over the same sites: the operator's and the head's.

What the head started, the operator sees and leaves alone until told; nobody pays twice.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from cluster.backends.fake import FakeBackend
from cluster.errors import BackendError, CredentialsError
from cluster.head_copy import build_head_copy, note_operator_key
from cluster.ledger import Ledger
from cluster.model import (
    Cordon,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    NodePhase,
    SiteName,
)
from cluster.provider import HybridNodeProvider

Wait = Callable[[Callable[[], bool]], None]

HEAD = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-launch-config": "hash"}
CLOUD = {"ray-node-type": "worker", "ray-user-node-type": "cloud_gpu", "ray-launch-request": "r1"}
ONPREM_SITE, CLOUD_SITE = SiteName("onprem"), SiteName("cloud")


@dataclass
class Machines:
    """Fake sites, and providers on any number of machines."""

    provider_config: dict[str, Any]
    folder: Path
    sites: dict[SiteName, FakeBackend] = field(
        default_factory=lambda: {site: FakeBackend() for site in (ONPREM_SITE, CLOUD_SITE)}
    )
    providers: list[HybridNodeProvider] = field(default_factory=list)

    def open(self, machine: str, *, answer_s_max: float = 10.0) -> HybridNodeProvider:
        config = {**self.provider_config, "state_dir": str(self.folder / machine)}
        if machine.startswith("head"):
            config["_role"] = "head"
        provider = HybridNodeProvider(
            config, "test", backends=self.sites, poll_s=0.02, answer_s_max=answer_s_max
        )
        self.providers.append(provider)
        if machine.startswith("head"):
            for thread in provider._sites.values():
                assert thread.wait_for_look(begun_after_s=None, timeout_s=10)
        return provider

    def ledger(self, machine: str) -> Ledger:
        return Ledger(self.folder / machine / "test" / "ledger.db", reads_only=True)

    def calls(self, site: SiteName, name: str) -> int:
        return [one.name for one in self.sites[site].calls].count(name)


@pytest.fixture
def machines(cluster_content: dict[str, Any], tmp_path: Path) -> Iterator[Machines]:
    opened = Machines(cluster_content["provider"], tmp_path)
    yield opened
    for backend in opened.sites.values():
        backend.release()
    for provider in opened.providers:
        provider.close()


def start_cluster(machines: Machines, eventually: Wait) -> tuple[HybridNodeProvider, str]:
    """Return the head's provider and its cloud node, after `ray up` and one burst."""
    operator = machines.open("operator")
    operator.create_node({}, HEAD, 1)
    eventually(lambda: all(map(operator.is_running, operator.non_terminated_nodes(HEAD))))
    operator.close()
    head = machines.open("head")
    head.create_node({}, CLOUD, 1)
    (node_id,) = head.non_terminated_nodes(CLOUD)
    eventually(lambda: head.is_running(node_id))
    return head, node_id


def test_a_second_shell_with_an_empty_state_folder_sees_every_node_in_its_first_answer(
    machines: Machines, eventually: Wait
) -> None:
    head, node_id = start_cluster(machines, eventually)
    elsewhere = machines.open("elsewhere")
    assert elsewhere.non_terminated_nodes(CLOUD) == [node_id]
    assert len(elsewhere.non_terminated_nodes({})) == 2
    time.sleep(0.2)
    assert head.is_running(node_id)
    assert machines.calls(CLOUD_SITE, "terminate") == 0


def test_a_second_ray_up_finds_the_head_with_the_tags_the_first_one_set(
    machines: Machines, eventually: Wait
) -> None:
    first = machines.open("operator")
    first.create_node({}, HEAD, 1)
    (node_id,) = first.non_terminated_nodes(HEAD)
    first.set_node_tags(node_id, {"ray-node-status": "up-to-date"})
    first._flush()
    first.close()
    for machine in ("operator", "elsewhere"):
        again = machines.open(machine)
        (found,) = again.non_terminated_nodes({"ray-node-type": "head"})
        assert found == node_id
        assert again.node_tags(node_id)["ray-launch-config"] == "hash"
        assert again.node_tags(node_id)["ray-node-status"] == "up-to-date"
        again.close()
    assert machines.calls(ONPREM_SITE, "launch") == 1


def test_what_another_machine_ended_is_gone_in_the_first_answer(
    machines: Machines, eventually: Wait
) -> None:
    """`ray up`, `ray down` elsewhere, `ray up` again: the second needs a head of its own."""
    first = machines.open("operator")
    first.create_node({}, HEAD, 1)
    eventually(lambda: all(map(first.is_running, first.non_terminated_nodes(HEAD))))
    first.close()
    elsewhere = machines.open("elsewhere")
    elsewhere.terminate_nodes(elsewhere.non_terminated_nodes({}))
    eventually(lambda: elsewhere.nodes_for_teardown({}) == [])
    again = machines.open("operator")
    assert again.non_terminated_nodes({"ray-node-type": "head"}) == []


def test_tags_that_the_site_refused_are_sent_again_before_the_process_ends(
    machines: Machines,
) -> None:
    operator = machines.open("operator")
    operator.create_node({}, HEAD, 1)
    (node_id,) = operator.non_terminated_nodes(HEAD)
    machines.sites[ONPREM_SITE].fail_next("set_tags", BackendError("reset"))
    operator.set_node_tags(node_id, {"ray-node-status": "up-to-date"})
    operator._flush()
    (instance,) = machines.sites[ONPREM_SITE].list_instances()
    assert instance.spec.tags["ray-node-status"] == "up-to-date"


class SlowBackend(FakeBackend):
    """Its launches take effect at once and are answered when told."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def launch(self, spec: LaunchSpec) -> None:
        super().launch(spec)
        self.may_answer.wait(10)


def test_an_operators_look_in_the_middle_of_a_launch_neither_ends_nor_launches_anything(
    machines: Machines, eventually: Wait
) -> None:
    """`ray exec` while the head's intent is open and the instance is there already."""
    cloud = machines.sites[CLOUD_SITE] = SlowBackend()
    head = machines.open("head")
    head.create_node({}, CLOUD, 1)
    (node_id,) = head.non_terminated_nodes(CLOUD)
    operator = machines.open("operator")
    eventually(lambda: operator.non_terminated_nodes(CLOUD) == [node_id])
    assert machines.ledger("head").get(NodeId(node_id)).phase is NodePhase.INTENDED
    operator.close()
    cloud.may_answer.set()
    eventually(lambda: head.is_running(node_id))
    assert (machines.calls(CLOUD_SITE, "launch"), machines.calls(CLOUD_SITE, "terminate")) == (1, 0)


def test_ray_down_with_the_head_dead_and_no_ledger_ends_every_node_at_every_site(
    machines: Machines, eventually: Wait
) -> None:
    head, _ = start_cluster(machines, eventually)
    head.close()
    stranger = machines.open("elsewhere")
    workers = stranger.nodes_for_teardown({"ray-node-type": "worker"})
    heads = stranger.nodes_for_teardown({"ray-node-type": "head"})
    assert (len(workers), len(heads)) == (1, 1)
    stranger.terminate_nodes([*heads, *workers])
    eventually(lambda: stranger.nodes_for_teardown({}) == [])
    assert all(site.list_instances() == [] for site in machines.sites.values())


class WarmBackend(FakeBackend):
    """Keeps a stopped machine until told, and fails `failures` times first."""

    def __init__(self, *, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.is_warm = True

    def end_warm_pool(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise BackendError("throttled")
        self.is_warm = False


def test_ray_down_ends_the_machines_a_site_keeps_stopped(machines: Machines) -> None:
    """Ray asks for it under this name once no node remains."""
    cloud = machines.sites[CLOUD_SITE] = WarmBackend(failures=2)
    machines.open("elsewhere").cleanup_cluster_resources()
    assert not cloud.is_warm


def test_ray_down_says_when_machines_are_left_stopped(
    machines: Machines, capfd: pytest.CaptureFixture[str]
) -> None:
    machines.sites[CLOUD_SITE] = WarmBackend(failures=9)
    with pytest.raises(click.ClickException, match="site cloud must end its warm pool"):
        machines.open("elsewhere").cleanup_cluster_resources()
    assert "run `ray down` again" in capfd.readouterr().err


def test_a_node_launched_while_others_were_ended_is_among_those_that_remain(
    machines: Machines, eventually: Wait, new_spec: Callable[..., Any]
) -> None:
    """The answer "none" follows a look that began after the question."""
    stranger = machines.open("elsewhere")
    assert stranger.nodes_for_teardown({}) == []
    machines.sites[CLOUD_SITE].launch(new_spec("cloud_gpu-late"))
    assert stranger.nodes_for_teardown({"ray-node-type": "worker"}) == ["cloud_gpu-late"]


def test_a_site_that_does_not_answer_is_named_with_its_cause_and_what_to_do(
    machines: Machines, capfd: pytest.CaptureFixture[str]
) -> None:
    cloud = machines.sites[CLOUD_SITE]
    for _ in range(1000):
        cloud.fail_next("list_instances", CredentialsError("the key has expired"))
    operator = machines.open("operator", answer_s_max=0.2)
    with pytest.raises(click.ClickException) as caught:
        operator.nodes_for_teardown({})
    assert caught.value.message == (
        "site cloud must list its nodes within 0.2 s; got: the key has expired. Until it does, "
        "nobody knows what runs there. Check it with `tidegate doctor CLUSTER_FILE`, then run "
        "this command again."
    )
    assert "waiting for site cloud to list its nodes" in capfd.readouterr().err


def test_commands_for_the_head_work_while_the_cloud_does_not_answer(
    machines: Machines, eventually: Wait
) -> None:
    head, _ = start_cluster(machines, eventually)
    machines.sites[CLOUD_SITE].hang()
    operator = machines.open("elsewhere", answer_s_max=5)
    assert len(operator.non_terminated_nodes({"ray-node-type": "head"})) == 1
    assert len(head.non_terminated_nodes({})) == 2


def test_the_head_answers_from_its_ledger_while_no_site_answers(
    machines: Machines, eventually: Wait
) -> None:
    head, node_id = start_cluster(machines, eventually)
    head.close()
    for site in machines.sites.values():
        site.hang()
    config = {
        **machines.provider_config,
        "state_dir": str(machines.folder / "head"),
        "_role": "head",
    }
    again = HybridNodeProvider(config, "test", backends=machines.sites)
    machines.providers.append(again)
    assert node_id in again.non_terminated_nodes({})


def test_a_node_an_operator_missed_once_is_taken_in_again_and_never_ended(
    machines: Machines, eventually: Wait
) -> None:
    head, node_id = start_cluster(machines, eventually)
    operator = machines.open("elsewhere")
    assert operator.non_terminated_nodes(CLOUD) == [node_id]
    operator._ledger.mark_closed(NodeId(node_id), why="gone from its site")
    eventually(lambda: operator.non_terminated_nodes(CLOUD) == [node_id])
    assert head.is_running(node_id)
    assert machines.calls(CLOUD_SITE, "terminate") == 0


class StoppingBackend(FakeBackend):
    """Its nodes have all stopped serving."""

    def list_instances(self) -> list[Instance]:
        return [Instance(one.spec, InstanceState.STOPPED) for one in super().list_instances()]


def test_a_node_that_stopped_is_ended_by_the_head_and_not_by_an_operator(
    machines: Machines, eventually: Wait, new_spec: Callable[..., Any]
) -> None:
    cloud = machines.sites[CLOUD_SITE] = StoppingBackend()
    cloud.launch(new_spec("cloud_gpu-1"))
    operator = machines.open("operator")
    assert operator.non_terminated_nodes({}) == ["cloud_gpu-1"]
    seen = len(cloud.calls)
    eventually(lambda: len(cloud.calls) > seen + 5)
    assert machines.calls(CLOUD_SITE, "terminate") == 0
    machines.open("head")
    eventually(lambda: FakeBackend.list_instances(cloud) == [])


def test_what_an_operator_takes_in_is_in_no_sum_of_the_heads_ledger(
    machines: Machines, eventually: Wait
) -> None:
    start_cluster(machines, eventually)
    before = machines.ledger("head").spend_now().commitments
    assert len(machines.open("elsewhere").non_terminated_nodes({})) == 2
    assert machines.ledger("head").spend_now().commitments == before
    assert len(machines.ledger("elsewhere").spend_now().commitments) == 2


def test_a_cordon_set_by_an_operator_reaches_the_heads_ledger_and_can_be_lifted(
    machines: Machines, eventually: Wait
) -> None:
    head, node_id = start_cluster(machines, eventually)
    operator = machines.open("elsewhere")
    operator.cordon(node_id, Cordon.DRAINING)
    cordon_of = lambda: head._ledger.get(NodeId(node_id)).cordon  # noqa: E731 - read again and again
    eventually(lambda: cordon_of() is Cordon.DRAINING)
    operator.cordon(node_id, None)
    eventually(lambda: cordon_of() is None)


def test_a_node_can_be_cordoned_while_another_site_does_not_answer(
    machines: Machines, eventually: Wait
) -> None:
    head, _ = start_cluster(machines, eventually)
    (node_id,) = head.non_terminated_nodes({"ray-node-type": "head"})
    machines.sites[CLOUD_SITE].hang()
    machines.open("elsewhere").cordon(node_id, Cordon.CORDONED)
    eventually(lambda: head._ledger.get(NodeId(node_id)).cordon is Cordon.CORDONED)


def test_an_operators_ledger_is_a_local_file_even_if_the_heads_is_a_database(
    machines: Machines,
) -> None:
    """The database may be gone with the head; `ray down` needs only the sites."""
    machines.provider_config["store"] = {"kind": "postgresql", "url_env": "NOT_SET_ANYWHERE"}
    assert machines.open("elsewhere").nodes_for_teardown({}) == []
    assert machines.ledger("elsewhere").list_all() == []


def test_the_heads_copy_names_the_copied_key_and_keeps_the_home_of_a_remote_head(
    cluster_content: dict[str, Any],
) -> None:
    access = {"user": "ray", "private_key": "~/.ssh/cluster.pem"}
    hosts = {
        "h0": {"address": "192.0.2.1", "node_type": "head"},
        "h1": {"address": "192.0.2.2", "node_type": "onprem_gpu", "private_key": "~/other.pem"},
    }
    provider = cluster_content["provider"]
    provider["state_dir"] = "~/.tidegate"
    provider["sites"]["onprem"]["backend"] = {"kind": "ssh", "ssh": access, "hosts": hosts}
    provider["ports"] = None
    cluster_content["auth"] = {"ssh_user": "ray", "ssh_private_key": "~/.ssh/cluster.pem"}

    noted = note_operator_key(cluster_content)
    noted["auth"] = {**noted["auth"], "ssh_private_key": "~/ray_bootstrap_key.pem"}
    copy = build_head_copy(noted)["provider"]
    backend = copy["sites"]["onprem"]["backend"]
    assert copy["state_dir"] == "~/.tidegate"
    assert backend["ssh"]["private_key"] == "~/ray_bootstrap_key.pem"
    assert backend["hosts"]["h1"]["private_key"] == "~/other.pem"
    assert copy["_role"] == "head"
    assert "_operator_key" not in copy
