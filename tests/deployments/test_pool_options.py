"""Serve options of pools: where replicas may run, and what is refused before anything starts."""

import subprocess
import sys
from typing import Any

import pytest

from deployments.emulated import emulated_deployment, read_args
from deployments.engine import build_engine_args, vllm_deployment
from deployments.pool_options import build_selector
from deployments.spec import ModelSpec, PoolSpec


def make_model(*, context_tokens: int = 2048, **pool: Any) -> tuple[ModelSpec, PoolSpec]:
    spec = PoolSpec(
        **{
            "site": "onprem",
            "owned": True,
            "accelerator": "cpu",
            "market": "owned",
            "engine": "vllm",
            "slots": 16,
            "min_replicas": 1,
            "max_replicas": 2,
            **pool,
        }
    )
    model = ModelSpec(name="m", weights="w", context_tokens=context_tokens, pools=(spec,))
    return model, spec


@pytest.mark.parametrize("engine", ["vllm", "emulated"])
def test_the_selector_of_site_and_accelerator_stands_on_every_bundle_and_on_the_actor(
    engine: str,
) -> None:
    model, pool = make_model(engine=engine)
    deployment = {"vllm": vllm_deployment, "emulated": emulated_deployment}[engine](model, pool)
    replica = deployment._replica_config
    assert replica.placement_group_bundles == [{"CPU": 2.0, "GPU": 1.0}]
    selector = {"site": "onprem", "accelerator": pool.accelerator}
    assert replica.placement_group_bundle_label_selector == [selector]
    assert replica.ray_actor_options["label_selector"] == selector


@pytest.mark.parametrize(
    ("market", "more"),
    [("spot", {}), ("on_demand", {"market": "on_demand"}), ("reserved", {"market": "reserved"})],
)
def test_a_spot_pool_runs_on_any_market_and_a_dearer_one_on_its_own(
    market: str, more: dict[str, str]
) -> None:
    """Spot that is sold out falls back to the next tier; what was chosen to stay is not on spot."""
    _, pool = make_model(site="aws", owned=False, market=market)
    assert build_selector(pool) == {"site": "aws", "accelerator": pool.accelerator} | more


def test_a_replica_on_several_gpus_has_a_bundle_and_a_selector_for_each() -> None:
    args = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    model, pool = make_model(accelerator="h100", gpus_per_replica=4, engine_args=args)
    replica = vllm_deployment(model, pool)._replica_config
    assert replica.placement_group_bundles == [
        {"CPU": 2.0, "GPU": 1.0},
        *[{"CPU": 1.0, "GPU": 1.0}] * 3,
    ]
    selector = {"site": "onprem", "accelerator": "h100"}
    assert replica.placement_group_bundle_label_selector == [selector] * 4


@pytest.mark.parametrize("engine", ["vllm", "emulated"])
def test_a_cloud_pool_starts_at_zero_and_drains_for_as_long_as_a_stream_may_take(
    engine: str,
) -> None:
    model, pool = make_model(
        site="cloud", owned=False, market="on_demand", engine=engine, min_replicas=0
    )
    deployment = {"vllm": vllm_deployment, "emulated": emulated_deployment}[engine](model, pool)
    config = deployment._deployment_config
    assert deployment.name == "cloud-cpu-on_demand"
    assert config.autoscaling_config.initial_replicas is None
    assert config.autoscaling_config.min_replicas == 0
    assert config.max_ongoing_requests == 16
    assert config.graceful_shutdown_timeout_s == 600


@pytest.mark.parametrize("engine", ["vllm", "emulated"])
def test_engines_that_share_gpus_are_reserved_a_part_of_each_and_replaced_in_place(
    engine: str,
) -> None:
    """Four engines a GPU: a quarter of each of two GPUs for two workers of vLLM."""
    workers = {"vllm": 2, "emulated": 1}[engine]
    args = {"tensor_parallel_size": 2} if engine == "vllm" else {}
    model, pool = make_model(
        engine=engine,
        accelerator="h100",
        gpus_per_replica=workers,
        gpu_shares=4,
        max_replicas=1,
        engine_args=args,
    )
    deployment = {"vllm": vllm_deployment, "emulated": emulated_deployment}[engine](model, pool)
    bundles = deployment._replica_config.placement_group_bundles
    assert bundles == [{"CPU": 2.0, "GPU": 0.25}, {"CPU": 1.0, "GPU": 0.25}][:workers]
    assert deployment._deployment_config.max_surge_percent == 0


def test_a_vllm_engine_that_shares_its_gpu_is_built_to_sleep() -> None:
    shared = make_model(accelerator="h100", gpu_shares=2, max_replicas=1)
    alone = make_model(accelerator="h100")
    assert build_engine_args(*shared)["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in build_engine_args(*alone)


def test_the_engine_gets_its_limits_from_the_model_and_the_pool() -> None:
    model, pool = make_model(engine_args={"enforce_eager": False})
    assert build_engine_args(model, pool) == {
        "dtype": "float32",
        "enable_prompt_tokens_details": True,
        "enforce_eager": False,
        "max_model_len": 2048,
        "max_num_seqs": 16,
    }


def test_engine_arguments_that_are_decided_elsewhere_are_refused() -> None:
    model, pool = make_model(engine_args={"max_num_seqs": 3, "model": "x"})
    with pytest.raises(ValueError, match="must not name max_num_seqs, model"):
        vllm_deployment(model, pool)


def test_a_gpu_replica_must_use_all_its_gpus() -> None:
    model, pool = make_model(accelerator="h100", gpus_per_replica=4)
    with pytest.raises(ValueError, match="must equal gpus_per_replica; got 1 and 4"):
        vllm_deployment(model, pool)


def test_an_emulated_pool_takes_the_demo_row_unless_told_otherwise() -> None:
    assert read_args(*make_model(engine="emulated"))[0].gpu == "demo"


@pytest.mark.parametrize(
    ("engine_args", "reason"),
    [
        ({"gpu": "h200"}, "gpu must be one of"),
        ({"enforce_eager": True}, "enforce_eager"),
        ({"answer_tokens": 0}, "answer_tokens"),
        ({"gpu": "slow"}, "must fit into the KV memory of slow; got 9000 > 8192"),
    ],
    ids=["row", "key", "value", "memory"],
)
def test_wrong_arguments_of_an_emulated_pool_are_refused(
    engine_args: dict[str, Any], reason: str
) -> None:
    model, pool = make_model(engine="emulated", context_tokens=9000, engine_args=engine_args)
    with pytest.raises(ValueError, match=reason):
        emulated_deployment(model, pool)


def test_whoever_builds_pools_imports_neither_vllm_nor_torch() -> None:
    """The build task and emulated replicas stay small; shown in a process of its own."""
    code = (
        "import sys, deployments.engine, deployments.emulated; "
        "sys.exit(sorted({'vllm', 'torch', 'transformers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("is_in_place", "percent"), [(False, 25), (True, 0)])
def test_a_replacement_comes_before_the_old_one_goes_unless_the_pool_says_otherwise(
    *, is_in_place: bool, percent: int
) -> None:
    model, pool = make_model(engine="emulated", replaces_in_place=is_in_place)
    assert emulated_deployment(model, pool)._deployment_config.max_surge_percent == percent
