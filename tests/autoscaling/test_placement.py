"""What placement launches, and the laws it keeps whatever is asked."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from autoscaling.demand import Bundle, Demand, Node, Strategy, Term
from autoscaling.guard import Held, Launch, Limits, Offer
from autoscaling.placement import Placement, Situation, plan_placement

NO_LIMITS = Limits(launches_per_tick=100)


def offer(name: str = "onprem", *, gpus: int = 4, nodes_max: int = 10, **changes: object) -> Offer:
    site = str(changes.pop("site", "onprem"))
    plain = Offer(
        name=name,
        site=site,
        market="owned",
        resources={"CPU": 8.0, "GPU": float(gpus)} if gpus else {"CPU": 8.0},
        labels={"site": site},
        nodes_max=nodes_max,
    )
    return replace(plain, **changes)


def cloud(name: str = "cloud", **changes: object) -> Offer:
    defaults = {"site": "aws", "market": "on_demand", "usd_per_hour": Decimal("1.5"), "gpus": 1}
    return offer(name, **(defaults | changes))


def at(site: str) -> tuple[tuple[Term, ...], ...]:
    return ((Term("site", frozenset({site})),),)


def task(demand_id: str = "t", *, gpus: float = 1, site: str | None = None) -> Demand:
    resources = {"GPU": float(gpus)} if gpus else {"CPU": 1.0}
    return Demand(demand_id, (Bundle(resources, at(site) if site else ()),))


def group(
    *bundles: Bundle, strategy: Strategy = "PACK", demand_id: str = "g", name: str | None = "pg"
) -> Demand:
    return Demand(demand_id, bundles, strategy, name)


def node_of(kind: Offer, name: str = "n", **free: float) -> Node:
    return Node(
        id=name,
        node_type=kind.name,
        is_owned=kind.is_owned,
        total=kind.resources,
        free=kind.resources | free,
        labels=kind.labels,
    )


def types(launches: tuple[Launch, ...]) -> tuple[str, ...]:
    return tuple(launch.node_type for launch in launches)


def place(*demands: Demand, offers: tuple[Offer, ...], limits: Limits = NO_LIMITS) -> Placement:
    return plan_placement(Situation(offers=offers, demands=demands), limits)


def test_a_task_that_fits_a_large_owned_type_never_launches_a_snug_cloud_type() -> None:
    """Stock Ray launches the 1-GPU cloud type: its one GPU would be used fully."""
    assert types(place(task(), offers=(offer(gpus=4), cloud(gpus=1))).launches) == ("onprem",)


def test_demand_that_fits_owned_stays_there_whatever_waits_beside_it() -> None:
    """The cloud group gets its cloud node, mars is infeasible, the expensive one is refused."""
    limits = replace(NO_LIMITS, usd_per_hour_max=Decimal(5))
    dear = cloud("dear", site="gcp", usd_per_hour=Decimal(50))
    found = place(
        task("free"),
        task("mars", site="mars"),
        task("refused", site="gcp"),
        group(Bundle({"GPU": 1.0}, at("aws"))),
        offers=(offer(), cloud(), dear),
        limits=limits,
    )
    assert types(found.launches) == ("onprem", "cloud")
    assert [demand.id for demand in found.infeasible] == ["mars"]
    assert [unplaced.demand.id for unplaced in found.waiting] == ["refused"]
    assert "51.5 $/h would be committed" in found.waiting[0].refusals[0].text


def test_with_owned_full_the_remainder_goes_to_the_cloud() -> None:
    """Four of six tasks fill the one owned node; two cloud nodes take the rest."""
    tasks = [task(str(number)) for number in range(6)]
    found = place(*tasks, offers=(offer(nodes_max=1), cloud()))
    assert types(found.launches) == ("onprem", "cloud", "cloud")


def test_a_node_on_its_way_serves_the_demand_that_asked_for_it() -> None:
    onprem = offer()
    found = plan_placement(
        Situation(offers=(onprem, cloud()), nodes=(node_of(onprem),), demands=(task(),)), NO_LIMITS
    )
    assert types(found.launches) == ()
    assert found.used_nodes == {"n"}


def test_a_free_cloud_node_is_left_to_the_group_that_needs_it() -> None:
    """The unlabelled task launches on-prem rather than push the group to a second cloud node."""
    burst = cloud()
    found = plan_placement(
        Situation(
            offers=(offer(), burst),
            nodes=(node_of(burst, "c"),),
            demands=(task(), group(Bundle({"GPU": 1.0}, at("aws")))),
        ),
        NO_LIMITS,
    )
    assert types(found.launches) == ("onprem",)
    assert found.used_nodes == {"c"}


def test_types_are_tried_by_market_then_by_price_for_what_they_serve() -> None:
    """Spot before on-demand; of two on-demand types 4 GPUs at 4 USD serve 4 tasks cheaper."""
    spot = cloud("spot", market="spot", nodes_max=1)
    small = cloud("small", usd_per_hour=Decimal("1.2"))
    large = cloud("large", gpus=4, usd_per_hour=Decimal(4))
    assert types(place(task(), offers=(small, spot, large)).launches) == ("spot",)
    tasks = [task(str(number)) for number in range(4)]
    assert types(place(*tasks, offers=(small, large)).launches) == ("large",)
    assert types(place(task(), offers=(small, large)).launches) == ("small",)


def test_a_type_whose_nodes_do_not_join_is_tried_last_in_its_market() -> None:
    """Owned in doubt still comes before any cloud: one failed node must not cost money.

    The demand waits for owned capacity. For serving, the brain opens the cloud once the owned
    replica is overdue.
    """
    doubt = "its last node did not join"
    doubtful = offer(doubt=doubt)
    assert types(place(task(), offers=(doubtful, cloud())).launches) == ("onprem",)
    assert types(place(task(), offers=(doubtful, offer("second"))).launches) == ("second",)
    clouds = (cloud("spot", market="spot", doubt=doubt), cloud(doubt=doubt), cloud("other"))
    assert types(place(task(), offers=clouds).launches) == ("spot",)
    assert types(place(task(), offers=clouds[1:]).launches) == ("other",)


def test_a_sold_out_type_is_passed_over_for_the_next_tier_in_the_same_tick() -> None:
    held = Held("sold_out", "is sold out until 12:00:00 UTC: InsufficientInstanceCapacity")
    spot = cloud("spot", market="spot", held=held)
    found = place(task(), offers=(spot, cloud()))
    assert types(found.launches) == ("cloud",)
    alone = place(task(), offers=(spot,))
    assert types(alone.launches) == ()
    (refusal,) = alone.waiting[0].refusals
    assert refusal.limit == "sold_out"


def test_a_cordoned_node_fills_its_place_and_what_it_blocks_goes_to_the_next_tier() -> None:
    """The one on-prem host is cordoned: the task goes on. A leaving node would be waited for."""
    offers = (offer(nodes_max=1), cloud())
    asked = Situation(offers=offers, demands=(task(),))
    assert types(plan_placement(replace(asked, retiring=("onprem",)), NO_LIMITS).launches) == (
        "cloud",
    )
    assert types(plan_placement(replace(asked, leaving=("onprem",)), NO_LIMITS).launches) == ()


def test_a_retiring_node_still_costs_money() -> None:
    """1.5 of 2 USD/h are committed to a node that takes no more work: no second one fits."""
    limits = replace(NO_LIMITS, usd_per_hour_max=Decimal(2))
    situation = Situation(offers=(cloud(),), retiring=("cloud",), demands=(task(),))
    assert types(plan_placement(situation, limits).launches) == ()


def test_work_without_an_accelerator_leaves_accelerators_free() -> None:
    plain = offer("plain", gpus=0)
    assert types(place(task(gpus=0), offers=(offer("gpu"), plain)).launches) == ("plain",)
    assert types(place(task(gpus=0), offers=(offer("gpu"), cloud("cheap", gpus=0))).launches) == (
        "gpu",
    )


def test_equal_tasks_fill_the_tightest_node_then_the_next_one() -> None:
    """Five tasks: two into the node with 2 free GPUs, then three into the one with 3 of 4."""
    kind = offer()
    nodes = (
        node_of(kind, "roomy", GPU=4),
        node_of(kind, "tight", GPU=2),
        node_of(kind, "n", GPU=3),
    )
    demands = tuple(task(f"t{number}") for number in range(5))
    plan = plan_placement(Situation(offers=(), nodes=nodes, demands=demands), NO_LIMITS)
    assert plan.used_nodes == {"tight", "n"}
    assert plan.waiting == ()


def test_demand_with_few_places_to_go_is_served_before_demand_with_many() -> None:
    """One owned GPU: the task bound to the site takes it, the other may burst."""
    found = place(
        task("anywhere"), task("bound", site="onprem"), offers=(offer(gpus=1, nodes_max=1), cloud())
    )
    assert types(found.launches) == ("onprem", "cloud")
    assert found.waiting == ()


def test_a_strict_pack_group_shares_one_node() -> None:
    two = (Bundle({"GPU": 2.0}), Bundle({"GPU": 2.0}))
    offers = (offer("small", gpus=2), offer("large", gpus=4))
    assert types(place(group(*two, strategy="STRICT_PACK"), offers=offers).launches) == ("large",)
    impossible = group(*two, Bundle({"GPU": 1.0}), strategy="STRICT_PACK")
    assert place(impossible, offers=offers).infeasible == (impossible,)


def test_a_strict_spread_group_uses_a_node_for_each_bundle() -> None:
    """A third bundle's node exists and holds a bundle of the group: it takes no other."""
    onprem = offer()
    spread = group(Bundle({"GPU": 1.0}), Bundle({"GPU": 1.0}), strategy="STRICT_SPREAD")
    taken = replace(node_of(onprem), groups=frozenset({"pg"}))
    found = plan_placement(
        Situation(offers=(onprem,), nodes=(taken,), demands=(spread,)), NO_LIMITS
    )
    assert types(found.launches) == ("onprem", "onprem")


