"""A simulation's scenario, read from the cluster file and the serve file that production reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import autoscaling.simulator
from autoscaling.simulator.engine_model import CHUNK_TOKENS
from autoscaling.simulator.scenario import (
    SPOT_HEAVY,
    Scenario,
    Slo,
    SpotMarket,
    find_gpu_rows,
    find_performance,
)
from cluster.config import parse_cluster_config, read_cluster_file
from cluster.errors import ConfigError
from deployments.spec import ModelSpec, Objective
from infra.serve_file import read_serve_file

_HERE = Path(autoscaling.simulator.__file__).parent
CLUSTER_FILE = _HERE / "cluster.yaml"
SERVE_FILE = _HERE / "serve.yaml"

_IDLE_MINUTES = 5.0


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person chose. `rows` names GPU table rows by accelerator.

    `slo_ttft_s` and `slo_tpot_s` None = as the model's objective in the serve file says.
    """

    cluster_file: Path = CLUSTER_FILE
    serve_file: Path = SERVE_FILE
    model: str | None = None
    rows: Mapping[str, str] = field(default_factory=dict)
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    is_spot_heavy: bool = False
    is_interfering: bool = True
    owned_usd_per_gpu_hour: float = 0.0


def read_scenario(choices: Choices) -> Scenario:
    """Return the scenario.

    Raises:
        ConfigError: a file, the model's name or a pool's GPU is wrong; what to type is said.
    """
    raw = read_cluster_file(choices.cluster_file)
    settings = parse_cluster_config(raw, file=str(choices.cluster_file))
    serve_file = read_serve_file(choices.serve_file, port=8000, keys_file=Path("unused"))
    model = _find_model(serve_file.gateway.models, choices.model)
    objective = _find_objective(model.objective, choices)
    model = model.model_copy(update={"objective": objective})
    gpu_rows = find_gpu_rows(model, choices.rows)
    usual_s = 60 * float(raw.get("idle_timeout_minutes", _IDLE_MINUTES))
    return Scenario(
        model=model,
        performance=find_performance(gpu_rows, is_interfering=choices.is_interfering),
        gpu_rows=gpu_rows,
        settings=settings,
        idle_s={
            name: float(kind.get("idle_timeout_s") or usual_s)
            for name, kind in raw["available_node_types"].items()
        },
        queue=serve_file.gateway.limits.to_queue_limits(model),
        slo=Slo(ttft_s=objective.ttft_s, tpot_s=objective.tpot_s),
        spot=SPOT_HEAVY if choices.is_spot_heavy else SpotMarket(),
        cluster_nodes_max=1 + int(raw["max_workers"]),
        owned_usd_per_gpu_hour=Decimal(str(choices.owned_usd_per_gpu_hour)),
        chunk_tokens=CHUNK_TOKENS if choices.is_interfering else None,
    )


def _find_objective(objective: Objective, choices: Choices) -> Objective:
    """Return the serve file's objective with what was chosen instead."""
    chosen = {"ttft_s": choices.slo_ttft_s, "tpot_s": choices.slo_tpot_s}
    given = {name: value for name, value in chosen.items() if value is not None}
    return objective.model_copy(update=given)


def _find_model(models: tuple[ModelSpec, ...], name: str | None) -> ModelSpec:
    known = {model.name: model for model in models}
    if name is None:
        return models[0]
    if name not in known:
        raise ConfigError(f"--model must be one of {', '.join(known)}; got {name!r}.")
    return known[name]
