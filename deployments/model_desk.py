"""One model at a gateway: its queue, what it has answered, and what is reported of both."""

import time
from dataclasses import dataclass, field

from deployments.metrics import GatewayMetrics
from deployments.model_queue import ModelQueue, count_by_class
from deployments.pools import Pool
from deployments.residency import DataClass
from deployments.served_tally import ServedTally
from deployments.signals import ModelSignal, PoolSignal
from deployments.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelDesk:
    """One model with its queue."""

    spec: ModelSpec
    queue: ModelQueue
    served: ServedTally = field(default_factory=ServedTally)

    def observe(self, metrics: GatewayMetrics) -> ModelSignal:
        """Return what the autoscaler may know of it; updates its gauges on the way."""
        waiting = self.queue.list_waiting()
        counts = count_by_class(waiting)
        name, objective = self.spec.name, self.spec.objective
        for data_class in DataClass:
            metrics.waiting.labels(name, data_class.value).set(counts.get(data_class, 0))
        oldest_s = min((waiter.arrived_s for waiter in waiting), default=None)
        return ModelSignal(
            model=name,
            app=name,
            waiting_public=counts.get(DataClass.PUBLIC, 0),
            waiting_internal=counts.get(DataClass.INTERNAL, 0),
            waiting_restricted=counts.get(DataClass.RESTRICTED, 0),
            waiting_may_burst=sum(waiter.clearance.may_leave_owned for waiter in waiting),
            oldest_wait_s=0.0 if oldest_s is None else max(0.0, time.monotonic() - oldest_s),
            pools=tuple(self._observe_pool(pool, metrics) for pool in self.queue.pools),
            arrived=self.queue.arrivals,
            arrived_may_burst=self.queue.arrivals_may_burst,
            ttft_s_max=objective.ttft_s,
            tpot_s_max=objective.tpot_s,
            attainment_min=objective.attainment,
            usd_per_late_request=objective.usd_per_late_request,
            late=self.served.late,
            refused_may_burst=self.served.refused_may_burst,
        )

    def _observe_pool(self, pool: Pool, metrics: GatewayMetrics) -> PoolSignal:
        spec = pool.spec
        replicas = pool.list_replicas()
        ratios = [one.kv_use_ratio for one in replicas if one.kv_use_ratio is not None]
        streams = self.queue.count_held(pool)
        metrics.streams.labels(self.spec.name, spec.name).set(streams)
        return PoolSignal(
            pool=spec.name,
            site=spec.site,
            owned=spec.owned,
            accelerator=spec.accelerator,
            market=spec.market,
            gpus_per_replica=spec.gpus_per_replica,
            slots_per_replica=spec.slots,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            replicas_running=len(replicas),
            streams_running=streams,
            kv_use_ratio=sum(ratios) / len(ratios) if ratios else None,
            ray_nodes=tuple(sorted(one.ray_node for one in replicas if one.ray_node)),
            gpu_row=spec.speed_row,
            gpu_shares=spec.gpu_shares,
            served=self.served.read(spec.name),
        )
