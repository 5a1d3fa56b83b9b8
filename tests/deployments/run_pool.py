"""Runs one pool on a one-node Ray of its own and answers questions about it on stdin and stdout.

A process apart, so that the tests' own process never joins a Ray cluster and several of these can
follow each other. Usage: run_pool.py MODEL_JSON; then one JSON answer per question. Ends when
stdin closes.
"""

import asyncio
import json
import os
import sys
from typing import Any

import ray
from ray import serve
from ray._private.state import actors
from ray.serve import RunTarget

from deployments.emulated import emulated_deployment
from deployments.engine import build_llm_config, vllm_deployment
from deployments.spec import ModelSpec, PoolSpec

NODE_LABELS = {"site": "onprem", "owned": "true", "market": "owned", "accelerator": "cpu"}


def main() -> None:
    model = ModelSpec.model_validate_json(sys.argv[1])
    ray.init(
        num_cpus=4,
        num_gpus=1,
        labels=NODE_LABELS,
        include_dashboard=False,
        log_to_driver=bool(os.environ.get("TIDEGATE_TEST_LOGS")),
        _temp_dir=os.environ["TIDEGATE_TEST_RAY_DIR"],
        _node_ip_address="127.0.0.1",
    )
    serve.start(proxy_location="Disabled")
    for pool in model.pools:
        _deploy(model, pool)
    answers = {
        "pools": _describe_all,
        "llm server": _describe_llm_server,
        "delete": _delete_all,
    }
    _answer(_describe_all(model))
    for question in sys.stdin:
        _answer(answers[question.strip()](model))
    ray.shutdown()


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")
    sys.stdout.flush()


def _describe_all(model: ModelSpec) -> dict[str, Any]:
    return {pool.name: asyncio.run(_describe(pool.name)) for pool in model.pools}


def _delete_all(model: ModelSpec) -> dict[str, Any]:
    for pool in model.pools:
        serve.delete(pool.name, _blocking=False)
    return {}


def _describe_llm_server(model: ModelSpec) -> dict[str, Any]:
    from ray.serve.llm import LLMServer  # noqa: PLC0415 - takes tens of seconds

    options = LLMServer.get_deployment_options(build_llm_config(model, model.pools[0]))
    return {
        "bundles": options["placement_group_bundles"],
        "strategy": options["placement_group_strategy"],
    }


def _deploy(model: ModelSpec, pool: PoolSpec) -> None:
    """Deploy one pool as an application of its own, without waiting for its replicas."""
    build = {"vllm": vllm_deployment, "emulated": emulated_deployment}[pool.engine]
    application = build(model, pool).bind(model, pool)
    target = RunTarget(application, name=pool.name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


async def _describe(name: str) -> dict[str, Any]:
    prefix = f"SERVE_REPLICA::{name}#{name}#"
    living = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    replicas = [actor for actor in living if actor["Name"].startswith(prefix)]
    groups = ray.util.placement_group_table().values()
    return {
        "replicas": [
            {
                "id": actor["Name"].removeprefix(prefix),
                "pid": actor["Pid"],
                "metadata": await _read_metadata(name, actor["Name"].removeprefix(prefix)),
            }
            for actor in replicas
        ],
        "placement_groups": [
            {"bundles": list(group["bundles"].values()), "state": group["state"]}
            for group in groups
            if group["name"].startswith(prefix) and group["state"] != "REMOVED"
        ],
    }


async def _read_metadata(name: str, replica_id: str) -> dict[str, Any] | None:
    """What the replica published to whoever holds a handle; None while it isn't ready."""
    handle = serve.get_deployment_handle(name, name)
    try:
        async with asyncio.timeout(5), handle.choose_replica(replica_id=replica_id) as selection:
            return dict(selection.replica_metadata)
    except Exception as exc:  # noqa: BLE001 - whatever Serve raises, the replica isn't ready
        sys.stderr.write(f"not ready: {exc}\n")
        return None


if __name__ == "__main__":
    main()
