"""The model of a serve file's entry: what it refuses and where it looks for weights."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import deployments
from deployments.app import GatewayArgs
from deployments.spec import ModelSpec, resolve_weights


def entry(**pool: Any) -> dict[str, Any]:
    """A model entry with one boring owned pool, changed by `pool`."""
    base = {
        "site": "onprem",
        "owned": True,
        "accelerator": "cpu",
        "market": "owned",
        "engine": "vllm",
        "slots": 4,
        "min_replicas": 1,
        "max_replicas": 2,
    }
    return {"name": "m", "weights": "w", "context_tokens": 64, "pools": [base | pool]}


def test_a_pool_is_named_by_site_accelerator_and_market() -> None:
    assert ModelSpec.model_validate(entry()).pools[0].name == "onprem-cpu-owned"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"typo": 1}, "Extra inputs"),
        ({"slots": "4"}, "valid integer"),
        ({"slots": 0}, "greater than 0"),
        ({"min_replicas": 3}, "min_replicas must be at most max_replicas; got 3 > 2"),
        ({"market": "spot"}, "`owned` exactly when owned is true"),
        ({"owned": False}, "`owned` exactly when owned is true"),
        ({"engine": "magic"}, "'vllm' or 'emulated'"),
        ({"gpu_shares": 2}, "min_replicas must equal max_replicas; got 1 and 2"),
        ({"gpu_shares": 2, "max_replicas": 1}, "sleep mode, which needs a GPU"),
        ({"gpu_shares": 2, "gpus_per_replica": 0}, "needs owned GPUs; got owned=true"),
        ({"gpu_shares": 2, "owned": False, "market": "spot"}, "needs owned GPUs; got owned=false"),
        ({"gpu_row": "h200-8b"}, "gpu_row must be one of .*; got h200-8b. Leave it out"),
    ],
)
def test_a_wrong_pool_is_refused_with_its_rule(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelSpec.model_validate(entry(**change))


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({}, None),
        ({"gpu_row": "l40s-8b"}, "l40s-8b"),
        ({"engine": "emulated"}, "demo"),
        ({"engine": "emulated", "engine_args": {"gpu": "slow"}}, "slow"),
        ({"engine": "emulated", "engine_args": {"gpu": "slow"}, "gpu_row": "instant"}, "instant"),
        ({"engine": "emulated", "engine_args": {"gpu": ["slow"]}}, None),
    ],
    ids=["vllm", "named", "emulated", "emulated row", "named goes first", "no name of a row"],
)
def test_a_pool_knows_which_row_tells_its_speed(change: dict[str, Any], row: str | None) -> None:
    """An emulated engine is as fast as its row; of a real one nothing is assumed."""
    assert ModelSpec.model_validate(entry(**change)).pools[0].speed_row == row


def test_two_pools_of_one_name_are_refused() -> None:
    twice = entry()
    twice["pools"] *= 2
    with pytest.raises(ValidationError, match="must differ in site, accelerator or market"):
        ModelSpec.model_validate(twice)


def test_a_site_is_owned_or_not_but_never_both() -> None:
    both = entry()
    both["pools"].append(both["pools"][0] | {"owned": False, "market": "spot"})
    with pytest.raises(ValidationError, match="must agree on `owned`"):
        ModelSpec.model_validate(both)


def test_only_emulated_pools_do_without_weights() -> None:
    assert ModelSpec.model_validate(entry(engine="emulated") | {"weights": None}).weights is None
    with pytest.raises(ValidationError, match="needs `weights`"):
        ModelSpec.model_validate(entry() | {"weights": None})


def test_weights_are_looked_up_in_the_models_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS_DIR", "/models")
    assert resolve_weights("tiny") == Path("/models/tiny")
    assert resolve_weights("/elsewhere/tiny") == Path("/elsewhere/tiny")


def test_the_models_folder_does_not_follow_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_MODELS_DIR", raising=False)
    monkeypatch.setenv("HOME", "/nodes/n1")
    assert not str(resolve_weights("tiny")).startswith("/nodes/n1")


@pytest.mark.parametrize("name", ["serve.yaml", "serve-emulated.yaml", "serve-hybrid.yaml"])
def test_a_shipped_serve_file_gives_the_gateway_and_each_model_the_same_entry(name: str) -> None:
    text = Path(deployments.__path__[0], name).read_text()
    applications = {one["name"]: one for one in yaml.safe_load(text)["applications"]}
    gateway = GatewayArgs.model_validate(applications.pop("gateway")["args"])
    assert [model.name for model in gateway.models] == list(applications)
    for model in gateway.models:
        assert ModelSpec.model_validate(applications[model.name]["args"]) == model
        assert applications[model.name]["route_prefix"] is None