def test_pack_and_spread_launch_no_node_for_their_wish() -> None:
    for strategy in ("PACK", "SPREAD"):
        both = group(Bundle({"GPU": 1.0}), Bundle({"GPU": 1.0}), strategy=strategy)
        assert types(place(both, offers=(offer(),)).launches) == ("onprem",)


def test_a_group_over_two_sites_gets_a_node_at_each() -> None:
    both = group(Bundle({"GPU": 1.0}, at("onprem")), Bundle({"GPU": 1.0}, at("aws")))
    assert types(place(both, offers=(offer(), cloud())).launches) == ("onprem", "cloud")


def test_half_a_group_launches_nothing() -> None:
    """Two cloud bundles, money for one: no node is paid for that can't be used."""
    limits = replace(NO_LIMITS, usd_per_hour_max=Decimal(2))
    bundle = Bundle({"GPU": 1.0}, at("aws"))
    found = place(group(bundle, bundle), offers=(offer(), cloud()), limits=limits)
    assert types(found.launches) == ()
    assert found.waiting[0].refusals[0].limit == "usd_per_hour"


def test_the_first_selector_that_holds_is_enough() -> None:
    either = Demand("e", (Bundle({"GPU": 1.0}, (*at("mars"), *at("aws"))),))
    assert types(place(either, offers=(offer(), cloud())).launches) == ("cloud",)


