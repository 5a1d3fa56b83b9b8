"""Routing: owned first, least loaded, elsewhere only when every owned slot is busy."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.routing import LookAgain, ReplicaLoad, Route, Wait, decide_route


def load(replica_id: str, **changes: object) -> ReplicaLoad:
    """An owned replica with 4 free slots, changed."""
    base: dict[str, object] = {
        "replica_id": replica_id,
        "pool": "onprem-cpu-owned",
        "site": "onprem",
        "owned": True,
        "market": "owned",
        "slots": 4,
    }
    return ReplicaLoad(**(base | changes))  # type: ignore[arg-type]


def cloud(replica_id: str, **changes: object) -> ReplicaLoad:
    base = {"pool": "cloud-cpu-on_demand", "site": "cloud", "owned": False, "market": "on_demand"}
    return load(replica_id, **(base | changes))


LOADS = st.lists(
    st.builds(
        lambda owned, slots, held, others, age_s, reading: (
            load if owned else cloud  # the builder of the site
        )(
            "",
            slots=slots,
            held=min(held, slots),
            others=others,
            seen_age_s=age_s,
            reading_tokens=reading[0],
            reading_tokens_max=reading[1],
        ),
        st.booleans(),
        st.integers(1, 4),
        st.integers(0, 4),
        st.integers(0, 4),
        st.sampled_from([0.0, 0.1, 0.3, 9.0]),
        st.tuples(st.sampled_from([0, 500, 3000]), st.sampled_from([None, 500, 2000])),
    ),
    max_size=8,
).map(
    lambda found: [
        load(
            f"r{index}",
            **{name: getattr(one, name) for name in one.__slots__ if name != "replica_id"},
        )
        for index, one in enumerate(found)
    ]
)


def test_the_least_loaded_owned_replica_is_taken_first() -> None:
    decision = decide_route(
        [load("a", held=3), load("b", held=1), cloud("c")], may_leave_owned=True
    )
    assert isinstance(decision, Route)
    assert (decision.load.replica_id, decision.reason) == ("b", "owned-slot-free")


def test_the_cloud_is_taken_only_when_every_owned_slot_is_busy() -> None:
    decision = decide_route([load("a", held=4), cloud("c")], may_leave_owned=True)
    assert isinstance(decision, Route)
    assert (decision.load.replica_id, decision.reason) == ("c", "owned-full")


def test_the_cloud_answers_while_nothing_owned_runs() -> None:
    decision = decide_route([cloud("c")], may_leave_owned=True)
    assert isinstance(decision, Route)
    assert decision.reason == "owned-not-running"


def test_a_cheaper_market_goes_before_a_dearer_one_at_equal_load() -> None:
    found = decide_route(
        [cloud("a"), cloud("b", market="spot", pool="cloud-cpu-spot")], may_leave_owned=True
    )
    assert isinstance(found, Route)
    assert found.load.market == "spot"


def test_an_owned_replica_filled_by_others_is_asked_again_before_the_cloud_is_used() -> None:
    loads = [load("a", others=4, seen_age_s=1.0), cloud("c")]
    assert decide_route(loads, may_leave_owned=True) == LookAgain(("a",))


def test_fresh_knowledge_of_a_full_owned_replica_is_believed() -> None:
    loads = [load("a", others=4, seen_age_s=0.1), cloud("c")]
    assert isinstance(decide_route(loads, may_leave_owned=True), Route)


def test_a_replica_we_filled_ourselves_is_never_asked() -> None:
    assert decide_route([load("a", held=4, seen_age_s=99.0)], may_leave_owned=True) == Wait(
        is_running=True
    )


def test_a_replica_with_prompts_enough_to_read_is_full_until_it_has_read_some() -> None:
    """1,999 of 2,000 tokens leave room for one more prompt, however long; 2,000 don't."""
    cloud_free = cloud("c")
    nearly = load("a", held=1, reading_tokens=1999, reading_tokens_max=2000)
    found = decide_route([nearly, cloud_free], may_leave_owned=True)
    assert isinstance(found, Route)
    assert found.load.replica_id == "a"
    enough = nearly.with_more(1, 1)
    found = decide_route([enough, cloud_free], may_leave_owned=True)
    assert isinstance(found, Route)
    assert (found.load.replica_id, found.reason) == ("c", "owned-full")
    assert decide_route([enough], may_leave_owned=True) == Wait(is_running=True)


def test_what_reads_is_not_asked_again_because_hearsay_is_old() -> None:
    reads = load("a", reading_tokens=9, reading_tokens_max=9, seen_age_s=9.0)
    assert decide_route([reads], may_leave_owned=True) == Wait(is_running=True)


def test_the_replica_with_the_least_to_read_goes_before_the_emptiest() -> None:
    """A replica that just started is the emptiest: it must not get a lump of prompts at once."""
    started = load("a", held=1, reading_tokens=700)
    found = decide_route([started, load("b", held=3)], may_leave_owned=True)
    assert isinstance(found, Route)
    assert found.load.replica_id == "b"


def test_nothing_to_route_to_says_so() -> None:
    assert decide_route([], may_leave_owned=True) == Wait(is_running=False)
    assert decide_route([cloud("c")], may_leave_owned=False) == Wait(is_running=False)
    excluded = decide_route([load("a")], may_leave_owned=True, excluded=frozenset({"a"}))
    assert excluded == Wait(is_running=False)


@given(LOADS)
def test_what_may_not_leave_owned_sites_is_never_offered_another(loads: list[ReplicaLoad]) -> None:
    decision = decide_route(loads, may_leave_owned=False)
    assert not isinstance(decision, Route) or decision.load.owned
    owned_only = [one for one in loads if one.owned]
    assert decision == decide_route(owned_only, may_leave_owned=False)


@given(LOADS)
def test_no_paid_site_while_an_owned_replica_may_have_room(loads: list[ReplicaLoad]) -> None:
    decision = decide_route(loads, may_leave_owned=True)
    if isinstance(decision, Route) and not decision.load.owned:
        owned = [one for one in loads if one.owned]
        assert not any(one.has_room for one in owned)
        filled_by_others = [one for one in owned if one.held < one.slots <= one.busy]
        assert not any(one.seen_age_s > 0.25 for one in filled_by_others)


@given(loads=LOADS, may_leave_owned=st.booleans(), shuffler=st.randoms())
def test_the_order_of_replicas_decides_nothing(
    loads: list[ReplicaLoad], *, may_leave_owned: bool, shuffler: object
) -> None:
    shuffled = list(loads)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide_route(loads, may_leave_owned=may_leave_owned) == decide_route(
        shuffled, may_leave_owned=may_leave_owned
    )


@given(loads=LOADS, leave=st.booleans())
def test_a_route_always_leads_to_room(loads: list[ReplicaLoad], *, leave: bool) -> None:
    decision = decide_route(loads, may_leave_owned=leave)
    assert not isinstance(decision, Route) or decision.load.has_room
