"""Any state the brain could be in where speeds are known, for laws that hold in all of them."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import strategies as st

from autoscaling.snapshot import BurstPolicy, ModelView, PoolView, Snapshot
from autoscaling.stability import ModelMemory, PoolMemory
from tests.autoscaling.brain_run import learned

NOW_S = 1000.0
POLICY = BurstPolicy(up_after_s=0.0, cold_start_s=40.0)
ONPREM = PoolView(
    name="onprem", site="onprem", market="owned", slots=8, replicas_min=0, replicas_max=3, rps=2.0
)
CLOUD = replace(
    ONPREM, name="cloud", site="aws", market="on_demand", usd_per_hour=Decimal("3.6"), rps=1.0
)
SPOT = replace(CLOUD, name="spot", market="spot", usd_per_hour=Decimal("1.8"), losses_per_hour=0.05)

_CLOCKS = st.sampled_from([NOW_S - 25, None, NOW_S - 1, NOW_S - 400])
_LEVELS = st.sampled_from([0, 0, 10, 30, 60, 150])
# So many bins, what must stay in each, and what may leave in the first and in the last: calm,
# rises, gaps, steps and climbs.
_SPELLS = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 12, 30]), _LEVELS, _LEVELS, _LEVELS), max_size=4
)


@st.composite
def memories(draw: st.DrawFn, pool: PoolView) -> PoolMemory:
    """Anything that may be remembered of a pool; no more leases than replicas."""
    planned = draw(st.integers(pool.replicas_min, pool.replicas_max))
    leases_s = draw(st.lists(st.sampled_from([NOW_S - 200, NOW_S - 5]), max_size=planned))
    return PoolMemory(
        planned,
        observed=planned,
        starting_since_s=draw(_CLOCKS),
        slack_since_s=draw(_CLOCKS),
        leases_s=tuple(sorted(leases_s)),
        closing_since_s=draw(_CLOCKS),
    )


@st.composite
def pools(draw: st.DrawFn, pool: PoolView) -> PoolView:
    """The pool with any bounds, replicas and streams."""
    replicas_max = draw(st.sampled_from([4, 2, 1, 0]))
    observed = draw(st.integers(0, 4))
    return replace(
        pool,
        replicas_max=replicas_max,
        replicas_min=min(replicas_max, draw(st.sampled_from([0, 0, 0, 1]))),
        observed=observed,
        streams=draw(st.integers(0, observed * pool.slots)),
        kv_use_ratio=draw(st.sampled_from([None, None, 0.5, 0.95])),
        blocked=draw(st.sampled_from([None, None, None, "full"])),
        cold_start_s=draw(st.sampled_from([None, 0.0, 30.0, 300.0])),
    )


@st.composite
def states(
    draw: st.DrawFn,
    *,
    kinds: tuple[PoolView, ...] = (ONPREM, CLOUD, SPOT),
    may_burst: bool = True,
    app: str = "m",
) -> Snapshot:
    """One model with arrivals, pools and a memory; nothing of it may leave unless told so."""
    seen = tuple(draw(pools(kind)) for kind in kinds)
    leave: list[int] = []
    every: list[int] = []
    for count, stays, first, last in draw(_SPELLS):
        leaving = [first + (last - first) * n // count for n in range(count)]
        leave += leaving if may_burst else [0] * count
        every += [stays + leaves for leaves in leave[-count:]]
    waiting_leave = draw(st.sampled_from([0, 0, 3, 40])) if may_burst else 0
    model = ModelView(
        app,
        seen,
        waiting=draw(st.sampled_from([0, 0, 3, 40])) + waiting_leave,
        waiting_may_burst=waiting_leave,
        learned=learned(every, leave),
        ttft_s_max=10.0,
        usd_per_late_request=draw(st.sampled_from([0.001, 0.02, 1.0])),
        attainment_min=draw(st.sampled_from([0.9, 0.99, 1.0])),
    )
    memory = ModelMemory(
        {pool.name: draw(memories(pool)) for pool in seen},
        owned_short_since_s=draw(_CLOCKS),
        burst_short_since_s=draw(_CLOCKS),
        has_answered=draw(st.booleans()),
    )
    snapshot = Snapshot(NOW_S, (model,), {app: memory} if draw(st.integers(0, 3)) else {})
    return _calm_down(snapshot) if draw(st.booleans()) else snapshot


def _calm_down(snapshot: Snapshot) -> Snapshot:
    """The same with all replicas there, nobody waiting, and slack for longer than any delay."""
    (model,) = snapshot.models
    known = {
        pool.name: PoolMemory(
            pool.observed, pool.observed, slack_since_s=NOW_S - 25, closing_since_s=NOW_S - 5
        )
        for pool in model.pools
    }
    quiet = tuple(
        replace(pool, kv_use_ratio=None, replicas_max=max(pool.observed, pool.replicas_max))
        for pool in model.pools
    )
    calm = replace(model, pools=quiet, waiting=0, waiting_may_burst=0)
    return replace(snapshot, models=(calm,), memory={model.app: ModelMemory(known)})


def with_more(snapshot: Snapshot, *, stay: int, leave: int) -> Snapshot:
    """The same moment with more demand: so many more wait, and came in the last bin."""
    (model,) = snapshot.models
    history = model.learned.history
    if history.all:
        every = (*history.all[:-1], history.all[-1] + stay + leave)
        leaving = (*history.may_burst[:-1], history.may_burst[-1] + leave)
    else:
        every, leaving = (), ()
    more = replace(
        model,
        waiting=model.waiting + stay + leave,
        waiting_may_burst=model.waiting_may_burst + leave,
        learned=learned(every, leaving),
    )
    return replace(snapshot, models=(more,))
