"""Serve's router for our pools: it shows the gateway the replicas and takes the one it is told.

Serve's own routers choose by themselves and retry for ever. Ours decides nothing: the gateway
knows every pool, the data class and the queue, names one replica, and hears at once if that one
has no slot left. Serve still counts the slot as an ongoing request, which is what makes drains,
`max_ongoing_requests` and Serve's own figures see the stream.

This file is the gateway's only user of Serve's private API, of Ray 2.60.0: `_init` and
`_router` of handles, `_choose_replica_for_request` of routers, `_slot_token` of selections.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import RequestRouter

from deployments.pools import ReplicaAddress, SeenReplica, SlotLostError
from deployments.spec import PoolSpec

logger = logging.getLogger("ray.serve.tidegate.pools")

_RESERVE_S_MAX = 2.0
_RELEASE_S_MAX = 5.0
_LOOK_S_MAX = 1.0
_WANTED = "replica_id"


class PoolRouter(RequestRouter):  # type: ignore[misc]  # Ray ships no types
    """Routes each request to the replica it names; one object per pool and gateway."""

    def initialize_state(self, **_: Any) -> None:
        """Begin knowing nothing."""
        self._heard: dict[str, tuple[int, float]] = {}
        self._addresses: dict[str, ReplicaAddress | None] = {}

    def list_replicas(self) -> list[SeenReplica]:
        """The replicas Serve's controller last named as running."""
        return [self._describe(replica) for replica in self.curr_replicas.values()]

    async def look(self, replica_ids: Sequence[str]) -> None:
        """Ask the named replicas for their number of ongoing requests."""
        wanted = [r for r in self.curr_replicas.values() if r.replica_id.unique_id in replica_ids]
        await asyncio.gather(*(self._look_at(replica) for replica in wanted))

    def on_new_queue_len_info(self, replica_id: Any, num_ongoing_requests: int) -> None:
        """Keep what a replica said with its answer to a reservation or release."""
        self._heard[replica_id.unique_id] = (num_ongoing_requests, time.monotonic())

    def update_replicas(self, replicas: list[Any]) -> None:
        """Forget what gone replicas said, then let Serve update its list."""
        running = {replica.replica_id.unique_id for replica in replicas}
        self._heard = {key: heard for key, heard in self._heard.items() if key in running}
        self._addresses = {
            replica.replica_id.unique_id: ReplicaAddress.from_metadata(replica.replica_metadata)
            for replica in replicas
        }
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Never called: `_choose_replica_for_request` names the replica before Serve would ask."""
        raise NotImplementedError

    async def _choose_replica_for_request(
        self, pending_request: Any, *, is_retry: bool = False
    ) -> Any:
        # Serve's own version queues, probes with a deadline of 100 ms and, after a refusal by the
        # replica, tries again without end. Here a refusal goes back to the one who decides.
        wanted = pending_request.kwargs.get(_WANTED)
        if wanted is None:
            raise RayServeException(
                "Pools are called through the gateway only; call the application `gateway`."
            )
        if is_retry:
            raise SlotLostError(f"{wanted} has no free slot.")
        for replica in self.curr_replicas.values():
            if replica.replica_id.unique_id == wanted:
                return replica
        raise SlotLostError(f"{wanted} is gone.")

    def _describe(self, replica: Any) -> SeenReplica:
        replica_id: str = replica.replica_id.unique_id
        ongoing, heard_s = self._heard.get(replica_id, (0, time.monotonic()))
        ratio = replica.routing_stats.get("kv_use_ratio")
        return SeenReplica(
            replica_id=replica_id,
            address=self._addresses.get(replica_id),
            ongoing=ongoing,
            heard_s=heard_s,
            kv_use_ratio=float(ratio) if isinstance(ratio, int | float) else None,
            ray_node=str(replica.node_id),
            is_awake=bool(replica.routing_stats.get("awake", True)),
        )

    async def _look_at(self, replica: Any) -> None:
        try:
            async with asyncio.timeout(_LOOK_S_MAX):
                ongoing = await replica.get_queue_len(deadline_s=_LOOK_S_MAX)
        except (RayError, TimeoutError) as exc:
            logger.warning("Replica %s didn't say how busy it is: %s", replica.replica_id, exc)
            last, _ = self._heard.get(replica.replica_id.unique_id, (0, 0.0))
            ongoing = last
        self.on_new_queue_len_info(replica.replica_id, ongoing)


class ServePool:
    """A pool deployed by Serve; it may be deployed after the gateway, or gone and back again."""

    def __init__(self, spec: PoolSpec, *, app: str) -> None:
        self.spec = spec
        self._handle = serve.get_deployment_handle(spec.name, app, _check_exists=False)
        # In the gateway's own loop: its state is read without locks, no request changes threads.
        self._handle._init(_run_router_in_separate_loop=False)  # noqa: SLF001 - see module

    def list_replicas(self) -> Sequence[SeenReplica]:
        """The running replicas; none until Serve has told this process about the pool."""
        router = self._find_router()
        return [] if router is None else router.list_replicas()

    @asynccontextmanager
    async def hold(self, replica_id: str) -> AsyncIterator[str]:
        """Hold one slot of this replica; yields the slot's token."""
        stack = AsyncExitStack()
        try:
            async with asyncio.timeout(_RESERVE_S_MAX):
                choice = self._handle.choose_replica(**{_WANTED: replica_id})
                selection = await stack.enter_async_context(choice)
        except (RayError, RayServeException, TimeoutError) as exc:
            raise SlotLostError(f"{replica_id} gave no slot: {exc}") from exc
        try:
            yield str(selection._slot_token)  # noqa: SLF001 - see module
        finally:
            await _give_back(stack, replica_id)

    async def look(self, replica_ids: Sequence[str]) -> None:
        """Ask these replicas how busy they are."""
        router = self._find_router()
        if router is not None:
            await router.look(replica_ids)

    def _find_router(self) -> PoolRouter | None:
        # Serve pickles the router's class by value: a registry in this module would stay empty.
        found: PoolRouter | None = self._handle._router._asyncio_router.request_router  # noqa: SLF001 - see module
        return found


async def _give_back(slot: AsyncExitStack, replica_id: str) -> None:
    try:
        async with asyncio.timeout(_RELEASE_S_MAX):
            await slot.aclose()
    except (RayError, RayServeException, TimeoutError) as exc:
        logger.warning("A slot of %s wasn't given back; it frees itself: %s", replica_id, exc)
