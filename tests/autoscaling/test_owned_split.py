"""Owned GPUs split over models: the examples, then the laws for every input.

Unless told otherwise a replica answers 1 request/s on 1 GPU, a late request costs $0.01, engines
start in 60 s and the hold time is 600 s: a running replica with work is worth 600 x $0.01 = $6,
one that must start 540 x $0.01 = $5.40.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoscaling.owned_claims import ModelDemand, OwnedPool, ShareMemory, SplitRules
from autoscaling.owned_places import OwnedNode
from autoscaling.owned_split import Split, split_owned

RULES = SplitRules(hold_s=600.0)
NAME = "onprem-h100-owned"


def node(node_id: str = "n1", *, gpus: int = 4, **holds: int) -> OwnedNode:
    held = {(app, NAME): count for app, count in holds.items()}
    return OwnedNode(node_id, "onprem", "h100", gpus, held)


def model(
    app: str,
    *,
    stay: float = 0.0,
    leave: float = 0.0,
    late_usd: float = 0.01,
    cloud_usd: float | None = None,
    **pool: object,
) -> ModelDemand:
    owned = OwnedPool(
        app=app,
        name=NAME,
        site="onprem",
        accelerator="h100",
        gpus_per_replica=1,
        replicas_min=0,
        replicas_max=8,
        rps=1.0,
        start_s=60.0,
    )
    owned = replace(owned, running=int(str(pool.get("planned", 0))))
    return ModelDemand(app, stay, leave, late_usd, cloud_usd, (replace(owned, **pool),))


def with_pool(demand: ModelDemand, **changes: object) -> ModelDemand:
    return replace(demand, pools=(replace(demand.pools[0], **changes),))


def split(models: Sequence[ModelDemand], nodes: Sequence[OwnedNode], now_s: float = 0.0) -> Split:
    return split_owned(models, nodes, now_s=now_s, rules=RULES)


def limits(found: Split) -> dict[str, int]:
    return {app: share.replicas_max for (app, _), share in found.shares.items()}


def test_all_may_grow_to_their_maximum_where_all_of_it_fits() -> None:
    found = split([model("a", replicas_max=2), model("b", leave=1, replicas_max=2)], [node()])
    assert limits(found) == {"a": 2, "b": 2}
    assert {share.why for share in found.shares.values()} == {""}


def test_demand_that_must_stay_takes_gpus_from_worthier_demand_that_may_leave() -> None:
    """Late, b's requests cost a hundred times as much; it runs on all 4 GPUs and a needs 2."""
    dear = model("b", leave=9, late_usd=1.0, planned=4)
    found = split([model("a", stay=1.5), dear], [node()])
    assert limits(found) == {"a": 2, "b": 2}
    assert found.shares["b", NAME].why == (
        "may have 2 replicas of 1 GPU on 4 owned GPUs, gives up 2 for a (1 GPU a replica); "
        "its demand fills 8"
    )


def test_what_can_be_had_cheaply_elsewhere_gives_way_to_what_cannot() -> None:
    """Late, both cost $0.01; a's request costs $0.001 in the cloud, so its value is that."""
    found = split([model("a", leave=8, cloud_usd=0.001), model("b", leave=8)], [node()])
    assert limits(found) == {"a": 0, "b": 4}


def test_a_group_of_four_gets_a_whole_node_before_single_gpus_fill_what_is_left() -> None:
    """Ten GPUs on two nodes of 4 and one of 2: 4 for the group, 6 for the others."""
    nodes = [node("n1"), node("n2"), node("n3", gpus=2)]
    group = model("t", leave=3, rps=5.0, gpus_per_replica=4, replicas_max=1)
    found = split([model("a", leave=8, late_usd=0.005), group], nodes)
    assert limits(found) == {"a": 6, "t": 1}
    assert [places.get(("t", NAME), 0) for places in found.places.values()] == [1, 0, 0]


def test_a_group_of_four_is_compared_with_what_four_gpus_do_otherwise() -> None:
    """Four GPUs answer 4 requests/s singly; the group answers 5 of the same value."""
    singles = model("a", leave=4, replicas_max=4)
    group = model("t", leave=5, rps=5.0, gpus_per_replica=4)
    assert limits(split([singles, group], [node()])) == {"a": 0, "t": 1}
    worse = model("t", leave=5, rps=3.0, gpus_per_replica=4)
    assert limits(split([singles, worse], [node()])) == {"a": 4, "t": 0}


