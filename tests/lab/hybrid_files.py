"""The files an operator would write for the lab: cluster/hybrid.yaml and a Serve file, edited.

Only what a person would edit is changed (addresses, keys, ids), and times are shortened; the
commands are those of the file that is shipped.
"""

from pathlib import Path
from typing import Any

import yaml

import cluster
import deployments
from tests.lab.ec2 import REGION, Ec2Network

CLOUD = "aws-us-east-1"
ONPREM_HOSTS = {"head-1": "10.77.0.10", "l40s-1": "10.77.0.21", "l40s-2": "10.77.0.22"}
MODEL = "llama-3.1-8b-emulated"
KEYS_FILE = "/home/root/.tidegate/keys.yaml"
_HEAD = "head-1"
_SHIPPED = Path(cluster.__file__).with_name("hybrid.yaml")
_SHIPPED_SERVE = Path(deployments.__file__).with_name("serve-emulated.yaml")
# A host's memory is this machine's, which all of them share.
_STORE_ARGUMENT = "--object-store-memory=100000000 $TIDEGATE_RAY_START_ARGS"


def build_cluster_file(network: Ec2Network, *, endpoint_url: str) -> dict[str, Any]:
    """Return hybrid.yaml for the lab: a head, two owned GPU hosts, spot and on-demand types."""
    content: dict[str, Any] = yaml.safe_load(_SHIPPED.read_text())
    provider, types = content["provider"], content["available_node_types"]
    for gone in ("onprem_a100", "aws_l40s_x4"):
        del types[gone], provider["node_types"][gone]
    _edit_onprem(provider["sites"]["onprem"])
    _edit_cloud(provider["sites"][CLOUD], network, endpoint_url)
    # Each test's burst is met as if it were the first: what one of them teaches is soon forgotten.
    provider["burst"] |= {
        "history_s": 60.0,
        "cold_start_s": 20.0,
        "up_after_s": 1.0,
        "down_after_s": 8.0,
        "min_lease_s": 10.0,
    }
    provider["limits"]["lease_s_min"] = 20.0
    for node_type in types.values():
        # Emulated engines need no GPU: GPUs are counted, not there.
        gpus = 0 if node_type["resources"]["GPU"] == 0 else 1
        node_type["resources"] = {"CPU": 4, "GPU": gpus}
    for name in ("aws_l40s_spot", "aws_l40s"):
        types[name]["idle_timeout_s"] = 5
        types[name]["node_config"].pop("warm_stopped_max", None)
    types["aws_l40s"]["node_config"]["zones"] = sorted(network.subnets)
    content["auth"]["ssh_user"] = "root"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        content[key] = [
            command.replace("$TIDEGATE_RAY_START_ARGS", _STORE_ARGUMENT) for command in content[key]
        ]
    return content


def build_serve_file(
    *, onprem_slots: int = 2, cloud_slots: int = 8, replicas: int = 2
) -> dict[str, Any]:
    """Return serve-emulated.yaml for one model on the owned site and the cloud's two markets."""
    content: dict[str, Any] = yaml.safe_load(_SHIPPED_SERVE.read_text())
    gateway, model, *_ = content["applications"]
    onprem, cloud = gateway["args"]["models"][0]["pools"]
    # Closed loops on slow engines are always late: in order of arrival each has its turn in 60 s.
    del gateway["args"]["limits"]["in_time_ratio"]
    # Whatever waits is worth a machine: what the cloud costs is the subject of other tests.
    model["args"]["objective"] |= {"ttft_s": 2.0, "usd_per_late_request": 1.0}
    onprem |= {"accelerator": "l40s", "max_replicas": replicas, "slots": onprem_slots}
    spot = {
        **cloud,
        "site": CLOUD,
        "accelerator": "l40s",
        "market": "spot",
        "max_replicas": replicas,
        "slots": cloud_slots,
    }
    on_demand = {**spot, "market": "on_demand"}
    entry = {**model["args"], "pools": [onprem, spot, on_demand]}
    gateway["args"] |= {"models": [entry], "keys_file": KEYS_FILE}
    model["args"] = entry
    content["applications"] = [gateway, model]
    return content


def _edit_onprem(site: dict[str, Any]) -> None:
    site["max_nodes"] = len(ONPREM_HOSTS)
    backend = site["backend"]
    backend["ssh"]["user"] = "root"
    backend["hosts"] = {
        name: {"address": address, "node_type": "head" if name == _HEAD else "onprem_l40s"}
        for name, address in ONPREM_HOSTS.items()
    }
    backend |= {"set_aside_s": 2.0, "set_aside_s_max": 10.0}


def _edit_cloud(site: dict[str, Any], network: Ec2Network, endpoint_url: str) -> None:
    # A rented machine that was announced to go and its replacement are there together.
    site["max_nodes"] = 3
    backend = site["backend"]
    backend["ssh"]["user"] = "root"
    backend |= {
        "region": REGION,
        "subnets": network.subnets,
        "security_groups": [network.security_group],
        "image": network.image,
        "key_name": network.key_name,
        "endpoint_url": endpoint_url,
        "calls_per_s": 20.0,
        "lost_head_s_max": 20.0,
    }
    backend["env"]["RAY_gcs_rpc_server_reconnect_timeout_s"] = "15"
