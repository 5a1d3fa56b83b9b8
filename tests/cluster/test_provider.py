"""HybridNodeProvider as Ray uses it: at once, complete, within limits, and over a restart."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from cluster.backend_settings import FakeBackendSettings
from cluster.backends.fake import FakeBackend
from cluster.errors import BackendError, NoCapacityError, StateError
from cluster.ledger import Intent, Ledger
from cluster.model import NodeId, NodePhase, NodeTypeName, SiteName
from cluster.provider import HybridNodeProvider

Wait = Callable[[Callable[[], bool]], None]

HEAD = {"ray-node-type": "head", "ray-user-node-type": "head"}
ONPREM = {"ray-node-type": "worker", "ray-user-node-type": "onprem_gpu"}
CLOUD = {"ray-node-type": "worker", "ray-user-node-type": "cloud_gpu", "ray-launch-request": "r1"}
ONPREM_SITE, CLOUD_SITE = SiteName("onprem"), SiteName("cloud")


@dataclass
class World:
    """Two fake sites that outlive the providers built over them."""

    provider_config: dict[str, Any]
    boot_s: float = 0.0
    providers: list[HybridNodeProvider] = field(default_factory=list)
    sites: dict[SiteName, FakeBackend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = FakeBackendSettings(kind="fake", boot_s=self.boot_s)
        self.sites = {site: FakeBackend(settings) for site in (ONPREM_SITE, CLOUD_SITE)}

    def open(self) -> HybridNodeProvider:
        """Return the provider as the head has it, once it has listed the sites that answer."""
        provider = HybridNodeProvider(
            {**self.provider_config, "_role": "head"}, "test", backends=self.sites, poll_s=0.05
        )
        self.providers.append(provider)
        for site, thread in provider._sites.items():
            if self.sites[site]._released.is_set():
                assert thread.wait_for_look(begun_after_s=None, timeout_s=10)
        return provider

    def ledger(self) -> Ledger:
        return Ledger(Path(self.provider_config["state_dir"]) / "test" / "ledger.db")

    def close(self) -> None:
        for backend in self.sites.values():
            backend.release()
        for provider in self.providers:
            provider.close()


@pytest.fixture
def world(cluster_content: dict[str, Any], tmp_path: Path) -> Iterator[World]:
    cluster_content["provider"]["state_dir"] = str(tmp_path)
    opened = World(cluster_content["provider"])
    yield opened
    opened.close()


def launch(provider: HybridNodeProvider, tags: dict[str, str], count: int = 1) -> None:
    provider.create_node_with_resources_and_labels({}, tags, count, {}, {})


def test_a_launch_is_listed_at_once_and_runs_once_its_site_says_so(
    world: World, eventually: Wait
) -> None:
    provider = world.open()
    launch(provider, CLOUD, count=2)
    listed = provider.non_terminated_nodes({})
    assert len(listed) == 2
    eventually(lambda: all(provider.is_running(node_id) for node_id in listed))
    assert provider.internal_ip(listed[0]) is not None
    assert provider.non_terminated_nodes({}) == listed


def test_a_site_that_hangs_delays_neither_calls_nor_the_other_site(
    world: World, eventually: Wait
) -> None:
    """Every call returns within a second while the cloud answers nothing at all."""
    provider = world.open()
    world.sites[CLOUD_SITE].hang()
    started_s = time.monotonic()
    launch(provider, CLOUD)
    launch(provider, ONPREM)
    (onprem,) = provider.non_terminated_nodes(ONPREM)
    (cloud,) = provider.non_terminated_nodes(CLOUD)
    assert time.monotonic() - started_s < 1
    eventually(lambda: provider.is_running(onprem))
    provider.terminate_nodes([cloud, onprem])
    eventually(lambda: provider.nodes_for_teardown(ONPREM) == [])
    assert provider.nodes_for_teardown({}) == [cloud]
    world.sites[CLOUD_SITE].release()
    eventually(lambda: provider.nodes_for_teardown({}) == [])


def test_tags_are_kept_word_for_word_over_a_rebuild(world: World, eventually: Wait) -> None:
    first = world.open()
    launch(first, CLOUD)
    (node_id,) = first.non_terminated_nodes({})
    eventually(lambda: first.is_running(node_id))
    first.set_node_tags(node_id, {"ray-node-status": "up-to-date"})
    first.close()
    second = world.open()
    assert second.non_terminated_nodes({"ray-node-status": "up-to-date"}) == [node_id]
    assert second.node_tags(node_id) == {
        **CLOUD,
        "ray-cluster-name": "test",
        "ray-node-status": "up-to-date",
    }
    assert second.non_terminated_nodes({"ray-node-status": "other"}) == []


def test_open_intents_of_a_dead_process_are_listed_before_anything_is_asked_of_a_site(
    world: World,
) -> None:
    first = world.open()
    world.sites[CLOUD_SITE].hang()
    launch(first, CLOUD)
    (node_id,) = first.non_terminated_nodes({})
    assert world.open().non_terminated_nodes({}) == [node_id]


def test_an_intent_whose_launch_took_effect_before_the_crash_becomes_a_node_and_not_a_second_one(
    world: World, eventually: Wait, new_spec: Callable[..., Any]
) -> None:
    ledger = world.ledger()
    _write_intent(ledger, owner="dead/1/1/x")
    world.sites[CLOUD_SITE].launch(new_spec("cloud_gpu-1"))
    provider = world.open()
    assert provider.non_terminated_nodes({}) == ["cloud_gpu-1"]
    eventually(lambda: provider.is_running("cloud_gpu-1"))
    assert [one.name for one in world.sites[CLOUD_SITE].calls].count("launch") == 1


def test_an_intent_that_never_reached_its_site_is_closed_and_never_launched_late(
    world: World, eventually: Wait
) -> None:
    _write_intent(world.ledger(), owner="dead/1/1/x")
    world.sites[CLOUD_SITE].hang()
    provider = world.open()
    assert provider.non_terminated_nodes({}) == ["cloud_gpu-1"]
    world.sites[CLOUD_SITE].release()
    eventually(lambda: provider.non_terminated_nodes({}) == [])
    assert world.ledger().get(NodeId("cloud_gpu-1")).closed_why == "never launched: its owner ended"
    assert world.sites[CLOUD_SITE].list_instances() == []
    assert "launch" not in [one.name for one in world.sites[CLOUD_SITE].calls]


def test_an_intent_cut_off_half_way_is_ended_at_its_site_before_it_is_closed(
    world: World, eventually: Wait
) -> None:
    """What a site doesn't list yet may be there all the same, such as a node's half-made folder."""
    cloud = world.sites[CLOUD_SITE]
    _write_intent(world.ledger(), owner="dead/1/1/x")
    cloud.fail_next("terminate", BackendError("throttled"))
    provider = world.open()
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    asked = [one.node_ids for one in cloud.calls if one.name == "terminate"]
    assert asked == [("cloud_gpu-1",)] * 2


def test_the_intent_of_another_live_process_is_left_to_it(world: World) -> None:
    first = world.open()
    world.sites[CLOUD_SITE].hang()
    launch(first, CLOUD)
    second = HybridNodeProvider(
        {**world.provider_config, "_role": "head"},
        "test",
        backends={ONPREM_SITE: FakeBackend(), CLOUD_SITE: FakeBackend()},
        poll_s=0.01,
    )
    world.providers.append(second)
    time.sleep(0.1)
    assert len(second.non_terminated_nodes({})) == 1


def test_a_node_whose_record_was_lost_is_taken_back_at_its_price(
    world: World, eventually: Wait, new_spec: Callable[..., Any]
) -> None:
    world.sites[CLOUD_SITE].launch(new_spec("cloud_gpu-9"))
    provider = world.open()
    eventually(lambda: provider.non_terminated_nodes(CLOUD_TAGS_IN_SPEC) == ["cloud_gpu-9"])
    assert str(world.ledger().get(NodeId("cloud_gpu-9")).usd_per_hour) == "1.5"


CLOUD_TAGS_IN_SPEC = {"ray-node-type": "worker", "ray-user-node-type": "cloud_gpu"}


def test_a_listing_that_fails_closes_nothing(world: World, eventually: Wait) -> None:
    provider = world.open()
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    eventually(lambda: provider.is_running(node_id))
    for _ in range(3):
        world.sites[CLOUD_SITE].fail_next("list_instances", BackendError("throttled"))
    time.sleep(0.3)
    assert provider.is_running(node_id)


def test_an_unreadable_ledger_raises_and_never_lists_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = world.open()
    provider.close()
    file = Path(world.provider_config["state_dir"]) / "test" / "ledger.db"
    file.write_bytes(b"overwritten by accident, no longer a database, still a file")
    with pytest.raises(StateError):
        provider.non_terminated_nodes({})


def test_a_node_its_site_took_away_is_gone_from_the_listing(world: World, eventually: Wait) -> None:
    provider = world.open()
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    eventually(lambda: provider.is_running(node_id))
    world.sites[CLOUD_SITE].stop_instance(NodeId(node_id))
    eventually(lambda: provider.non_terminated_nodes({}) == [])
    assert provider.is_terminated(node_id)
    assert world.ledger().get(NodeId(node_id)).closed_why == "gone from its site"


def test_an_instance_its_site_lists_late_is_waited_for(
    world: World, clock: Any, eventually: Wait
) -> None:
    site = FakeBackend(now_s=clock, list_lag_s=10, settle_s=60)
    world.sites[CLOUD_SITE] = site
    provider = world.open()
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    eventually(lambda: len(site.calls) > 5)
    assert provider.non_terminated_nodes({}) == [node_id]
    clock.now_s += 10
    eventually(lambda: provider.is_running(node_id))


def test_an_instance_that_shows_up_after_its_node_was_closed_is_ended(
    world: World, clock: Any, eventually: Wait
) -> None:
    """The site promised to list at once and didn't: nobody counts on the node any more."""
    site = FakeBackend(now_s=clock, list_lag_s=10, settle_s=0)
    world.sites[CLOUD_SITE] = site
    provider = world.open()
    launch(provider, CLOUD)
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    clock.now_s += 10
    eventually(lambda: "terminate" in [one.name for one in site.calls])
    assert provider.non_terminated_nodes({}) == []


