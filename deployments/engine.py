"""The vLLM replica of a pool: LLMServer's engine behind an HTTP server of our own.

Serve starts, places, health-checks and drains the replica; tokens never pass through Ray. The
engine's processes carry this replica's mark and end with it, however it ends.

vLLM and `ray.serve.llm` are imported inside the replica only: that import takes tens of seconds,
and whoever builds or deploys the application needs none of it.
"""

import logging
import os
import secrets
import threading
import time
from typing import Any

from ray import serve
from ray.serve import Deployment

from cluster.processes import KEEP_MARKS_READABLE, MARK_REPLICA, start_reaper
from deployments.node import read_identity, read_node_address
from deployments.pool_options import build_bundles, build_pool_options
from deployments.replica_http import ReplicaServer
from deployments.slots import SlotKeeper
from deployments.spec import ModelSpec, PoolSpec, models_dir, resolve_weights
from deployments.warm_replica import join_warm

# Serve configures handlers for this logger and its children only.
logger = logging.getLogger("ray.serve.tidegate.engine")

_STOP_GRACE_S = 5.0
_ENGINE_POLL_S = 0.25
_LAST_ANSWERS_S = 2.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # A forked engine would show its parent's environment, without the mark it is found by.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# Usage says what of a prompt wasn't read again: without it a pool's capacity is guessed too low.
_DEFAULT_ENGINE_ARGS = {"enable_prompt_tokens_details": True}
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# Without AMX, bfloat16 takes 2.4 times as long as float32. Compiling saves 15 % of the CPU time of
# a token and costs minutes at a first start; a pool that lives for long may turn it on.
_CPU_ENGINE_ARGS = {"dtype": "float32", "enforce_eager": True}
_OWN_ENGINE_ARGS = frozenset({"max_model_len", "max_num_seqs", "model", "served_model_name"})


def vllm_deployment(model: ModelSpec, pool: PoolSpec) -> Deployment:
    """The Serve deployment of a vLLM pool, ready for `.bind(model, pool)`.

    Raises:
        ValueError: the engine arguments contradict the model or the pool.
    """
    workers = count_workers(pool)
    build_engine_args(model, pool)
    options = build_pool_options(pool, bundles=build_bundles(pool, workers=workers))
    return serve.deployment(VllmReplica).options(**options)