def test_single_gpus_on_two_nodes_give_up_one_node_to_a_group_and_stay_small_meanwhile() -> None:
    """Model a runs 2 on each node and could have 4; until the group has its node, a has 2."""
    nodes = [node("n1", a=2), node("n2", a=2)]
    group = model("t", stay=3, rps=5.0, gpus_per_replica=4, replicas_max=1)
    singles = model("a", leave=8, planned=4)
    waiting = with_pool(group, planned=1, awaits_node=True)
    assert limits(split([singles, waiting], nodes)) == {"a": 2, "t": 1}

    nodes = [node("n1", a=2), node("n2")]
    fewer = model("a", leave=8, planned=2)
    assert limits(split([fewer, waiting], nodes)) == {"a": 2, "t": 1}
    starting = with_pool(group, planned=1)
    after = split([fewer, starting], nodes)
    assert limits(after) == {"a": 4, "t": 1}


def test_minimum_and_restricted_replicas_stand_their_ground_on_a_groups_node() -> None:
    """Both of a's replicas are firm, one on each node: the group waits rather than they stop."""
    nodes = [node("n1", a=1), node("n2", a=1)]
    group = model("t", leave=3, rps=5.0, gpus_per_replica=4, replicas_max=1)
    group = with_pool(group, planned=1, awaits_node=True)
    firm = model("a", stay=2, planned=2, replicas_max=2)
    assert limits(split([firm, group], nodes)) == {"a": 2, "t": 1}


def test_a_move_is_made_only_if_it_is_worth_more_than_the_engines_start() -> None:
    """What runs is worth $6; 540 s x $0.011 = $5.94 is less, 540 s x $0.0112 = $6.05 more."""
    running = model("b", leave=4, planned=4)
    assert limits(split([model("a", leave=1, late_usd=0.011), running], [node()]))["a"] == 0
    assert limits(split([model("a", leave=1, late_usd=0.0112), running], [node()]))["a"] == 1


def test_what_was_taken_stays_for_the_hold_time() -> None:
    """At 0 s a takes one GPU; b becomes worth ten times as much at once, and has it at 600 s."""
    first = split([model("a", leave=1, late_usd=0.1), model("b", leave=4, planned=4)], [node()])
    assert limits(first) == {"a": 1, "b": 3}

    def again(now_s: float) -> Split:
        memories = {app: share.memory for (app, _), share in first.shares.items()}
        models = [
            model("a", leave=1, late_usd=0.1, planned=1, memory=memories["a"]),
            model("b", leave=4, late_usd=1.0, planned=3, memory=memories["b"]),
        ]
        return split(models, [node()], now_s)

    assert limits(again(599)) == {"a": 1, "b": 3}
    assert limits(again(600)) == {"a": 0, "b": 4}


def test_who_gave_takes_from_nobody_by_value_and_has_what_is_free() -> None:
    """At 0 s b gave; c, whose requests cost a hundredth, keeps its GPUs from it until 600 s."""
    gave = ShareMemory(lost_s=0.0)
    models = [
        model("b", leave=4, late_usd=1.0, planned=1, memory=gave),
        model("c", leave=2, planned=2),
    ]
    assert limits(split(models, [node()], 599.0)) == {"b": 2, "c": 2}
    assert limits(split(models, [node()], 600.0)) == {"b": 4, "c": 0}


def test_what_must_stay_does_not_wait_for_the_hold_time() -> None:
    first = split([model("a", leave=1, late_usd=0.1), model("b", leave=4, planned=4)], [node()])
    kept = first.shares["a", NAME].memory
    models = [model("a", leave=1, planned=1, memory=kept), model("b", stay=4, planned=3)]
    assert limits(split(models, [node()], 1.0)) == {"a": 0, "b": 4}


def test_running_replicas_without_work_stay_unless_another_has_work() -> None:
    idle = model("b", planned=4)
    assert limits(split([model("a"), idle], [node()])) == {"a": 0, "b": 4}
    assert limits(split([model("a", leave=2), idle], [node()])) == {"a": 2, "b": 2}


def test_a_pool_of_unknown_speed_is_given_one_replica_to_learn_it() -> None:
    found = split([model("a", stay=7, rps=None), model("b", leave=8, late_usd=1.0)], [node()])
    assert limits(found) == {"a": 1, "b": 3}


def test_a_second_island_carries_what_the_first_could_not() -> None:
    """Model a has 1 GPU at each of two sites and 1.5 requests/s that must stay; b wants both."""
    here, there = model("a", stay=1.5), model("a").pools[0]
    there = replace(there, name="attic-h100-owned", site="attic")
    both = replace(here, pools=(*here.pools, there))
    nodes = [replace(node(gpus=1), id="n2"), replace(node("n1", gpus=1), site="attic")]
    rival = model("b", leave=9, late_usd=1.0, planned=1)
    found = split([both, rival], nodes)
    assert {key: share.replicas_max for key, share in found.shares.items()} == {
        ("a", "attic-h100-owned"): 1,
        ("a", NAME): 1,
        ("b", NAME): 0,
    }


