"""One scheduler tick with 1,000 nodes and 5,000 pending requests: ours against Ray's, in one run.

    python tests/benchmarks/scheduler_tick.py [--repeats 5] [--profile]

Both get equal requests, built from Ray's own messages. They are timed in turns, so that whatever
else the machine does meets both. Prints the medians, their ratio and the machine; with --profile,
where our time goes. The target, at most 1.1 times Ray's time, is printed beside the figure and not
enforced: how busy the machine is decides too much.
"""

import argparse
import copy
import cProfile
import os
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState, ResourceRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from autoscaling.ray_scheduler import LocalFirstScheduler
from cluster.config import parse_cluster_config, read_cluster_file

NODES = 1000
REQUESTS = 5000
RATIO_TARGET = 1.1
_IN = LabelSelectorOperator.LABEL_OPERATOR_IN
_CLUSTER_FILE = Path(__file__).parents[2] / "cluster" / "local.yaml"


@dataclass(frozen=True)
class Kind:
    """A node type and how many of its nodes exist."""

    name: str
    site: str
    resources: dict[str, int]
    count: int
    usd_per_hour: float | None = None


KINDS = (
    Kind("onprem_large", "onprem", {"CPU": 64, "GPU": 8}, 350),
    Kind("onprem_small", "onprem", {"CPU": 32, "GPU": 4}, 350),
    Kind("onprem_cpu", "onprem", {"CPU": 32}, 100),
    Kind("cloud_one", "cloud", {"CPU": 8, "GPU": 1}, 100, 1.2),
    Kind("cloud_four", "cloud", {"CPU": 32, "GPU": 4}, 99, 4.5),
)


def build_content() -> dict[str, Any]:
    """Return a cluster file with these types, twice as many nodes allowed as exist."""
    content = copy.deepcopy(read_cluster_file(_CLUSTER_FILE))
    head = content["available_node_types"]["head"]
    content["max_workers"] = 2 * NODES
    content["available_node_types"] = {"head": head}
    provider = content["provider"]
    provider["node_types"] = {"head": provider["node_types"]["head"]}
    provider["limits"] = {"launches_per_tick": 100, "usd_per_hour": 5000}
    for site in provider["sites"].values():
        site["max_nodes"] = NODES
    for kind in KINDS:
        owned = kind.usd_per_hour is None
        market = "owned" if owned else "on_demand"
        price = {} if owned else {"usd_per_hour": kind.usd_per_hour}
        provider["node_types"][kind.name] = {"site": kind.site, "market": market, **price}
        labels = {"site": kind.site, "market": market, "owned": str(owned).lower()}
        content["available_node_types"][kind.name] = {
            "resources": kind.resources,
            "node_config": {},
            "labels": labels | ({"accelerator": "cpu"} if "GPU" in kind.resources else {}),
            "min_workers": 0,
            "max_workers": 2 * kind.count,
        }
    return content


def build_instances(content: dict[str, Any]) -> list[AutoscalerInstance]:
    """Return the head and the workers; nine of ten are in use, the rest has room."""
    found = [_build_instance(content, "head", "head", NodeKind.HEAD, is_busy=False)]
    for kind in KINDS:
        for number in range(kind.count):
            name = f"{kind.name}-{number}"
            is_busy = number % 10 != 0
            found.append(
                _build_instance(content, kind.name, name, NodeKind.WORKER, is_busy=is_busy)
            )
    return found


def _build_instance(
    content: dict[str, Any], node_type: str, name: str, kind: Any, *, is_busy: bool
) -> AutoscalerInstance:
    entry = content["available_node_types"][node_type]
    resources = entry["resources"]
    return AutoscalerInstance(
        cloud_instance_id=name,
        ray_node=NodeState(
            node_id=name.encode(),
            total_resources=resources,
            available_resources=dict.fromkeys(resources, 0) if is_busy else resources,
            labels=entry["labels"],
        ),
        im_instance=Instance(
            instance_id=name,
            cloud_instance_id=name,
            node_id=name,
            status=Instance.RAY_RUNNING,
            instance_type=node_type,
            node_kind=kind,
        ),
    )


def build_requests() -> list[ResourceRequest]:
    """Return what waits: GPU workers of three sizes, CPU tasks, and a fifth bound to a site."""
    shapes: list[tuple[dict[str, float], str | None]] = [
        ({"GPU": 1}, None),
        ({"GPU": 1, "CPU": 4}, None),
        ({"GPU": 2, "CPU": 8}, None),
        ({"CPU": 2}, None),
        ({"GPU": 1}, "cloud"),
    ]
    made = [
        ResourceRequestUtil.make(resources, None, [[("site", _IN, [site])]] if site else None)
        for resources, site in shapes
    ]
    return [made[number % len(made)] for number in range(REQUESTS)]


def build_request() -> tuple[dict[str, Any], SchedulingRequest]:
    """Return the cluster file's content and the tick's request."""
    content = build_content()
    config = AutoscalingConfig(content, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        idle_timeout_s=config.get_idle_timeout_s(),
        resource_requests=ResourceRequestUtil.group_by_count(build_requests()),
        current_instances=build_instances(content),
    )
    return content, request


def time_tick(
    schedule: Callable[[SchedulingRequest], SchedulingReply], request: SchedulingRequest
) -> tuple[float, int]:
    """Return the seconds of processor time of one tick, and how many launches it asked for."""
    own_copy = copy.deepcopy(request)
    began_s = time.process_time()
    reply = schedule(own_copy)
    return time.process_time() - began_s, sum(launch.count for launch in reply.to_launch)


def describe_machine() -> str:
    """Return what the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}, load {load}"


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="say where our time goes")
    options = parser.parse_args()
    content, request = build_request()
    settings = parse_cluster_config(content)
    ours = LocalFirstScheduler(lambda: settings)
    stock = ResourceDemandScheduler()
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    launches: dict[str, int] = {}
    for _ in range(options.repeats):
        for name, scheduler in (("ours", ours), ("stock", stock)):
            spent_s, launches[name] = time_tick(scheduler.schedule, request)
            times[name].append(spent_s)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    lines = [
        f"machine: {describe_machine()}",
        f"one tick, {NODES} nodes, {REQUESTS} requests, {options.repeats} repeats, CPU time",
    ]
    for name, spent in times.items():
        span = f"{min(spent):.3f}..{max(spent):.3f}"
        lines.append(f"{name:>6}: median {medians[name]:.3f} s ({span}), {launches[name]} launches")
    ratio = medians["ours"] / medians["stock"]
    lines.append(f" ratio: {ratio:.3f} (target <= {RATIO_TARGET})")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(ours.schedule, copy.deepcopy(request))
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(15)
    return 0


if __name__ == "__main__":
    sys.exit(main())
