"""What a model is and where it may run: the strict model of a serve file's entry.

The gateway and the model's own application are built from the same entry, so they can't disagree
on sites, slots or limits. Nothing here imports Ray or an engine.
"""

import os
import pwd
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.gpu_performance import load_rows

MODELS_DIR_VARIABLE = "TIDEGATE_MODELS_DIR"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Market = Literal["owned", "reserved", "spot", "on_demand"]

EMULATED_GPU_ROW = "demo"
"""The row an emulated pool takes its speed from unless its engine_args name another."""


class Strict(BaseModel):
    """Settings that refuse unknown keys and conversions: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PoolSpec(Strict):
    """One pool: identical replicas of a model on one site, accelerator and market."""

    site: Name = Field(description="Name of the site; the node label `site` its replicas demand.")
    owned: bool = Field(description="Whether the site's hardware is paid for already.")
    accelerator: Name = Field(description="Accelerator of its nodes, for example cpu or h100.")
    market: Market = Field(description="How its nodes are paid for.")
    engine: Literal["vllm", "emulated"] = Field(description="Engine its replicas run.")
    gpus_per_replica: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Logical GPUs of one replica."
    )
    slots: Annotated[int, Field(gt=0, le=4096)] = Field(
        description="Requests one replica answers at once."
    )
    reading_tokens_max: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description="A replica that a gateway gave this many prompt tokens to read gets no further "
        "request from it until some are answered with a first token; none = only slots count.",
    )
    min_replicas: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0, description="Replicas kept without any load."
    )
    max_replicas: Annotated[int, Field(gt=0, le=1024)] = Field(
        description="Replicas never exceeded."
    )
    replaces_in_place: bool = Field(
        default=False,
        description="When a deploy changes its replicas: false = a replacement answers before an "
        "old one stops, which needs GPUs for one more in four; true = an old one stops first.",
    )
    gpu_shares: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1,
        description="Engines, of this and other pools, that share a GPU; one of them is awake, the "
        "others sleep without GPU memory (docs/warm.md). 1 = its GPUs are its own.",
    )
    gpu_row: str | None = Field(
        default=None,
        description="Row of deployments/gpu_performance.yaml that tells one replica's speed; none "
        "= the emulated engine's own, else only what is measured.",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the engine, checked by the engine."
    )

    @property
    def name(self) -> str:
        """The pool's name, which is also its Serve deployment's name."""
        return f"{self.site}-{self.accelerator}-{self.market}"

    @property
    def speed_row(self) -> str | None:
        """The row of the GPU table that tells its speed; None = only what is measured."""
        if self.gpu_row is not None or self.engine != "emulated":
            return self.gpu_row
        # One that isn't in the table is refused where the replica is built, with the names there.
        named = self.engine_args.get("gpu", EMULATED_GPU_ROW)
        return next((row for row in load_rows() if row == named), None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpu_row is not None and self.gpu_row not in load_rows():
            raise ValueError(
                f"pool {self.name}: gpu_row must be one of {', '.join(sorted(load_rows()))}; "
                f"got {self.gpu_row}. Leave it out where no row fits."
            )
        if self.gpu_shares > 1:
            self._check_shares()
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"pool {self.name}: min_replicas must be at most max_replicas; "
                f"got {self.min_replicas} > {self.max_replicas}."
            )
        if self.owned != (self.market == "owned"):
            raise ValueError(
                f"pool {self.name}: market must be `owned` exactly when owned is true; got owned="
                f"{str(self.owned).lower()} and market={self.market}. Residency rests on `owned`."
            )
        return self

    def _check_shares(self) -> None:
        """Raise ValueError where engines can't sleep and wake in turns."""
        if not self.owned or self.gpus_per_replica < 1:
            raise ValueError(
                f"pool {self.name}: gpu_shares above 1 needs owned GPUs; got owned="
                f"{str(self.owned).lower()} and gpus_per_replica={self.gpus_per_replica}. "
                "A rented node is sent home instead of put to sleep."
            )
        if self.min_replicas != self.max_replicas:
            raise ValueError(
                f"pool {self.name}: with gpu_shares above 1, min_replicas must equal max_replicas; "
                f"got {self.min_replicas} and {self.max_replicas}. All its engines are started "
                "once, and sleep and wake from then on."
            )
        if self.engine == "vllm" and self.accelerator == "cpu":
            raise ValueError(
                f"pool {self.name}: gpu_shares above 1 needs vLLM's sleep mode, which needs a GPU; "
                "got accelerator cpu. Use gpu_shares 1, or the emulated engine."
            )


class Objective(Strict):
    """What each request to a model is promised, and what it costs when that isn't kept."""

    ttft_s: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="Seconds from arrival to the first token, waiting included."
    )
    tpot_s: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="Seconds per token after the first, on average over an answer."
    )
    attainment: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.99, description="Share (0-1) of the requests that this is promised to."
    )
    usd_per_late_request: Annotated[float, Field(ge=0)] = Field(
        default=0.02,
        description="What a late answer beyond that share costs you, in dollars: the brain rents a "
        "node when the late answers it would spare cost more than the node does.",
    )


class ModelSpec(Strict):
    """One model clients can name, with the pools that answer for it."""

    name: Name = Field(description="What clients call it; also its Serve application's name.")
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Folder of the weights: absolute, or a name inside the models folder. "
        "Only emulated pools do without.",
    )
    context_tokens: Annotated[int, Field(gt=0)] = Field(
        description="Longest prompt plus answer, in tokens."
    )
    objective: Objective = Field(
        default=Objective(), description="What is promised, and what a late answer costs."
    )
    pools: Annotated[tuple[PoolSpec, ...], Field(min_length=1, strict=False)] = Field(
        description="Pools, at most one per site, accelerator and market."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(
                f"model {self.name}: pools must differ in site, accelerator or market; got {names}."
            )
        for site in {pool.site for pool in self.pools}:
            if len({pool.owned for pool in self.pools if pool.site == site}) > 1:
                raise ValueError(
                    f"model {self.name}: pools of site {site} must agree on `owned`. "
                    "A site is owned or it is not."
                )
        if self.weights is None and any(pool.engine == "vllm" for pool in self.pools):
            raise ValueError(f"model {self.name}: a vllm pool needs `weights`; got none.")
        return self


def resolve_weights(weights: str) -> Path:
    """The folder that holds `weights`, unchecked: only the replica's node must have it.

    A relative name is looked up in $TIDEGATE_MODELS_DIR, else in the cache folder of the user this
    process runs as. $HOME doesn't serve: every local node has one of its own.
    """
    path = Path(weights)
    return path if path.is_absolute() else models_dir() / path


def models_dir() -> Path:
    """The folder that holds the weights of all models on this machine."""
    configured = os.environ.get(MODELS_DIR_VARIABLE)
    if configured:
        return Path(configured)
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "tidegate" / "models"
