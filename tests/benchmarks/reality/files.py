"""The cluster file and the serve file of the comparison, made of the shipped ones.

One owned replica, at most two of a pretended cloud, all with the emulated engine. Whatever the
shipped files say besides (limits, `burst`, Ray's commands) stays as it is.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

import cluster
import deployments

MODEL = "reality"
GPU_ROW = "demo"
"""A slow row: 100 ms and 2 ms more per request and token; prompts from 300 tokens on take more than
0.3 s to their first token, against which the few ms of proxy and gateway are little."""

# Slots go to who has waited for less than three quarters of this. What is left after the longest
# prefill (0.65 s) is 0.6 s for proxy, gateway and a busy machine: less would measure those.
TTFT_S_MAX = 5.0
TPOT_S_MAX = 0.15
_SLOTS = 8
_CLOUD_NODES = 2
# A boot that is mostly waiting varies little with what else the machine does.
_BOOT_S = 6.0


def write_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a cluster file, whose state is kept in `folder` too, and a serve file."""
    cluster_file, serve_file = folder / "cluster.yaml", folder / "serve.yaml"
    shipped = yaml.safe_load((Path(cluster.__file__).parent / "local.yaml").read_text())
    cluster_file.write_text(yaml.safe_dump(shape_cluster(shipped, folder), sort_keys=False))
    shipped = yaml.safe_load(
        (Path(deployments.__file__).parent / "serve-emulated.yaml").read_text()
    )
    serve_file.write_text(yaml.safe_dump(shape_serve(shipped), sort_keys=False))
    return cluster_file, serve_file


def shape_cluster(shipped: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the shipped cluster file with one owned node and a cloud of two."""
    shaped = copy.deepcopy(shipped)
    provider = shaped["provider"]
    provider["state_dir"] = str(folder)
    provider["sites"]["onprem"]["max_nodes"] = 2
    provider["sites"]["cloud"]["max_nodes"] = _CLOUD_NODES
    provider["sites"]["cloud"]["backend"]["boot_s"] = _BOOT_S
    shaped["max_workers"] = 1 + _CLOUD_NODES
    shaped["available_node_types"]["onprem_gpu"].update(min_workers=1, max_workers=1)
    shaped["available_node_types"]["cloud_gpu"].update(min_workers=0, max_workers=_CLOUD_NODES)
    return shaped


def shape_serve(shipped: dict[str, Any]) -> dict[str, Any]:
    """Return the shipped serve file with its first model only, and an objective for the row."""
    shaped = copy.deepcopy(shipped)
    gateway, app = shaped["applications"][:2]
    model = gateway["args"]["models"][0]
    model["name"] = MODEL
    model["objective"] = {"ttft_s": TTFT_S_MAX, "tpot_s": TPOT_S_MAX}
    for pool in model["pools"]:
        most = 1 if pool["owned"] else _CLOUD_NODES
        pool.update(slots=_SLOTS, max_replicas=most, engine_args={"gpu": GPU_ROW})
        pool["min_replicas"] = 1 if pool["owned"] else 0
    gateway["args"]["models"] = [model]
    app.update(name=MODEL, args=copy.deepcopy(model))
    shaped["applications"] = [gateway, app]
    return shaped
