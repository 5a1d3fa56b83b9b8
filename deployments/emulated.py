"""The emulated replica of a pool: the same contract as the vLLM one, without a model.

It answers with timing and memory limits of a row of the GPU table, and says that it is emulated
in a header, in `system_fingerprint` and in the first word of every answer.
"""

import logging
from typing import Annotated, Any

from pydantic import Field, ValidationError
from ray import serve
from ray.serve import Deployment

from deployments.emulated_app import build_emulated_app
from deployments.emulated_wire import Served
from deployments.gpu_performance import PerformanceRow, find_row
from deployments.node import read_identity, read_node_address
from deployments.pool_options import build_bundles, build_pool_options
from deployments.replica_http import ReplicaServer
from deployments.slots import SlotKeeper
from deployments.spec import EMULATED_GPU_ROW, ModelSpec, PoolSpec, Strict
from deployments.warm_replica import join_warm

# Serve configures handlers for this logger and its children only.
logger = logging.getLogger("ray.serve.tidegate.emulated")

_STOP_GRACE_S = 2.0


class EmulatedArgs(Strict):
    """The `engine_args` of an emulated pool."""

    gpu: str = Field(
        default=EMULATED_GPU_ROW, description="Row of the GPU table that gives speed and memory."
    )
    answer_tokens: Annotated[int, Field(gt=0)] = Field(
        default=64, description="Length of an answer to a request that names no limit."
    )
    wake_s: Annotated[float, Field(ge=0)] = Field(
        default=3.0,
        description="Seconds from sleep to the first request it takes; about what 16 GB of weights "
        "need from the node's memory into a GPU's over PCIe, with what an engine does besides.",
    )


def emulated_deployment(model: ModelSpec, pool: PoolSpec) -> Deployment:
    """The Serve deployment of an emulated pool, ready for `.bind(model, pool)`.

    Raises:
        ValueError: the engine arguments are unknown or contradict the model or the pool.
    """
    read_args(model, pool)
    options = build_pool_options(pool, bundles=build_bundles(pool, workers=1))
    return serve.deployment(EmulatedReplica).options(**options)


def read_args(model: ModelSpec, pool: PoolSpec) -> tuple[EmulatedArgs, PerformanceRow]:
    """The pool's arguments and the row they name.

    Raises:
        ValueError: they are unknown, or the row's memory can't hold one full context.
    """
    try:
        args = EmulatedArgs.model_validate(pool.engine_args)
        row = find_row(args.gpu)
    except (ValidationError, ValueError) as exc:
        raise ValueError(f"pool {pool.name}: engine_args of an emulated pool: {exc}") from exc
    if row.kv_capacity_tokens < model.context_tokens:
        raise ValueError(
            f"pool {pool.name}: context_tokens of model {model.name} must fit into the KV memory "
            f"of {args.gpu}; got {model.context_tokens} > {row.kv_capacity_tokens} tokens."
        )
    return args, row


class EmulatedReplica:
    """One emulated engine of a pool. Constructing it returns when it answers over HTTP."""

    async def __init__(self, model: ModelSpec, pool: PoolSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        args, row = read_args(model, pool)
        self._warm = await join_warm(pool)
        if self._warm is not None:
            await self._warm.wait_for_turn()
        served = Served(
            model=model.name,
            context_tokens=model.context_tokens,
            answer_tokens=args.answer_tokens,
        )
        app = build_emulated_app(
            row.to_performance(), served=served, slots=pool.slots, wake_s=args.wake_s
        )
        self._engine = app.engine
        identity = read_identity(pool)
        self._slots = SlotKeeper(app if self._warm is None else self._warm.guard(app))
        self._slots.start()
        self._http = ReplicaServer(self._slots, identity=identity, host=read_node_address())
        self._http.start()
        if self._warm is not None:
            self._warm.start(self._engine)
        logger.info(
            "emulated replica answers: pool=%s site=%s gpu=%s (%s)",
            identity.pool,
            identity.site,
            args.gpu,
            row.kind,
        )

    def record_replica_metadata(self) -> dict[str, Any]:
        """Where and as who this replica answers; Serve publishes it to routers once."""
        return self._http.describe()

    def record_routing_stats(self) -> dict[str, float]:
        """How busy the engine is; Serve polls it."""
        stats = self._engine.describe()
        return stats if self._warm is None else {**stats, "awake": float(self._warm.is_awake)}

    async def check_health(self) -> None:
        """Raise when the HTTP server is dead, so that Serve replaces the replica."""
        self._http.raise_if_stopped()
        if self._warm is not None:
            self._warm.raise_if_stopped()

    async def __del__(self) -> None:
        """Stop answering; Serve calls this after the drain."""
        if hasattr(self, "_http"):
            await self._http.stop(grace_s=_STOP_GRACE_S)
        if hasattr(self, "_warm") and self._warm is not None:
            await self._warm.stop()
