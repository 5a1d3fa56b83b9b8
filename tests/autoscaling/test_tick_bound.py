"""A cloud that hangs or fails for ten minutes never holds up a tick, nor what is decided on-prem.

Ray's own reconciler, our scheduler, provider, ledger and brain, in one process without Ray's: every
tick is what the monitor does, less the questions to the GCS. 120 ticks are those of ten minutes.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import (
    CloudInstanceUpdater,
)
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceState,
    NodeState,
    NodeStatus,
    ResourceRequestByCount,
)
from ray.core.generated.common_pb2 import LabelSelectorOperator

from autoscaling.brain_loop import BrainLoop, Sources
from autoscaling.facts_reader import FactsReader
from autoscaling.ray_monitor import ConfigReader
from autoscaling.ray_scheduler import LocalFirstScheduler
from autoscaling.record import SchedulerReport
from autoscaling.settings_reader import SettingsReader
from cluster.backends.fake import FakeBackend
from cluster.errors import BackendError
from cluster.model import SiteName
from cluster.provider import HybridNodeProvider
from deployments.signals import Blackboard

pytestmark = pytest.mark.timeout(300)

TICKS = 120
TICK_S_MAX = 2.0
HEAD_TAGS = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-name": "head"}
CLOUD_CALLS = ("launch", "list_instances", "terminate", "set_tags")


class Memory:
    """The part of the GCS client that the blackboard uses."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def internal_kv_put(self, key: bytes, value: bytes, *_: Any) -> None:
        self.values[key] = value

    def internal_kv_get(self, key: bytes, *_: Any) -> bytes | None:
        return self.values.get(key)

    def internal_kv_keys(self, prefix: bytes, *_: Any) -> list[bytes]:
        return [key for key in self.values if key.startswith(prefix)]

    def internal_kv_del(self, key: bytes, *_: Any) -> None:
        self.values.pop(key, None)


class Cluster:
    """The autoscaler over two fake sites, ticking when told to."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        content["provider"] |= {"state_dir": str(folder), "_role": "head"}
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(content))
        self.onprem, self.cloud = FakeBackend(), FakeBackend()
        sites = {SiteName("onprem"): self.onprem, SiteName("cloud"): self.cloud}
        name = content["cluster_name"]
        self.provider = HybridNodeProvider(
            content["provider"], name, backends=sites, poll_s=0.25, answer_s_max=1.0
        )
        settings = SettingsReader(file)
        self.config = ConfigReader(settings.read_content)
        self.brain = BrainLoop(
            Blackboard(Memory()),
            Sources(settings.read, lambda: self.report, time.time),
        )
        facts = FactsReader(settings.read, lambda: self.brain.notices)
        self.scheduler = LocalFirstScheduler(settings.read, read_facts=facts.read)
        self.adapter = NodeProviderAdapter(self.provider, self.config)
        self.monitor = CloudResourceMonitor()
        self.instances = InstanceManager(
            instance_storage=InstanceStorage(cluster_id="c", storage=InMemoryStorage()),
            instance_status_update_subscribers=[
                CloudInstanceUpdater(cloud_provider=self.adapter),
                self.monitor,
            ],
        )
        self.version = 0
        self.head = self._start_head()

    def _start_head(self) -> str:
        def run_head() -> list[str]:
            # Refused until the site was listed once, a moment after the start; then as a second.
            with contextlib.suppress(NodeLaunchException):
                self.provider.create_node({}, HEAD_TAGS, 1)
            return [
                n for n in self.provider.non_terminated_nodes({}) if self.provider.is_running(n)
            ]

        return str(wait_for(run_head)[0])

    @property
    def report(self) -> SchedulerReport:
        return self.scheduler.last_report or SchedulerReport()

    def launched_at(self, site: FakeBackend) -> int:
        launches = {call.node_ids for call in site.calls if call.name == "launch"}
        return len(launches - {(self.head,)})

    def tick(self, *, onprem_gpus: int, cloud_gpus: int) -> float:
        """One tick of scheduler and brain; returns how long it took."""
        state = self.build_state(onprem_gpus=onprem_gpus, cloud_gpus=cloud_gpus)
        began_s = time.monotonic()
        self.config.refresh_cached_autoscaling_config()
        Reconciler.reconcile(
            instance_manager=self.instances,
            scheduler=self.scheduler,
            cloud_provider=self.adapter,
            cloud_resource_monitor=self.monitor,
            ray_cluster_resource_state=state,
            non_terminated_cloud_instances=self.adapter.get_non_terminated(),
            cloud_provider_errors=self.adapter.poll_errors(),
            autoscaling_config=self.config.get_cached_autoscaling_config(),
        )
        self.brain.tick()
        return time.monotonic() - began_s

    def build_state(self, *, onprem_gpus: int, cloud_gpus: int) -> ClusterResourceState:
        self.version += 1
        head = NodeState(
            node_id=b"h" * 28,
            instance_id=self.head,
            ray_node_type_name="head",
            status=NodeStatus.RUNNING,
            total_resources={"CPU": 1, "node:__internal_head__": 1},
            labels={"site": "onprem"},
        )
        asked = [
            ResourceRequestByCount(
                request=ResourceRequestUtil.make(
                    {"GPU": 1},
                    None,
                    [[("site", LabelSelectorOperator.LABEL_OPERATOR_IN, [site])]],
                ),
                count=count,
            )
            for site, count in (("onprem", onprem_gpus), ("cloud", cloud_gpus))
            if count
        ]
        return ClusterResourceState(
            cluster_resource_state_version=self.version,
            node_states=[head],
            pending_resource_requests=asked,
        )


@pytest.fixture
def cluster(tmp_path: Path, cluster_content: dict[str, Any]) -> Iterator[Cluster]:
    made = Cluster(tmp_path, cluster_content)
    yield made
    made.cloud.release()
    made.provider.close()


def hang(cloud: FakeBackend) -> None:
    cloud.hang()


def fail(cloud: FakeBackend) -> None:
    for name in CLOUD_CALLS:
        for _ in range(20_000):
            cloud.fail_next(name, BackendError("the region is unavailable"))


@pytest.mark.parametrize("go_wrong", [hang, fail], ids=["hangs", "fails"])
def test_each_tick_keeps_its_bound_and_on_prem_goes_on_while_the_cloud_is_away(
    cluster: Cluster, go_wrong: Callable[[FakeBackend], None]
) -> None:
    """Two tasks wait for the cloud throughout; on-prem is asked for 1 GPU, later for 8."""
    wait_for(lambda: any(call.name == "list_instances" for call in cluster.cloud.calls))
    go_wrong(cluster.cloud)
    longest_s = 0.0
    for number in range(TICKS):
        onprem_gpus = 1 if number < TICKS * 2 // 3 else 8
        longest_s = max(longest_s, cluster.tick(onprem_gpus=onprem_gpus, cloud_gpus=2))
        if number == TICKS // 3:
            wait_for(lambda: cluster.launched_at(cluster.onprem) == 1)
    assert longest_s <= TICK_S_MAX
    wait_for(lambda: cluster.launched_at(cluster.onprem) == 2)
    sites = {record.site for record in cluster.provider._ledger.list_all()}
    assert "cloud" in sites, "nothing was ever wanted of the cloud: nothing was tested"


def wait_for(what: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("not within 20 s")