def test_a_negated_term_keeps_demand_off_a_site() -> None:
    away = Demand(
        "a", (Bundle({"GPU": 1.0}, ((Term("site", frozenset({"onprem"}), is_negated=True),),)),)
    )
    assert types(place(away, offers=(offer(), cloud())).launches) == ("cloud",)


def test_the_minimum_of_each_type_is_launched_without_demand() -> None:
    assert types(place(offers=(offer(nodes_min=2), cloud())).launches) == ("onprem", "onprem")


def test_a_minimum_node_serves_demand_too() -> None:
    assert types(place(task(), offers=(offer(nodes_min=1), cloud())).launches) == ("onprem",)


def test_a_reservation_is_measured_on_whole_nodes_and_owned_first() -> None:
    """Four GPUs in use are still four GPUs that exist; the other four are launched on-prem."""
    onprem = offer()
    reservation = Demand("r", tuple(Bundle({"GPU": 1.0}) for _ in range(8)))
    found = plan_placement(
        Situation(
            offers=(onprem, cloud()), nodes=(node_of(onprem, GPU=0.0),), reservation=reservation
        ),
        NO_LIMITS,
    )
    assert types(found.launches) == ("onprem",)
    assert found.used_nodes == {"n"}
    assert found.is_reservation_met


def test_demand_waits_for_an_owned_node_on_its_way_out_instead_of_going_to_the_cloud() -> None:
    """The type's one place is still taken; next tick it is free."""
    found = plan_placement(
        Situation(offers=(offer(nodes_max=1), cloud()), leaving=("onprem",), demands=(task(),)),
        NO_LIMITS,
    )
    assert types(found.planned) == ("onprem",)
    assert types(found.launches) == ()
    assert found.refusals[0].text == "onprem is full: 1 of 1 nodes"


def test_launches_per_tick_delay_owned_demand_and_do_not_send_it_to_the_cloud() -> None:
    tasks = [task(str(number), gpus=4) for number in range(3)]
    found = place(*tasks, offers=(offer(), cloud(gpus=4)), limits=Limits(launches_per_tick=1))
    assert types(found.launches) == ("onprem",)
    assert types(found.planned) == ("onprem",) * 3
    assert "waits for the next tick" in found.refusals[0].text