class VllmReplica:
    """One engine of a pool. Constructing it returns when the engine answers over HTTP."""

    async def __init__(self, model: ModelSpec, pool: PoolSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        self._reaper = _own_engine_processes()
        self._is_stopping = False
        _set_environment(pool)
        identity = read_identity(pool)
        self._warm = await join_warm(pool)
        if self._warm is not None:
            await self._warm.wait_for_turn()
        self._llm_server = await _start_llm_server(model, pool)
        self._stats = _watch_scheduler(self._engine_client)
        app = await self._llm_server.engine.build_asgi_app()
        self._slots = SlotKeeper(app if self._warm is None else self._warm.guard(app))
        self._slots.start()
        self._http = ReplicaServer(self._slots, identity=identity, host=read_node_address())
        self._http.start()
        if self._warm is not None:
            self._warm.start(SleepingVllm(self._engine_client))
        threading.Thread(target=self._end_with_engine, name="engine-watch", daemon=True).start()
        logger.info("replica answers: pool=%s site=%s", identity.pool, identity.site)

    @property
    def _engine_client(self) -> Any:
        return self._llm_server.engine._engine_client  # noqa: SLF001  LLMServer offers no door to it

    def record_replica_metadata(self) -> dict[str, Any]:
        """Where and as who this replica answers; Serve publishes it to routers once."""
        return self._http.describe()

    def record_routing_stats(self) -> dict[str, float]:
        """How busy the engine is; Serve polls it."""
        stats = self._stats.to_dict()
        return stats if self._warm is None else {**stats, "awake": float(self._warm.is_awake)}

    async def check_health(self) -> None:
        """Raise when the engine or the HTTP server is dead, so that Serve replaces the replica."""
        self._http.raise_if_stopped()
        if self._warm is not None:
            self._warm.raise_if_stopped()
        await self._llm_server.check_health()

    async def __del__(self) -> None:
        """Stop answering, then end the engine; Serve calls this after the drain."""
        self._is_stopping = True
        if hasattr(self, "_http"):
            await self._http.stop(grace_s=_STOP_GRACE_S)
        if hasattr(self, "_llm_server"):
            self._engine_client.shutdown()
        if hasattr(self, "_warm") and self._warm is not None:
            await self._warm.stop()

    def _end_with_engine(self) -> None:
        """End this process soon after its engine died; runs in a thread of its own.

        The port closes first, so new requests go elsewhere, and those under way get the engine's
        error. Then the process goes: a dead actor is replaced at the next health check, while
        three failed checks take longer, and a dead engine's clean-up can hold the event loop, and
        with it every answer to Serve, for half a minute. The reaper ends what the engine left.
        """
        while not self._engine_client.errored:
            time.sleep(_ENGINE_POLL_S)
        if self._is_stopping:
            return
        self._http.begin_stop()
        logger.critical("engine died; ending replica so that Serve replaces it")
        time.sleep(_LAST_ANSWERS_S)
        os._exit(1)


class SleepingVllm:
    """vLLM's sleep mode as `warm_replica.SleepingEngine`: weights wait in the node's memory.

    The engine's own HTTP paths for it stay closed: vLLM serves them in its development mode only,
    with others that read and change an engine.
    """

    def __init__(self, engine_client: Any) -> None:
        self._engine_client = engine_client

    async def sleep(self) -> None:
        """Free the GPU's memory."""
        await self._engine_client.sleep(level=1)

    async def wake_up(self) -> None:
        """Take it back."""
        await self._engine_client.wake_up()


def count_workers(pool: PoolSpec) -> int:
    """Engine workers of a replica: tensor times pipeline parallel size, one GPU each.

    Raises:
        ValueError: they don't match the pool's GPUs.
    """
    args = pool.engine_args
    workers = int(args.get("tensor_parallel_size", 1)) * int(args.get("pipeline_parallel_size", 1))
    if pool.accelerator != "cpu" and workers != pool.gpus_per_replica:
        raise ValueError(
            f"pool {pool.name}: tensor_parallel_size x pipeline_parallel_size must equal "
            f"gpus_per_replica; got {workers} and {pool.gpus_per_replica}."
        )
    return workers


def build_engine_args(model: ModelSpec, pool: PoolSpec) -> dict[str, Any]:
    """Arguments of vLLM for a pool; context and concurrency come from the model and the pool.

    Raises:
        ValueError: the pool's own arguments name what is decided elsewhere.
    """
    taken = sorted(_OWN_ENGINE_ARGS & pool.engine_args.keys())
    if taken:
        raise ValueError(
            f"pool {pool.name}: engine_args must not name {', '.join(taken)}. "
            "Use context_tokens and weights of the model, and slots of the pool."
        )
    defaults = {**_DEFAULT_ENGINE_ARGS, **(_CPU_ENGINE_ARGS if pool.accelerator == "cpu" else {})}
    if pool.gpu_shares > 1:
        defaults = {**defaults, "enable_sleep_mode": True}
    return {
        **defaults,
        **pool.engine_args,
        "max_model_len": model.context_tokens,
        "max_num_seqs": pool.slots,
    }


def build_llm_config(model: ModelSpec, pool: PoolSpec) -> Any:
    """The LLMConfig of one replica; imports `ray.serve.llm`."""
    from ray.serve.llm import LLMConfig  # noqa: PLC0415  see the module's docstring

    workers = count_workers(pool)
    gpus = pool.gpus_per_replica / workers / pool.gpu_shares
    worker = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    return LLMConfig(
        model_loading_config={
            "model_id": model.name,
            "model_source": str(resolve_weights(model.weights or "")),
        },
        accelerator_config={"kind": "cpu" if pool.accelerator == "cpu" else "gpu"},
        placement_group_config={"bundle_per_worker": worker},
        engine_kwargs=build_engine_args(model, pool),
        callback_config={"callback_class": "deployments.local_weights.LocalWeights"},
    )


def _own_engine_processes() -> Any:
    """Mark what this process starts from now on, and start what ends it after this process."""
    replica_id = secrets.token_hex(8)
    os.environ[MARK_REPLICA] = replica_id
    os.environ.update(KEEP_MARKS_READABLE)
    return start_reaper(MARK_REPLICA, replica_id)


def _set_environment(pool: PoolSpec) -> None:
    os.environ.update(_ENVIRONMENT)
    # Compiled graphs are kept beside the weights: the home folder of a local node is its own and
    # empty, and compiling takes longer than everything else at a start.
    os.environ.setdefault("VLLM_CACHE_ROOT", str(models_dir().parent / "vllm"))
    if pool.accelerator == "cpu":
        for name, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


async def _start_llm_server(model: ModelSpec, pool: PoolSpec) -> Any:
    """Return a started LLMServer.

    Raises:
        FileNotFoundError: the weights aren't on this node.
    """
    weights = resolve_weights(model.weights or "")
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(
            f"weights of model {model.name} must be on this node at {weights}; "
            "no config.json there. Copy them, or set TIDEGATE_MODELS_DIR to where they are."
        )
    from ray.serve.llm import LLMServer  # noqa: PLC0415  see the module's docstring

    server = LLMServer.sync_init(build_llm_config(model, pool))
    await server.start()
    return server


class SchedulerGauges:
    """The newest scheduler figures, recorded by the engine's own statistics loop."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting = 0
        self._kv_use_ratio = 0.0

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        """Keep the figures of one engine step."""
        if scheduler_stats is not None:
            self._running = scheduler_stats.num_running_reqs
            self._waiting = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
            self._kv_use_ratio = scheduler_stats.kv_cache_usage

    def log(self) -> None:
        """Part of vLLM's logger interface; there is nothing to flush."""

    def record_sleep_state(self, *_: Any) -> None:
        """Part of vLLM's logger interface; `warm_replica` knows who sleeps."""

    def to_dict(self) -> dict[str, float]:
        """The figures under the names routers read."""
        return {
            "running": self._running,
            "waiting": self._waiting,
            "kv_use_ratio": self._kv_use_ratio,
        }


def _watch_scheduler(engine_client: Any) -> SchedulerGauges:
    """Add our gauges and vLLM's own /metrics beside the Ray metrics LLMServer installs.

    LLMServer's logger sends the figures to Ray's exporter only, and stops vLLM from adding the
    one that fills /metrics.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger  # noqa: PLC0415  heavy

    gauges = SchedulerGauges()
    manager = engine_client.logger_manager
    manager.stat_loggers.append(
        PrometheusStatLogger(engine_client.vllm_config, manager.engine_indexes)
    )
    manager.stat_loggers.append(gauges)
    return gauges
