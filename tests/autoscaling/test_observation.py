"""What the brain may know of what gateways report: sums, prices, and doubt instead of guesses."""

import math
from dataclasses import replace
from decimal import Decimal

import pytest

from autoscaling.guard import Offer
from autoscaling.learning import Learned, LengthSums
from autoscaling.observation import Observed, build_snapshot, find_price
from autoscaling.snapshot import BurstPolicy, ModelView
from autoscaling.stability import ModelMemory, PoolMemory
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served, Targets

POOL = PoolSignal(
    pool="cloud-l4-on_demand",
    site="cloud",
    owned=False,
    accelerator="l4",
    market="on_demand",
    gpus_per_replica=1,
    slots_per_replica=4,
    min_replicas=0,
    max_replicas=2,
    replicas_running=1,
    streams_running=2,
    kv_use_ratio=0.25,
)
MODEL = ModelSignal(
    model="smol",
    app="smol",
    waiting_public=1,
    waiting_internal=2,
    waiting_restricted=4,
    waiting_may_burst=3,
    oldest_wait_s=1.0,
    pools=(POOL,),
)
# Two requests: 10 and 4 tokens read, 3 and 7 put out.
ANSWERED = Served(
    requests=2,
    prompt_tokens=20,
    cached_tokens=6,
    output_tokens=10,
    read_tokens_squared=116,
    output_tokens_squared=58,
)
OFFER = Offer(
    name="cloud_gpu",
    site="cloud",
    market="on_demand",
    resources={"GPU": 4.0},
    labels={"accelerator": "l4"},
    usd_per_hour=Decimal(8),
)


def report(
    model: ModelSignal = MODEL, *, gateway: str = "a", at_s: float = 100.0
) -> GatewaySignals:
    return GatewaySignals(gateway, at_s, (model,))


def look(*signals: GatewaySignals, **known: object) -> tuple[ModelView, ...]:
    observed = Observed(signals=signals, **known)
    return build_snapshot(observed, now_s=100.0, policy=BurstPolicy(signals_stale_s=10.0)).models


def test_gateways_share_replicas_and_add_up_streams_and_waiting() -> None:
    (model,) = look(report(), report(gateway="b"), offers=(OFFER,))
    assert (model.waiting, model.waiting_may_burst) == (14, 6)
    (pool,) = model.pools
    assert (pool.observed, pool.streams, pool.kv_use_ratio) == (1, 4, 0.25)
    assert pool.usd_per_hour == Decimal(2), "one of a node's four GPUs at 8 USD/h"


def test_a_gateway_that_is_gone_does_not_count_while_another_speaks() -> None:
    (model,) = look(report(), report(gateway="dead", at_s=50.0))
    assert model.waiting == 7


@pytest.mark.parametrize(
    ("signals", "doubt"),
    [
        ((), "no gateway has reported yet"),
        ((report(at_s=70.0),), "no gateway has reported for 30 s"),
        ((report(at_s=130.0),), "no gateway has reported for 30 s"),
    ],
    ids=["absent", "stale", "from the future"],
)
def test_silence_is_a_doubt_about_every_known_model(
    signals: tuple[GatewaySignals, ...], doubt: str
) -> None:
    memory = {"smol": ModelMemory({"cloud": PoolMemory(1)})}
    assert look(*signals, memory=memory) == (ModelView("smol", (), doubt=doubt),)


@pytest.mark.parametrize(
    ("model", "doubt"),
    [
        (replace(MODEL, waiting_public=-1), "a count is negative or above 1000000"),
        (replace(MODEL, waiting_may_burst=8), "8 of 7 waiting requests may burst"),
        (
            replace(MODEL, pools=(replace(POOL, kv_use_ratio=1.5),)),
            "kv_use_ratio of cloud-l4-on_demand is 1.5, which isn't within 0..1",
        ),
        (
            replace(MODEL, pools=(replace(POOL, owned=True),)),
            "cloud-l4-on_demand is owned=True with market 'on_demand'",
        ),
        (
            replace(MODEL, pools=(replace(POOL, min_replicas=3),)),
            "cloud-l4-on_demand has bounds 3..2 and 4 slots",
        ),
        (
            replace(MODEL, pools=(replace(POOL, replicas_running=10**9),)),
            "a count is negative or above 1000000",
        ),
    ],
)
def test_absurd_signals_are_a_doubt_and_no_number_of_theirs_is_used(
    model: ModelSignal, doubt: str
) -> None:
    assert look(report(model)) == (ModelView("smol", (), doubt=f"absurd signals: {doubt}"),)


