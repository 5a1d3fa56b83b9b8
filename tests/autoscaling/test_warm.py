"""Who is awake on a shared GPU: examples, and the laws for every order of events.

Two models, `a` and `b`, with one engine each on GPU 0 of node n. A turn is 30 s.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.warm import WarmDecision, WarmDemand, WarmRules, decide_warm
from deployments.warm_board import WarmOrders, WarmReport, WarmState

RULES = WarmRules(turn_s=30.0, look_s=3.0)
NONE = WarmOrders()


def engine(
    app: str, *, state: WarmState = "asleep", order: int = 0, live: int = 0, gpu: str = "n/0"
) -> WarmReport:
    return WarmReport(
        replica_id=f"{app}-1",
        app=app,
        pool="onprem-h100-owned",
        gpus=(gpu,),
        state=state,
        order=order,
        live=live,
        at_s=0.0,
    )


def decide(
    *reports: WarmReport,
    orders: WarmOrders = NONE,
    now_s: float = 100.0,
    **waiting: int,
) -> WarmDecision:
    demands = [WarmDemand(app, count, usd_per_late_request=0.01) for app, count in waiting.items()]
    return decide_warm(reports, demands, orders, now_s=now_s, rules=RULES)


def holding(app: str, *, since_s: float) -> WarmOrders:
    return WarmOrders(number=5, awake={f"{app}-1": since_s})


def test_a_model_that_waits_wakes_its_sleeper_on_a_free_gpu_at_once() -> None:
    found = decide(engine("a"), engine("b"), a=1)
    assert found.orders == WarmOrders(1, {"a-1": 100.0})
    assert found.reasons == ("a/onprem-h100-owned: a-1 wakes",)


def test_nobody_wakes_while_nobody_waits() -> None:
    orders = holding("a", since_s=10.0)
    reports = engine("a", state="awake", order=5), engine("b", order=5)
    assert decide(*reports, orders=orders).orders == orders


def test_an_idle_engine_gives_its_gpu_to_a_model_that_waits() -> None:
    """It is told to sleep first; the other wakes when it has said that it does."""
    reports = engine("a", state="awake", order=5), engine("b", order=5)
    found = decide(*reports, orders=holding("a", since_s=90.0), b=1)
    assert found.orders == WarmOrders(6, {}, ("b-1",))
    assert found.away == {}

    for state in ("awake", "leaving"):
        leaving = engine("a", state=state, order=6), engine("b", order=6)
        assert decide(*leaving, orders=found.orders, b=1).orders == found.orders
    unheard = engine("a", state="asleep", order=5), engine("b", order=6)
    assert decide(*unheard, orders=found.orders, b=1).orders == found.orders

    asleep = engine("a", order=6), engine("b", order=6)
    assert decide(*asleep, orders=found.orders, b=1).orders == WarmOrders(7, {"b-1": 100.0})


def test_an_engine_that_just_woke_is_not_taken_for_idle() -> None:
    orders = holding("a", since_s=98.0)
    reports = engine("a", state="awake", order=5), engine("b", order=5)
    assert decide(*reports, orders=orders, b=1).orders == orders


def test_a_busy_engine_keeps_its_gpu_for_its_turn() -> None:
    reports = engine("a", state="awake", order=5, live=2), engine("b", order=5)
    orders = holding("a", since_s=70.5)
    kept = decide(*reports, orders=orders, b=1)
    assert (kept.orders, kept.away) == (orders, {"b-1": "a"})
    assert decide(*reports, orders=orders).away == {}, "nobody waits for it"
    found = decide(*reports, orders=orders, now_s=100.5, b=1)
    assert found.orders == WarmOrders(6, {}, ("b-1",))
    assert found.reasons == ("a/onprem-h100-owned: a-1 sleeps once its 2 streams end, for b",)


def test_what_must_stay_yields_only_to_what_must_stay() -> None:
    reports = engine("a", state="awake", order=5, live=2), engine("b", order=5)
    orders = holding("a", since_s=0.0)
    kept = WarmDemand("a", waiting=1, must_stay=1)
    for must_stay, number in ((0, 5), (1, 6)):
        demands = [kept, WarmDemand("b", waiting=9, must_stay=must_stay)]
        found = decide_warm(reports, demands, orders, now_s=100.0, rules=RULES)
        assert found.orders.number == number


def test_what_must_stay_is_first_and_then_what_is_worth_most() -> None:
    reports = [engine(app) for app in "abc"]
    demands = [
        WarmDemand("a", waiting=1, usd_per_late_request=1.0),
        WarmDemand("b", waiting=9, usd_per_late_request=1.0),
        WarmDemand("c", waiting=1, must_stay=1),
    ]
    first = decide_warm(reports, demands, WarmOrders(), now_s=0.0, rules=RULES)
    assert list(first.orders.awake) == ["c-1"]
    second = decide_warm(reports[:2], demands[:2], WarmOrders(), now_s=0.0, rules=RULES)
    assert list(second.orders.awake) == ["b-1"]


def test_engines_that_never_ran_start_one_after_another_and_disturb_nobody_who_works() -> None:
    reports = engine("a", state="waits"), engine("b", state="waits")
    first = decide(*reports).orders
    assert list(first.awake) == ["a-1"]
    started = engine("a", state="awake", order=1), engine("b", state="waits", order=1)
    assert decide(*started, orders=first, now_s=104.0).orders == WarmOrders(2, {}, ("b-1",))
    busy = engine("a", state="awake", order=1, live=1), engine("b", state="waits", order=1)
    assert decide(*busy, orders=first, now_s=999.0).orders == first


def test_one_sleeper_is_woken_at_a_time_and_only_if_those_awake_all_work() -> None:
    """Model a has a second engine on GPU 1, which b uses; a's first answers nothing yet."""
    second = replace(engine("a", gpu="n/1", order=5), replica_id="a-2")
    first = engine("a", state="awake", order=5)
    rival = engine("b", state="awake", gpu="n/1", order=5)
    orders = WarmOrders(5, {"a-1": 0.0, "b-1": 0.0})
    assert decide(first, second, rival, orders=orders, a=4).orders == orders
    busy = replace(first, live=4)
    found = decide(busy, second, rival, orders=orders, a=4)
    assert found.orders == WarmOrders(6, {"a-1": 0.0}, ("a-2",))
    asleep = engine("a", order=5)
    both = decide(asleep, second, rival, orders=holding("b", since_s=0.0), a=4)
    assert both.orders == WarmOrders(6, {"a-1": 100.0, "b-1": 0.0})