def test_a_sold_out_site_closes_the_intent_with_the_reason(world: World, eventually: Wait) -> None:
    world.sites[CLOUD_SITE].fail_next("launch", NoCapacityError("none left in zone a"))
    provider = world.open()
    launch(provider, CLOUD)
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    (record,) = world.ledger().list_all()
    assert record.closed_why == "no capacity: none left in zone a"


def test_a_launch_that_failed_half_way_is_ended_so_that_it_cannot_cost_unseen(
    world: World, eventually: Wait
) -> None:
    world.sites[CLOUD_SITE].fail_next("launch", BackendError("connection reset"))
    world.sites[CLOUD_SITE].fail_next("terminate", BackendError("connection reset"))
    provider = world.open()
    launch(provider, CLOUD)
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    assert "terminate" in [one.name for one in world.sites[CLOUD_SITE].calls]


@pytest.mark.parametrize("error", [StateError("the link is somebody else's"), ValueError("a bug")])
def test_a_launch_that_failed_in_any_other_way_is_closed_too_and_costs_nothing(
    world: World, eventually: Wait, error: Exception
) -> None:
    world.sites[CLOUD_SITE].fail_next("launch", error)
    provider = world.open()
    launch(provider, CLOUD)
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    (record,) = world.ledger().list_all()
    assert record.closed_why == f"launch failed: {error}"