def test_a_pool_that_no_owned_node_can_hold_has_no_share() -> None:
    found = split([model("a", stay=1, gpus_per_replica=8)], [node()])
    assert found.shares == {}


SIZES = (1, 2, 4, 8)
RATES = st.floats(0, 12, allow_nan=False)


@st.composite
def demands(draw: st.DrawFn, app: str) -> ModelDemand:
    replicas_max = draw(st.integers(1, 8))
    return model(
        app,
        stay=draw(st.one_of(st.just(0.0), RATES)),
        leave=draw(RATES),
        late_usd=draw(st.floats(0, 5)),
        cloud_usd=draw(st.one_of(st.none(), st.floats(0, 5))),
        gpus_per_replica=draw(st.sampled_from(SIZES)),
        rps=draw(st.one_of(st.none(), st.floats(0.1, 9))),
        replicas_min=draw(st.integers(0, min(2, replicas_max))),
        replicas_max=replicas_max,
        planned=draw(st.integers(0, replicas_max)),
        running=draw(st.integers(0, replicas_max)),
        awaits_node=draw(st.booleans()),
        start_s=draw(st.floats(0, 900)),
    )


SEVERAL = st.integers(1, 4).flatmap(lambda n: st.tuples(*(demands(f"m{i}") for i in range(n))))


