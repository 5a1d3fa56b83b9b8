"""Builders with boring defaults for the tests of cluster/."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.model import ClusterName, LaunchSpec, NodeId, NodeTypeName, SiteName
from tests.cluster.aws_rig import ec2, moto_url  # noqa: F401 - fixtures
from tests.cluster.ledger_places import ledger_place  # noqa: F401 - fixtures
from tests.cluster.postgresql_server import postgresql_server  # noqa: F401 - fixtures


def build_cluster_content(**provider: Any) -> dict[str, Any]:
    """Return a small valid cluster file's content: an owned site, a cloud, three node types."""
    return {
        "cluster_name": "test",
        "max_workers": 4,
        "head_node_type": "head",
        "provider": {
            "type": "external",
            "module": "cluster.provider.HybridNodeProvider",
            "state_dir": "/nonexistent/tidegate",
            "sites": {
                "onprem": {"owned": True, "max_nodes": 3, "backend": {"kind": "fake"}},
                "cloud": {"owned": False, "max_nodes": 2, "backend": {"kind": "fake"}},
            },
            "node_types": {
                "head": {"site": "onprem", "market": "owned"},
                "onprem_gpu": {"site": "onprem", "market": "owned"},
                "cloud_gpu": {"site": "cloud", "market": "on_demand", "usd_per_hour": 1.5},
            },
            "limits": {"launches_per_tick": 2, "usd_per_hour": 4},
            **provider,
        },
        "available_node_types": {
            "head": {
                "resources": {"CPU": 2},
                "node_config": {},
                "labels": {"site": "onprem", "market": "owned", "owned": "true"},
            },
            "onprem_gpu": {
                "max_workers": 2,
                "resources": {"CPU": 2, "GPU": 1},
                "node_config": {},
                "labels": {
                    "site": "onprem",
                    "market": "owned",
                    "owned": "true",
                    "accelerator": "cpu",
                },
            },
            "cloud_gpu": {
                "max_workers": 2,
                "resources": {"CPU": 2, "GPU": 1},
                "node_config": {},
                "labels": {
                    "site": "cloud",
                    "market": "on_demand",
                    "owned": "false",
                    "accelerator": "cpu",
                },
            },
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": ["ray start --head"],
        "worker_start_ray_commands": ["ray start"],
    }


@pytest.fixture
def cluster_content() -> dict[str, Any]:
    return build_cluster_content()


@dataclass
class ManualClock:
    """A clock that stands still until told."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def build_spec(node_id: str = f"n-1-{os.getpid()}", **changes: Any) -> LaunchSpec:
    """Return what is launched in tests, a worker at site cloud."""
    values: dict[str, Any] = {
        "node_id": NodeId(node_id),
        "cluster": ClusterName("test"),
        "site": SiteName("cloud"),
        "node_type": NodeTypeName("cloud_gpu"),
        "is_head": False,
        "tags": {"ray-node-type": "worker", "ray-user-node-type": "cloud_gpu"},
        "node_config": {"instance": "x"},
    }
    return LaunchSpec(**{**values, **changes})


SpecBuilder = Callable[..., LaunchSpec]


@pytest.fixture
def new_spec() -> SpecBuilder:
    return build_spec


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return a wait for what another thread or process does; it fails after 20 s."""

    def wait(is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < deadline_s, "it never became so"
            time.sleep(0.01)

    return wait
