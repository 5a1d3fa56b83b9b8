"""What each further replica on owned GPUs is worth: a pool's claims on them.

Claims are compared part by part:

    minimum > demand that must stay > held > value > running without work > taking back > spare

A minimum is the operator's word, which Serve enforces. Value is what a replica spares in the hold
time: late requests, or the cloud's price of them where that is less. One that must be started earns
nothing while its engine starts, so a move is made only if it is worth more than that. What was
taken for value is held for the hold time, and who gave takes back only what nobody uses meanwhile.
Pure; next: `autoscaling.owned_split`.
"""

import math
from dataclasses import dataclass, replace

from autoscaling.owned_places import Key

# Parts of a worth lie side by side in one integer, the highest first: sums and comparisons of
# integers are exact. 2^48 micro-dollars leave room for 65,536 claims.
_PART_BITS = 64
_PART_MAX = 1 << 48
_USD_UNITS = 1_000_000
# Work of less than so much of a replica needs none: rates are estimates.
_REPLICAS_MIN = 1e-3


@dataclass(frozen=True, slots=True)
class SplitRules:
    """`hold_s`: how long what was taken for value stays, and what value is reckoned over.

    Engines start in one to three minutes, so ten leave a moved GPU at least seven of work.
    """

    hold_s: float = 600.0


@dataclass(frozen=True, slots=True)
class ShareMemory:
    """When a pool took GPUs from others, how many replicas it had then, when it gave some up.

    `closing_since_s`: it must give up its last, and gateways were told so.
    """

    gained_s: float | None = None
    kept: int = 0
    lost_s: float | None = None
    closing_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class OwnedPool:
    """One owned pool. `rps` None: one replica's speed isn't known, so one is asked for.

    `planned` replicas run or are on their way, `running` answer; `awaits_node`: those on their way
    may still wait for room. `start_s` is an engine's start on a node that is there.
    """

    app: str
    name: str
    site: str
    accelerator: str
    gpus_per_replica: int
    replicas_min: int
    replicas_max: int
    rps: float | None = None
    planned: int = 0
    running: int = 0
    awaits_node: bool = False
    start_s: float = 120.0
    memory: ShareMemory = ShareMemory()

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return (self.app, self.name)


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What a model is asked for, in requests a second, and what it is worth to answer in time.

    `usd_per_cloud_request` is what a request costs elsewhere, None = it can't go.
    """

    app: str
    must_stay_rps: float = 0.0
    may_leave_rps: float = 0.0
    usd_per_late_request: float = 0.0
    usd_per_cloud_request: float | None = None
    pools: tuple[OwnedPool, ...] = ()

    def serve(self, from_rps: float, to_rps: float) -> tuple[float, float]:
        """Return what of it lies between two rates: what must stay comes first, then the rest."""
        both = self.must_stay_rps + self.may_leave_rps
        stays = _overlap(from_rps, to_rps, self.must_stay_rps)
        return stays, max(0.0, _overlap(from_rps, to_rps, both) - stays)

    def without(self, served_rps: float) -> "ModelDemand":
        """Return what is left of it for the model's pools elsewhere."""
        stays, leaves = self.serve(0.0, served_rps)
        return replace(
            self,
            must_stay_rps=max(0.0, self.must_stay_rps - stays),
            may_leave_rps=max(0.0, self.may_leave_rps - leaves),
        )


@dataclass(frozen=True, slots=True)
class Claims:
    """A pool's claims: `worth` of each further replica, never rising; the first `firm` come first.

    `needed` replicas carry the demand, each of `rps`; `has_gained`: others gave up GPUs for it.
    """

    pool: OwnedPool
    rps: float
    needed: int
    firm: int
    has_gained: bool
    worth: tuple[int, ...]


def build_claims(
    model: ModelDemand, pool: OwnedPool, *, gpus: int, now_s: float, rules: SplitRules
) -> Claims:
    """Return a pool's claims on so many GPUs."""
    asked_rps = model.must_stay_rps + model.may_leave_rps
    rps = pool.rps if pool.rps is not None and pool.rps > 0 else max(asked_rps, 1.0)
    needed = min(pool.replicas_max, _count_replicas(asked_rps / rps))
    must_stay = min(pool.replicas_max, _count_replicas(model.must_stay_rps / rps))
    has_gained = _is_recent(pool.memory.gained_s, now_s=now_s, hold_s=rules.hold_s)
    held = min(pool.memory.kept, max(pool.planned, needed)) if has_gained else 0
    may_take = not _is_recent(pool.memory.lost_s, now_s=now_s, hold_s=rules.hold_s)
    worth: list[int] = []
    for number in range(1, min(pool.replicas_max, gpus // pool.gpus_per_replica) + 1):
        stays_usd, spared_usd = _price(model, pool, number, rps=rps, rules=rules)
        parts = (
            int(number <= pool.replicas_min),
            max(1, _to_units(stays_usd)) if (number - 1) * rps < model.must_stay_rps else 0,
            int(number <= held),
            _to_units(spared_usd) if may_take or number <= pool.planned else 0,
            int(number <= pool.planned),
            _to_units(spared_usd),
            max(1, _to_units(rps * model.usd_per_late_request * rules.hold_s / number)),
        )
        worth.append(min([_join(parts), *worth[-1:]]))
    firm = max(pool.replicas_min, must_stay)
    return Claims(pool, rps, needed, firm, has_gained, tuple(worth))


def _price(
    model: ModelDemand, pool: OwnedPool, number: int, *, rps: float, rules: SplitRules
) -> tuple[float, float]:
    """Return the dollars that replica number so-and-so spares: of what must stay, of the rest."""
    earns_s = rules.hold_s
    if number > pool.planned:
        earns_s = max(0.0, rules.hold_s - pool.start_s)
    stays, leaves = model.serve((number - 1) * rps, number * rps)
    late, cloud = model.usd_per_late_request, model.usd_per_cloud_request
    spared = late if cloud is None else min(late, cloud)
    return stays * late * earns_s, leaves * spared * earns_s


def _join(parts: tuple[int, ...]) -> int:
    total = 0
    for part in parts:
        total = (total << _PART_BITS) + part
    return total


def _overlap(from_rps: float, to_rps: float, rps: float) -> float:
    return max(0.0, min(to_rps, rps) - min(from_rps, rps))


def _is_recent(at_s: float | None, *, now_s: float, hold_s: float) -> bool:
    return at_s is not None and 0 <= now_s - at_s < hold_s


def _to_units(usd: float) -> int:
    return min(_PART_MAX, int(usd * _USD_UNITS))


def _count_replicas(work: float) -> int:
    """Return the replicas that carry so many replicas' work; any work at all needs one."""
    return max(int(work > 0), math.ceil(work - _REPLICAS_MIN))