@pytest.mark.parametrize("error", [BackendError("reset"), NoCapacityError("none left")])
def test_a_failed_launch_that_could_not_be_written_down_is_closed_later(
    world: World, eventually: Wait, monkeypatch: pytest.MonkeyPatch, error: BackendError
) -> None:
    provider = world.open()
    refuse_once(monkeypatch, "mark_terminating")
    refuse_once(monkeypatch, "mark_closed")
    world.sites[CLOUD_SITE].fail_next("launch", error)
    launch(provider, CLOUD)
    eventually(lambda: provider.nodes_for_teardown({}) == [])
    assert world.sites[CLOUD_SITE].list_instances() == []


def test_a_launch_that_could_not_be_written_down_becomes_a_running_node(
    world: World, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = world.open()
    refuse_once(monkeypatch, "mark_launched")
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    eventually(lambda: provider.is_running(node_id))


def test_a_node_that_runs_on_unchanged_is_not_written_again(
    world: World, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[NodeId] = []
    mark_running = Ledger.mark_running

    def count(ledger: Ledger, node_id: NodeId, **said: Any) -> None:
        written.append(node_id)
        mark_running(ledger, node_id, **said)

    monkeypatch.setattr(Ledger, "mark_running", count)
    provider = world.open()
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    eventually(lambda: provider.is_running(node_id))
    seen = len(world.sites[CLOUD_SITE].calls)
    eventually(lambda: len(world.sites[CLOUD_SITE].calls) > seen + 3)
    assert written == [node_id]


def test_a_node_terminated_before_its_launch_was_tried_is_never_launched(
    world: World, eventually: Wait
) -> None:
    provider = world.open()
    cloud = world.sites[CLOUD_SITE]
    cloud.hang()
    launch(provider, CLOUD)
    launch(provider, CLOUD)
    second = provider.non_terminated_nodes({})[1]
    provider.terminate_node(second)
    assert second not in provider.non_terminated_nodes({})
    cloud.release()
    eventually(lambda: len(provider.nodes_for_teardown({})) == 1)
    assert second not in [one.node_ids[0] for one in cloud.calls if one.name == "launch"]


def test_terminating_what_is_gone_or_never_was_is_fine(world: World, eventually: Wait) -> None:
    provider = world.open()
    launch(provider, CLOUD)
    (node_id,) = provider.non_terminated_nodes({})
    for _ in range(2):
        provider.terminate_nodes([node_id, "never-was"])
        eventually(lambda: provider.nodes_for_teardown({}) == [])
    assert provider.is_terminated("never-was")


def test_a_launch_beyond_the_sites_room_is_refused_whole_and_in_rays_form(world: World) -> None:
    """Site onprem holds 3: a head and 2 workers; one more is refused, and so are both of two."""
    provider = world.open()
    launch(provider, HEAD)
    launch(provider, ONPREM)
    with pytest.raises(NodeLaunchException) as caught:
        launch(provider, ONPREM, count=2)
    assert caught.value.category == "SiteFull"
    assert caught.value.description == (
        "site onprem must hold at most 3 nodes; got 2 + 2. "
        "Raise provider.sites.onprem.max_nodes if there is room."
    )
    assert len(provider.non_terminated_nodes({})) == 2
    launch(provider, ONPREM)


def test_a_cluster_gets_one_head_and_a_new_one_only_once_the_old_one_is_going(
    world: World,
) -> None:
    provider = world.open()
    launch(provider, HEAD)
    with pytest.raises(NodeLaunchException, match="HeadExists"):
        launch(provider, HEAD)
    (head,) = provider.non_terminated_nodes(HEAD)
    provider.terminate_node(head)
    launch(provider, HEAD)
    assert provider.non_terminated_nodes(HEAD) != [head]


def test_a_launch_beyond_the_budget_is_refused_with_the_sum(world: World) -> None:
    """Two cloud nodes are 3 $/h; the limit is 2.9 $/h, so one fits and two don't."""
    world.provider_config["limits"]["usd_per_hour"] = 2.9
    provider = world.open()
    with pytest.raises(NodeLaunchException) as caught:
        launch(provider, CLOUD, count=2)
    assert caught.value.category == "BudgetExceeded"
    assert "3.0 $/h would be committed, over the limit of 2.9 $/h" in caught.value.description
    launch(provider, CLOUD)
    with pytest.raises(NodeLaunchException, match="BudgetExceeded"):
        launch(provider, CLOUD)
    launch(provider, ONPREM)


def test_a_node_being_ended_still_costs_but_leaves_its_room(world: World) -> None:
    world.provider_config["limits"]["usd_per_hour"] = 3
    provider = world.open()
    launch(provider, CLOUD, count=2)
    world.sites[CLOUD_SITE].hang()
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    with pytest.raises(NodeLaunchException, match="BudgetExceeded"):
        launch(provider, CLOUD)


def test_every_refusals_category_is_short_enough_for_ray(world: World) -> None:
    provider = world.open()
    with pytest.raises(NodeLaunchException) as caught:
        launch(provider, {**CLOUD, "ray-user-node-type": "unheard_of"})
    assert len(caught.value.category) < 20
    assert "must be in provider.node_types" in caught.value.description


def test_two_providers_never_launch_beyond_the_room_together(world: World) -> None:
    """Six threads over two providers of one ledger ask for the cloud's two places."""
    providers = [world.open(), world.open()]
    refused: list[int] = []

    def ask(number: int) -> None:
        try:
            launch(providers[number % 2], CLOUD)
        except NodeLaunchException:
            refused.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    assert len(providers[0].non_terminated_nodes({})) == 2


def test_ray_loads_the_provider_by_name_from_the_cluster_file(
    world: World, cluster_content: dict[str, Any]
) -> None:
    provider = _get_node_provider(cluster_content["provider"], "test", use_cache=False)
    world.providers.append(provider)
    assert isinstance(provider, HybridNodeProvider)
    assert provider.non_terminated_nodes({}) == []


def test_a_bad_file_is_one_message_for_the_launcher_with_all_mistakes(
    cluster_content: dict[str, Any],
) -> None:
    cluster_content["provider"]["sites"]["cloud"]["max_nodes"] = 0
    cluster_content["provider"]["limits"]["usd_per_hour"] = -1
    with pytest.raises(click.ClickException, match="the cluster file has 2 mistakes"):
        HybridNodeProvider.bootstrap_config(cluster_content)


def test_the_heads_copy_of_the_file_names_the_operators_state_folder(
    world: World, cluster_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`~` means another folder on the head, so it is resolved for it, and only for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster_content["provider"]["state_dir"] = "~/state"
    world.provider_config = cluster_content["provider"]
    assert HybridNodeProvider.bootstrap_config(cluster_content) == cluster_content
    for_head = world.open().prepare_for_head_node(cluster_content)
    assert for_head["provider"]["state_dir"] == str(tmp_path / "state")


def refuse_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the ledger's next call of that name fail, as it does while others hold its lock."""
    original = getattr(Ledger, name)

    def refuse(*_positional: Any, **_options: Any) -> None:
        monkeypatch.setattr(Ledger, name, original)
        raise StateError("database is locked")

    monkeypatch.setattr(Ledger, name, refuse)


def _write_intent(ledger: Ledger, *, owner: str) -> None:
    intent = Intent(
        node_id=NodeId("cloud_gpu-1"),
        site=CLOUD_SITE,
        node_type=NodeTypeName("cloud_gpu"),
        is_head=False,
        usd_per_hour=Decimal("1.5"),
        tags=CLOUD,
        node_config={},
    )
    ledger.open_intents([intent], owner=owner, check=lambda _open: None)
    assert ledger.get(intent.node_id).phase is NodePhase.INTENDED
