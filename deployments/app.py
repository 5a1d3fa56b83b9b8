"""The builders Serve calls: the gateway's application, and one application per model.

Both get the same model entry, so they agree on pools. Building imports no engine; a pool's
replicas do that on their own nodes. The deployments these make live in `gateway_replica` and in
the engines' modules.
"""

from typing import Annotated, Any

from pydantic import Field

from deployments.admission import QueueLimits
from deployments.spec import ModelSpec, PoolSpec, Strict


class GatewayLimits(Strict):
    """Bounds of one gateway replica."""

    body_bytes_max: Annotated[int, Field(gt=0, le=32 * 1024 * 1024)] = Field(
        default=4 * 1024 * 1024, description="Longest request body read."
    )
    waiting_max: Annotated[int, Field(gt=0, le=100_000)] = Field(
        default=256, description="Requests waiting per model, for each lane (owned-only or any)."
    )
    wait_s_max: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=60.0, description="Longest wait for a slot."
    )
    in_time_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the model's objective.ttft_s after which a waiting request counts as "
        "late and comes after all others; none = by arrival alone.",
    )

    def to_queue_limits(self, model: ModelSpec) -> QueueLimits:
        """The part that bounds this model's queue."""
        ratio = self.in_time_ratio
        return QueueLimits(
            waiting_max=self.waiting_max,
            wait_s_max=self.wait_s_max,
            in_time_s=None if ratio is None else ratio * model.objective.ttft_s,
            reading_s_max=model.objective.ttft_s,
        )


class GatewayArgs(Strict):
    """Arguments of the gateway's application in a serve file."""

    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1, strict=False)] = Field(
        description="The models it answers for, the same entries their applications get."
    )
    keys_file: str | None = Field(
        default=None, description="Keys file; by default $TIDEGATE_KEYS_FILE or ~/.tidegate."
    )
    replicas: Annotated[int, Field(gt=0, le=64)] = Field(
        default=1, description="Gateway replicas, on owned nodes only."
    )
    is_on_head: bool = Field(
        default=True,
        description="Keep gateways on the head node. Otherwise each stands on an owned node of its "
        "own, which the proxy reaches only if http_options.host is 0.0.0.0.",
    )
    num_cpus: Annotated[float, Field(ge=0, le=64)] = Field(
        default=0.5, description="CPUs of one gateway replica."
    )
    limits: GatewayLimits = Field(default_factory=GatewayLimits)


def build_gateway(args: dict[str, Any]) -> Any:
    """The gateway's application, for `import_path: deployments.app:build_gateway`."""
    from deployments.gateway_replica import gateway_deployment  # noqa: PLC0415 - imports Ray

    return gateway_deployment(GatewayArgs.model_validate(args))


def build_model(args: dict[str, Any]) -> Any:
    """One model's application, for `import_path: deployments.app:build_model`."""
    from deployments.gateway_replica import model_root  # noqa: PLC0415 - imports Ray

    model = ModelSpec.model_validate(args)
    return model_root(
        model, [_pool_deployment(model, pool).bind(model, pool) for pool in model.pools]
    )


def _pool_deployment(model: ModelSpec, pool: PoolSpec) -> Any:
    if pool.engine == "vllm":
        from deployments.engine import vllm_deployment  # noqa: PLC0415 - imports Ray

        return vllm_deployment(model, pool)
    from deployments.emulated import emulated_deployment  # noqa: PLC0415 - imports Ray

    return emulated_deployment(model, pool)