def test_engines_on_different_gpus_do_not_wait_for_each_other() -> None:
    found = decide(engine("a"), engine("b", gpu="n/1"), a=1, b=1)
    assert set(found.orders.awake) == {"a-1", "b-1"}


def test_a_group_wakes_only_when_all_of_its_gpus_are_free() -> None:
    group = replace(engine("t"), gpus=("n/0", "n/1"))
    held = engine("b", state="awake", live=1, gpu="n/1", order=5)
    orders = holding("b", since_s=99.0)
    assert decide(replace(group, order=5), held, orders=orders, t=1).orders == orders


def test_a_gpu_that_a_group_waits_for_is_given_to_nobody_else() -> None:
    """Its other GPU is still with b, which is leaving; a would have had the free one."""
    group = replace(engine("t", order=6), gpus=("n/0", "n/1"))
    leaving = engine("b", state="leaving", order=6, live=1, gpu="n/1")
    orders = WarmOrders(6, {}, ("t-1",))
    found = decide(group, leaving, engine("a", order=6), orders=orders, a=9, t=1)
    assert found.orders == orders


@dataclass
class World:
    """Engines that hear orders late, take time, and die; GPU memory is counted."""

    reports: dict[str, WarmReport]
    orders: WarmOrders = field(default_factory=WarmOrders)
    now_s: float = 0.0

    def think(self, waiting: dict[str, int]) -> None:
        self.now_s += 1.0
        demands = [WarmDemand(app, count, usd_per_late_request=1) for app, count in waiting.items()]
        found = decide_warm(
            self.reports.values(), demands, self.orders, now_s=self.now_s, rules=RULES
        )
        again = decide_warm(
            list(self.reports.values())[::-1], demands, self.orders, now_s=self.now_s, rules=RULES
        )
        assert found == again, "the same input in any order gives the same orders"
        self.orders = found.orders

    def hear(self, key: str) -> None:
        """The replica reads the orders, acts on them a step, and says so."""
        one = self.reports[key]
        may = key in self.orders.awake
        after: dict[WarmState, tuple[WarmState, WarmState]] = {
            "waits": ("waits", "starting"),
            "starting": ("starting", "awake"),
            "awake": ("leaving", "awake"),
            "leaving": ("asleep", "awake"),
            "asleep": ("asleep", "waking"),
            "waking": ("waking", "awake"),
        }
        state = after[one.state][may]
        if one.state in ("starting", "waking"):
            state = "awake"
        self.reports[key] = replace(one, state=state, order=self.orders.number)

    def check(self) -> None:
        users: dict[str, str] = {}
        for one in self.reports.values():
            for gpu in one.gpus if one.state not in ("waits", "asleep") else ():
                assert users.setdefault(gpu, one.replica_id) == one.replica_id, gpu


GPUS = st.sampled_from([("n/0",), ("n/1",), ("n/0", "n/1")])


@given(
    st.lists(GPUS, min_size=2, max_size=5),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 3)), min_size=5, max_size=80
    ),
)
@settings(max_examples=200)
def test_never_two_engines_have_memory_of_one_gpu(
    gpus: list[tuple[str, ...]], steps: list[tuple[int, int, int]]
) -> None:
    """Orders are heard in any order and as late as can be; a replica may vanish and come back."""
    keys = [chr(ord("a") + index) for index in range(len(gpus))]
    world = World(
        {
            f"{key}-1": replace(engine(key, state="waits"), gpus=tuple(on))
            for key, on in zip(keys, gpus, strict=True)
        }
    )
    for kind, which, waiting in steps:
        key = f"{keys[which % len(keys)]}-1"
        if kind == 0:
            world.reports[key] = replace(world.reports[key], state="waits", order=0, live=0)
        elif kind == 1:
            world.reports[key] = replace(world.reports[key], live=waiting)
        elif kind <= 3:
            world.hear(key)
        else:
            world.think({keys[which % len(keys)]: waiting})
        world.check()


@given(st.integers(1, 5), st.integers(1, 5))
def test_two_models_that_always_wait_take_turns(a: int, b: int) -> None:
    """Each is awake again and again; neither for less than a turn."""
    world = World({"a-1": engine("a"), "b-1": engine("b")})
    spells: list[tuple[str, float]] = []
    for _ in range(300):
        world.think({"a": a, "b": b})
        for key in world.reports:
            world.hear(key)
            is_awake = world.reports[key].state == "awake"
            world.reports[key] = replace(world.reports[key], live=3 if is_awake else 0)
        world.check()
        awake = [key for key, one in world.reports.items() if one.state == "awake"]
        if awake and (not spells or spells[-1][0] != awake[0]):
            spells.append((awake[0], world.now_s))
    assert {key for key, _ in spells} == {"a-1", "b-1"}
    assert len(spells) >= 300 / (RULES.turn_s + 10)
    gaps = [later - earlier for (_, earlier), (_, later) in pairwise(spells)]
    assert min(gaps) >= RULES.turn_s
