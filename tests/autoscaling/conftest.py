"""The cluster the autoscaling tests share: 4-GPU on-prem nodes, 1-GPU cloud nodes, both at zero."""

import copy
from typing import Any

import pytest
from hypothesis import settings

# Examples are the same at every run, and a busy machine doesn't fail a law for its speed.
settings.register_profile("tidegate", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("tidegate")

_NODE = {"node_config": {}, "min_workers": 0}
_CONTENT: dict[str, Any] = {
    "cluster_name": "tidegate-test",
    "max_workers": 4,
    "idle_timeout_minutes": 5,
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
            "cloud_dear": {"site": "cloud", "market": "on_demand", "usd_per_hour": 90},
        },
        "limits": {"launches_per_tick": 3, "usd_per_hour": 4.0},
    },
    "available_node_types": {
        "head": {
            "resources": {"CPU": 1},
            "node_config": {},
            "labels": {"site": "onprem", "market": "owned", "owned": "true"},
        },
        "onprem_gpu": {
            **_NODE,
            "max_workers": 2,
            "resources": {"CPU": 4, "GPU": 4},
            "labels": {"site": "onprem", "market": "owned", "owned": "true", "accelerator": "cpu"},
        },
        "cloud_gpu": {
            **_NODE,
            "max_workers": 2,
            "idle_timeout_s": 5,
            "resources": {"CPU": 4, "GPU": 1},
            "labels": {
                "site": "cloud",
                "market": "on_demand",
                "owned": "false",
                "accelerator": "cpu",
            },
        },
        "cloud_dear": {
            **_NODE,
            "max_workers": 2,
            "resources": {"CPU": 4, "GPU": 8, "dear": 1},
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
    "head_start_ray_commands": ["true"],
    "worker_start_ray_commands": ["true"],
}


@pytest.fixture
def cluster_content() -> dict[str, Any]:
    """The content of a cluster file without mistakes; each test's own copy."""
    return copy.deepcopy(_CONTENT)