@st.composite
def situations(draw: st.DrawFn) -> tuple[tuple[ModelDemand, ...], list[OwnedNode]]:
    """Models and nodes; what is planned and fits may run anywhere."""
    models = draw(SEVERAL)
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    nodes: list[OwnedNode] = []
    left = {m.app: m.pools[0].planned for m in models}
    for index, gpus in enumerate(sizes):
        free, holds = gpus, dict[str, int]()
        for m in models:
            most = min(left[m.app], free // m.pools[0].gpus_per_replica)
            holds[m.app] = draw(st.integers(0, most))
            left[m.app] -= holds[m.app]
            free -= holds[m.app] * m.pools[0].gpus_per_replica
        nodes.append(node(f"n{index}", gpus=gpus, **holds))
    return models, nodes


def sizes_of(models: Sequence[ModelDemand]) -> dict[str, int]:
    return {m.app: m.pools[0].gpus_per_replica for m in models}


def placed(found: Split) -> Counter[str]:
    counts = Counter[str]()
    for places in found.places.values():
        for (app, _), count in places.items():
            counts[app] += count
    return counts


def has_room(
    counts: Mapping[str, int], sizes: Mapping[str, int], nodes: Sequence[OwnedNode]
) -> bool:
    """Whether whole groups of sizes that divide one another fit: each size, with all larger."""
    return all(
        sum(sizes[app] * count for app, count in counts.items() if sizes[app] >= size)
        <= sum(n.gpus // size * size for n in nodes)
        for size in SIZES
    )


@given(situations())
def test_no_node_holds_more_than_it_has_and_no_group_spans_nodes(
    situation: tuple[Sequence[ModelDemand], list[OwnedNode]],
) -> None:
    """Every replica that may be had has a place, whole, on one node."""
    models, nodes = situation
    found, sizes = split(models, nodes), sizes_of(models)
    for one in nodes:
        places = found.places[one.id]
        assert sum(sizes[app] * count for (app, _), count in places.items()) <= one.gpus
    counts = placed(found)
    least = {m.app: m.pools[0].replicas_min for m in models}
    for (app, _), share in found.shares.items():
        assert 0 <= share.replicas_min <= share.replicas_max
        assert share.replicas_max <= max(counts[app], least[app]), "only a minimum may ask for more"


@given(situations())
def test_what_must_stay_is_served_before_anything_else(
    situation: tuple[Sequence[ModelDemand], list[OwnedNode]],
) -> None:
    """One more replica for it finds no room even if all others keep only minimum and that."""
    models, nodes = situation
    found, sizes = split(models, nodes), sizes_of(models)
    counts = placed(found)
    firm = {
        m.app: min(counts[m.app], max(m.pools[0].replicas_min, needed_for(m.must_stay_rps, m)))
        for m in models
    }
    for m in models:
        is_short = counts[m.app] < min(needed_for(m.must_stay_rps, m), m.pools[0].replicas_max)
        if is_short and (m.app, NAME) in found.shares:
            assert not has_room(firm | {m.app: counts[m.app] + 1}, sizes, nodes)


def needed_for(rps: float, m: ModelDemand) -> int:
    """Whole replicas for a rate; a thousandth of one more is nothing."""
    if m.pools[0].rps is None:
        return int(rps > 0)
    count = 0
    while count * m.pools[0].rps < rps and (rps - count * m.pools[0].rps) / m.pools[0].rps > 1e-3:
        count += 1
    return max(count, int(rps > 0))


@given(situations(), st.integers(0, 3), st.floats(1, 10))
def test_more_value_never_gets_fewer_gpus(
    situation: tuple[Sequence[ModelDemand], list[OwnedNode]], index: int, factor: float
) -> None:
    models, nodes = situation
    chosen = models[index % len(models)]
    richer = replace(chosen, usd_per_late_request=chosen.usd_per_late_request * factor)
    before = placed(split(models, nodes))
    after = placed(split([richer if m is chosen else m for m in models], nodes))
    assert after[chosen.app] >= before[chosen.app]


@given(situations(), st.randoms(use_true_random=False))
def test_the_same_input_in_any_order_gives_the_same_split(
    situation: tuple[Sequence[ModelDemand], list[OwnedNode]], chance: object
) -> None:
    models, nodes = situation
    mixed_models, mixed_nodes = list(models), list(nodes)
    chance.shuffle(mixed_models)  # type: ignore[attr-defined]
    chance.shuffle(mixed_nodes)  # type: ignore[attr-defined]
    assert split(mixed_models, mixed_nodes) == split(models, nodes)


@given(situations())
def test_gpus_are_left_over_only_if_nobody_fits(
    situation: tuple[Sequence[ModelDemand], list[OwnedNode]],
) -> None:
    models, nodes = situation
    sizes, counts = sizes_of(models), placed(split(models, nodes))
    for m in models:
        if counts[m.app] < m.pools[0].replicas_max:
            more = {**counts, m.app: counts[m.app] + 1}
            assert not has_room(more, sizes, nodes)


@given(
    st.lists(st.tuples(RATES, RATES, RATES), min_size=2, max_size=30),
    st.tuples(*(st.floats(0, 5) for _ in range(3))),
    st.integers(10, 900),
)
@example([(0, 4, 0), (4, 0, 0), (0, 4, 0), (4, 0, 0)], (1.0, 1.0, 1.0), 10)
@settings(max_examples=60)
def test_nothing_that_was_taken_for_value_is_taken_back_inside_the_hold_time(
    rates: list[tuple[float, float, float]], usd: tuple[float, float, float], tick_s: int
) -> None:
    """Three models on 4 GPUs; each plans what it wants and may have, each tick."""
    memories = {app: model(app).pools[0].memory for app in "abc"}
    planned = dict.fromkeys("abc", 0)
    gained_s: dict[str, float] = {}
    lost_s: dict[str, float] = {}
    for step, row in enumerate(rates):
        now_s = float(step * tick_s)
        models = [
            model(app, leave=rate, late_usd=late, planned=planned[app], memory=memories[app])
            for app, rate, late in zip("abc", row, usd, strict=True)
        ]
        shares = {app: share for (app, _), share in split(models, [node()], now_s).shares.items()}
        wish = {app: math.ceil(rate) for app, rate in zip("abc", row, strict=True)}
        losers = [app for app in "abc" if shares[app].replicas_max < planned[app]]
        gainers = [app for app in "abc" if shares[app].replicas_min > planned[app]]
        for app in losers:
            assert now_s - gained_s.get(app, -1e9) >= RULES.hold_s
        if losers:
            gained = [app for app in gainers if now_s - lost_s.get(app, -1e9) >= RULES.hold_s]
            assert gained, "somebody who didn't just give takes"
            gained_s |= dict.fromkeys(gainers, now_s)
            lost_s |= dict.fromkeys(losers, now_s)
        for app, share in shares.items():
            planned[app] = min(share.replicas_max, max(planned[app], share.replicas_min, wish[app]))
            memories[app] = share.memory


@given(st.lists(st.floats(0, 8), min_size=3, max_size=12))
def test_equal_models_do_not_trade_places(rates: list[float]) -> None:
    """Two equal models ask for all 4 GPUs, in turns of a minute; what runs is worth more."""
    planned = {"a": 2, "b": 2}
    seen = []
    for step, rate in enumerate(rates):
        models = [model(app, leave=4 + rate, planned=planned[app]) for app in "ab"]
        seen.append(limits(split(models, [node()], step * 60.0)))
    assert all(before == after for before, after in pairwise(seen))
