"""A pool as the gateway sees it: what runs, how busy it is, and one slot of one exact replica.

`pool_router.ServePool` is the real one; tests bring their own. Nothing here imports Ray.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from deployments.spec import PoolSpec


class SlotLostError(Exception):
    """The chosen replica gave no slot: it is full by now, or gone. Decide again."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where a replica listens and what it says about itself; the credential stays out of logs."""

    url: str
    site: str
    owned: bool
    pool: str
    engine: str
    credential: str = field(repr=False)

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "ReplicaAddress | None":
        """The address a replica published; None unless every part of it is there."""
        names = ("url", "site", "pool", "engine", "credential")
        texts = {name: metadata.get(name) for name in names}
        owned = metadata.get("owned")
        if not isinstance(owned, bool) or not all(isinstance(t, str) and t for t in texts.values()):
            return None
        return cls(owned=owned, **{name: str(text) for name, text in texts.items()})

    def belongs_to(self, pool: PoolSpec) -> bool:
        """Whether the replica stands where its pool says; one that doesn't is never used."""
        return (self.pool, self.site, self.owned) == (pool.name, pool.site, pool.owned)


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """A running replica; `ongoing` is its own count of slots taken when it was last heard.

    `ray_node` is the node it runs on, by Ray's id in hexadecimal, None = unknown. `is_awake`: its
    engine has its GPU; one that sleeps or is about to gets no request.
    """

    replica_id: str
    address: ReplicaAddress | None
    ongoing: int = 0
    heard_s: float = 0.0
    kv_use_ratio: float | None = None
    ray_node: str | None = None
    is_awake: bool = True


class Pool(Protocol):
    """One pool of one model. All calls are made from the gateway's event loop."""

    spec: PoolSpec

    def list_replicas(self) -> Sequence[SeenReplica]:
        """The replicas running now; doesn't block and never starts one."""
        ...

    def hold(self, replica_id: str) -> AbstractAsyncContextManager[str]:
        """Hold one slot of this replica while the context is open; yields the slot's token.

        Raises SlotLostError on entry, within a bounded time. Leaving never raises: a slot that
        can't be given back is freed by the replica itself.
        """
        ...

    async def look(self, replica_ids: Sequence[str]) -> None:
        """Ask these replicas how busy they are; bounded in time, silent about those gone."""
        ...
