"""Each rule for SSH and AWS sites alone, on the shipped production file with one thing changed.

Every rule's exact words are in golden/remote_mistakes.txt.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config import parse_cluster_config, read_cluster_file
from cluster.errors import ConfigError

HYBRID_FILE = Path(__file__).parents[2] / "cluster" / "hybrid.yaml"
RAW = read_cluster_file(HYBRID_FILE)

Change = Callable[[dict[str, Any]], None]


def find_keys(change: Change) -> list[str]:
    raw = copy.deepcopy(RAW)
    change(raw)
    with pytest.raises(ConfigError) as caught:
        parse_cluster_config(raw)
    return [line.split(" must ")[0].strip() for line in str(caught.value).splitlines()[1:]]


def onprem(raw: dict[str, Any]) -> dict[str, Any]:
    backend: dict[str, Any] = raw["provider"]["sites"]["onprem"]["backend"]
    return backend


def test_a_host_that_is_gone_from_the_file_lowers_what_its_type_may_keep() -> None:
    def change(raw: dict[str, Any]) -> None:
        del onprem(raw)["hosts"]["l40s-2"]

    key = "available_node_types.onprem_l40s"
    assert find_keys(change) == [f"{key}.max_workers", f"{key}.min_workers"]


def test_the_head_needs_a_host_of_its_type() -> None:
    def change(raw: dict[str, Any]) -> None:
        del onprem(raw)["hosts"]["head-1"]

    assert find_keys(change) == ["available_node_types.head"]


def test_worker_ports_may_not_hold_another_port() -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["provider"]["ports"]["workers"] = 44000

    keys = find_keys(change)
    assert keys == ["provider.ports.autoscaler_metrics", "provider.ports.dashboard_metrics"]


def test_a_key_of_a_host_must_be_one_that_the_head_will_have() -> None:
    def change(raw: dict[str, Any]) -> None:
        onprem(raw)["hosts"]["a100-1"]["private_key"] = "~/.ssh/other"

    assert find_keys(change) == ["provider.sites.onprem.backend.hosts.a100-1.private_key"]


def test_a_key_that_file_mounts_bring_is_accepted() -> None:
    raw = copy.deepcopy(RAW)
    onprem(raw)["hosts"]["a100-1"]["private_key"] = "~/.ssh/other"
    raw["file_mounts"]["~/.ssh/other"] = "~/.ssh/other"
    parse_cluster_config(raw)


def test_the_copy_on_the_head_is_valid_too() -> None:
    """Ray renames the key there and mounts every file from where it has put it itself."""
    raw = copy.deepcopy(RAW)
    raw["auth"]["ssh_private_key"] = "~/ray_bootstrap_key.pem"
    for site in raw["provider"]["sites"].values():
        site["backend"]["ssh"]["private_key"] = "~/ray_bootstrap_key.pem"
    raw["file_mounts"] = {target: target for target in raw["file_mounts"]}
    raw["no_restart"] = False
    parse_cluster_config(raw)