_SITES = st.sampled_from([None, None, "onprem", "aws", "mars"])
_BUNDLES = st.builds(
    lambda gpus, site: Bundle({"GPU": float(gpus)}, at(site) if site else ()),
    st.integers(1, 5),
    _SITES,
)
_DEMANDS = st.lists(
    st.tuples(
        st.lists(_BUNDLES, min_size=1, max_size=3),
        st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
    ),
    max_size=8,
).map(
    lambda drawn: tuple(
        Demand(str(index), tuple(bundles), strategy)
        for index, (bundles, strategy) in enumerate(drawn)
    )
)
_LIMITS = st.builds(
    Limits,
    launches_per_tick=st.integers(1, 6),
    site_nodes_max=st.fixed_dictionaries({"onprem": st.integers(0, 4), "aws": st.integers(0, 4)}),
    cluster_nodes_max=st.none() | st.integers(0, 6),
    usd_per_hour_max=st.none() | st.decimals(0, 8, places=2),
)
_OFFERS = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3), st.integers(1, 4)).map(
    lambda n: (
        offer(nodes_max=n[0], gpus=n[1]),
        cloud(nodes_max=n[2], gpus=n[3]),
        cloud("spot", market="spot", usd_per_hour=Decimal("0.5"), nodes_max=2),
    )
)


@given(_OFFERS, _DEMANDS, _LIMITS)
def test_the_same_situation_always_gives_the_same_plan(
    offers: tuple[Offer, ...], demands: tuple[Demand, ...], limits: Limits
) -> None:
    """The order in which demand and types are listed doesn't matter either."""
    first = plan_placement(Situation(offers=offers, demands=demands), limits)
    again = plan_placement(Situation(offers=offers[::-1], demands=demands[::-1]), limits)
    assert first == again


@given(_OFFERS, _DEMANDS, _LIMITS)
def test_launches_keep_every_limit(
    offers: tuple[Offer, ...], demands: tuple[Demand, ...], limits: Limits
) -> None:
    found = types(plan_placement(Situation(offers=offers, demands=demands), limits).launches)
    known = {kind.name: kind for kind in offers}
    assert len(found) <= limits.launches_per_tick
    assert limits.cluster_nodes_max is None or len(found) <= limits.cluster_nodes_max
    for kind in offers:
        assert found.count(kind.name) <= kind.nodes_max
    for site, nodes_max in limits.site_nodes_max.items():
        assert sum(known[name].site == site for name in found) <= nodes_max
    usd_per_hour = sum((known[name].usd_per_hour or Decimal(0) for name in found), Decimal(0))
    assert limits.usd_per_hour_max is None or usd_per_hour <= limits.usd_per_hour_max


@given(_OFFERS, _DEMANDS, _LIMITS, st.integers(1, 4))
def test_one_more_task_that_fits_a_free_owned_node_changes_no_launch(
    offers: tuple[Offer, ...], demands: tuple[Demand, ...], limits: Limits, gpus: int
) -> None:
    """A spare owned node only the task may use: whatever else waits, it launches nothing."""
    spare = Node(
        id="spare",
        node_type="spare",
        is_owned=True,
        total={"GPU": 4.0, "mine": 1.0},
        free={"GPU": 4.0, "mine": 1.0},
        labels={"site": "spare"},
    )
    mine = Demand("mine", (Bundle({"GPU": float(gpus), "mine": 1.0}),))
    bound = tuple(_bind(demand) for demand in demands)
    without = Situation(offers=offers, nodes=(spare,), demands=bound)
    alone = plan_placement(without, limits)
    joined = plan_placement(replace(without, demands=(*bound, mine)), limits)
    assert joined.launches == alone.launches


@given(_OFFERS, _DEMANDS, _LIMITS)
def test_no_cloud_node_is_planned_while_owned_capacity_fits_what_it_is_for(
    offers: tuple[Offer, ...], demands: tuple[Demand, ...], limits: Limits
) -> None:
    """Taking the cloud away launches no more owned nodes: cloud never displaced one."""
    limits = replace(limits, launches_per_tick=100, cluster_nodes_max=None)
    owned = tuple(kind for kind in offers if kind.is_owned)
    single = tuple(demand for demand in demands if len(demand.bundles) == 1)
    mixed = plan_placement(Situation(offers=offers, demands=single), limits)
    alone = plan_placement(Situation(offers=owned, demands=single), limits)
    assert types(mixed.planned).count("onprem") == len(alone.planned)


def _bind(demand: Demand) -> Demand:
    """The same demand, unable to use the spare node."""
    away = Term("site", frozenset({"spare"}), is_negated=True)
    bundles = tuple(
        replace(b, selectors=tuple((*s, away) for s in b.selectors or ((),)))
        for b in demand.bundles
    )
    return replace(demand, bundles=bundles)


def test_ten_thousand_equal_tasks_are_planned_quickly() -> None:
    """Equal demand that failed once isn't tried again; this takes well under a second."""
    tasks = tuple(task(str(number)) for number in range(10_000))
    found = place(*tasks, offers=(offer(nodes_max=2), cloud(nodes_max=2)))
    assert types(found.launches) == ("onprem",) * 2 + ("cloud",) * 2
    assert len(found.waiting) == 10_000 - 10