@pytest.mark.parametrize(
    ("model", "doubt"),
    [
        (
            replace(MODEL, arrived=-1, arrived_may_burst=-1),
            "arrived of the model is -1, which isn't within 0..1e+15",
        ),
        (replace(MODEL, arrived=3, arrived_may_burst=4), "4 of 3 requests that arrived may burst"),
        (
            replace(MODEL, pools=(replace(POOL, served=Served(hold_s=math.nan)),)),
            "hold_s of cloud-l4-on_demand is nan, which isn't within 0..1e+15",
        ),
        (
            replace(MODEL, pools=(replace(POOL, served=Served(output_tokens=10**16)),)),
            "output_tokens of cloud-l4-on_demand is 1e+16, which isn't within 0..1e+15",
        ),
        (
            replace(MODEL, pools=(replace(POOL, served=Served(prompt_tokens=3, cached_tokens=4)),)),
            "4 of 3 prompt tokens of cloud-l4-on_demand were cached",
        ),
        (
            replace(MODEL, pools=(replace(POOL, served=replace(ANSWERED, requests=1)),)),
            (
                "read_tokens_squared of cloud-l4-on_demand is 116, which isn't that of 1 requests "
                "with 14 tokens"
            ),
        ),
        (
            replace(MODEL, pools=(replace(POOL, served=replace(ANSWERED, cached_tokens=0)),)),
            (
                "read_tokens_squared of cloud-l4-on_demand is 116, which isn't that of 2 requests "
                "with 20 tokens"
            ),
        ),
        (
            replace(
                MODEL, pools=(replace(POOL, served=replace(ANSWERED, read_tokens_squared=197)),)
            ),
            (
                "read_tokens_squared of cloud-l4-on_demand is 197, which isn't that of 2 requests "
                "with 14 tokens"
            ),
        ),
        (
            replace(
                MODEL, pools=(replace(POOL, served=replace(ANSWERED, output_tokens_squared=-1)),)
            ),
            (
                "output_tokens_squared of cloud-l4-on_demand is -1, which isn't that of 2 requests "
                "with 10 tokens"
            ),
        ),
        (
            replace(MODEL, pools=(replace(POOL, served=Served(read_tokens_squared=10**400)),)),
            (
                f"read_tokens_squared of cloud-l4-on_demand is {10**400}, which isn't that of 0 "
                "requests with 0 tokens"
            ),
        ),
        (replace(MODEL, ttft_s_max=0.0), "ttft_s_max is 0, which isn't a time"),
        (replace(MODEL, tpot_s_max=math.nan), "tpot_s_max is nan, which isn't a time"),
        (
            replace(MODEL, usd_per_late_request=math.inf),
            "usd_per_late_request is inf, which isn't a price",
        ),
    ],
    ids=[
        "negative",
        "more than all",
        "nan",
        "huge",
        "more cached than all",
        "squares of fewer requests",
        "squares of fewer tokens",
        "squares above those of one request",
        "negative squares",
        "squares of nothing",
        "no ttft",
        "nan tpot",
        "infinite price",
    ],
)
def test_counters_and_objectives_that_cannot_be_true_are_a_doubt(
    model: ModelSignal, doubt: str
) -> None:
    """The brain takes differences and ratios of them: one NaN would spoil what it learned."""
    assert look(report(model)) == (ModelView("smol", (), doubt=f"absurd signals: {doubt}"),)


@pytest.mark.parametrize(
    "served",
    [
        ANSWERED,
        replace(ANSWERED, read_tokens_squared=14**2),
        replace(ANSWERED, read_tokens_squared=14**2 // 2),
        replace(ANSWERED, read_tokens_squared=0, output_tokens_squared=0),
        Served(10**12, 10**15, 0, read_tokens_squared=10**20),
    ],
    ids=["as it was", "all in one", "equal parts", "an older gateway", "years of long prompts"],
)
def test_squares_that_can_be_true_are_no_doubt(served: Served) -> None:
    (model,) = look(report(replace(MODEL, pools=(replace(POOL, served=served),))))
    assert model.doubt is None


def test_a_model_that_fresh_signals_no_longer_list_is_gone() -> None:
    memory = {"old": ModelMemory({"cloud": PoolMemory(1)})}
    assert [model.app for model in look(report(), memory=memory)] == ["smol"]


def test_what_was_requested_and_what_is_blocked_reach_the_pool() -> None:
    requested = Targets(90.0, {"smol": {POOL.pool: 2}})
    (model,) = look(report(), requested=requested, blocked_sites={"cloud": "full"})
    assert (model.pools[0].requested, model.pools[0].blocked) == (2, "full")


def test_the_way_to_a_pool_is_its_sites_and_the_mean_answer_has_a_price() -> None:
    """200 tokens of 300 bytes are 60 kB: at $0.10 a GB, $0.000006. Unknown lengths cost nothing."""
    far = replace(OFFER, round_trip_s=0.03, egress_usd_per_gb=0.1)
    known = Learned(lengths=LengthSums(requests=50, prompt_tokens=50_000, output_tokens=10_000))
    memory = {"smol": ModelMemory({}, learned=known)}
    (model,) = look(report(), offers=(far,), memory=memory)
    assert model.pools[0].round_trip_s == 0.03
    assert model.pools[0].usd_per_request == pytest.approx(6e-6)
    (model,) = look(report(), offers=(far,))
    assert model.pools[0].usd_per_request == 0


def test_a_pool_no_node_type_can_hold_is_infinitely_dear() -> None:
    assert find_price(replace(POOL, accelerator="h100"), [OFFER]) == Decimal("Infinity")
    assert find_price(replace(POOL, gpus_per_replica=8), [OFFER]) == Decimal("Infinity")
