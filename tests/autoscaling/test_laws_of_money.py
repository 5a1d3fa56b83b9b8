"""The budget holds through all that decides: brain, placement and guard, second by second."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.demand import Bundle, Demand, Node, Term
from autoscaling.guard import Limits, Offer
from autoscaling.placement import Placement, Situation, plan_placement
from cluster.budget import Commitment, MoneyLimits, SpendNow, budget_status
from tests.autoscaling.brain_run import CLOUD, ONPREM, SPOT, BrainRun, offer

_LEASE_S = 60.0
_LOADS = st.lists(
    st.tuples(st.sampled_from([5, 20, 40]), st.integers(0, 4), st.integers(0, 9)), max_size=6
)
_MONEY = st.sampled_from([None, "0.5", "1", "2.5", "4"])


def _place_at(kind: Offer) -> Offer:
    """The type with the labels by which demand finds it."""
    labels = {"site": kind.site, "market": kind.market}
    return Offer(
        name=kind.name,
        site=kind.site,
        market=kind.market,
        resources=kind.resources,
        labels=labels,
        usd_per_hour=kind.usd_per_hour,
        nodes_max=4,
    )


KINDS = {
    pool.pool: _place_at(offer(pool, usd))
    for pool, usd in ((ONPREM, "0"), (CLOUD, "2"), (SPOT, "1"))
}
OFFERS = {kind.name: kind for kind in KINDS.values()}


@dataclass
class Nodes:
    """The nodes there are, what they have cost, and what the ledger promises."""

    limits: MoneyLimits
    since_s: dict[str, float] = field(default_factory=dict)
    spent_usd: Decimal = Decimal(0)
    count: int = 0

    def kind(self, node: str) -> Offer:
        """A node's type, which its name begins with."""
        return OFFERS[node.split("#", maxsplit=1)[0]]

    def spend(self, now_s: float) -> SpendNow:
        """What is spent and committed at this moment."""
        prices = [
            Commitment(self.kind(name).usd_per_hour, since_s)
            for name, since_s in self.since_s.items()
        ]
        return SpendNow(now_s, prices, day_usd=self.spent_usd, month_usd=self.spent_usd)

    def follow(self, planned: dict[str, int], *, now_s: float) -> Placement:
        """Let a second pass: nodes cost, what isn't planned any more ends, the rest is placed."""
        for name in self.since_s:
            self.spent_usd += (self.kind(name).usd_per_hour or Decimal(0)) / 3600
        for pool, kind in KINDS.items():
            of_kind = [name for name in self.since_s if self.kind(name) is kind]
            for name in of_kind[planned.get(pool, 0) :]:
                del self.since_s[name]
        placement = plan_placement(
            Situation(
                offers=tuple(OFFERS.values()),
                nodes=tuple(self._describe(name) for name in self.since_s),
                demands=tuple(self._list_demands(planned)),
            ),
            Limits(
                launches_per_tick=10,
                usd_per_hour_max=self.limits.usd_per_hour,
                budget=budget_status(self.spend(now_s), self.limits),
            ),
        )
        for launch in placement.launches:
            self.count += 1
            self.since_s[f"{launch.node_type}#{self.count}"] = now_s
        return placement

    def _describe(self, name: str) -> Node:
        kind = self.kind(name)
        # A replica is on each node already: nothing is free.
        return Node(name, kind.name, kind.is_owned, kind.resources, {"GPU": 0.0}, kind.labels)

    def _list_demands(self, planned: dict[str, int]) -> list[Demand]:
        have = Counter(self.kind(name).name for name in self.since_s)
        return [
            Demand(f"{pool}-{number}", (Bundle({"GPU": 1.0}, (_bind(kind),)),))
            for pool, kind in KINDS.items()
            for number in range(planned.get(pool, 0) - have[kind.name])
        ]


def _bind(kind: Offer) -> tuple[Term, ...]:
    return tuple(Term(key, frozenset({value})) for key, value in kind.labels.items())


@settings(max_examples=min(15, settings().max_examples))
@given(_LOADS, _MONEY, _MONEY)
def test_no_load_makes_brain_and_placement_spend_more_than_the_limits(
    load: list[tuple[int, int, int]], usd_per_hour: str | None, usd_per_day: str | None
) -> None:
    """Prices of all nodes stay within the hour's limit at every second.

    Of a day's limit, what is spent and promised to leases is within it whenever something is
    launched. $0.5 are 15 minutes of one node and the loads are shorter: a hundredth is set.
    """
    limits = MoneyLimits(
        usd_per_hour=None if usd_per_hour is None else Decimal(usd_per_hour),
        usd_per_day=None if usd_per_day is None else Decimal(usd_per_day) / 100,
        lease_s_min=_LEASE_S,
    )
    run, nodes = BrainRun(pools=(ONPREM, CLOUD, SPOT)), Nodes(limits)
    for seconds, stay, leave in load:
        for _ in range(seconds):
            run.second(stay=stay, leave=leave)
            launched = nodes.follow(run.planned, now_s=run.now_s).launches
            status = budget_status(nodes.spend(run.now_s), limits)
            burn = status.burn_usd_per_hour
            assert burn is not None
            assert limits.usd_per_hour is None or burn <= limits.usd_per_hour
            if any((OFFERS[launch.node_type].usd_per_hour or 0) > 0 for launch in launched):
                for use in status.uses:
                    assert use.used_usd is not None
                    assert use.used_usd <= use.limit_usd


def test_without_limits_the_same_world_launches_and_ends_nodes() -> None:
    """The law above would hold of a world that never launches."""
    run, nodes = BrainRun(pools=(ONPREM, CLOUD, SPOT)), Nodes(MoneyLimits())
    most = 0
    for seconds, leave in ((60, 1), (120, 5), (300, 1)):
        for _ in range(seconds):
            run.second(leave=leave)
            nodes.follow(run.planned, now_s=run.now_s)
            most = max(most, sum(not nodes.kind(name).is_owned for name in nodes.since_s))
    assert most >= 2
    assert all(nodes.kind(name).is_owned for name in nodes.since_s)
    assert nodes.spent_usd > 0


def test_a_spent_budget_rents_nothing_more_whatever_waits() -> None:
    """A cent a day is less than a minute of spot at $1 an hour."""
    limits = MoneyLimits(usd_per_day=Decimal("0.01"), lease_s_min=_LEASE_S)
    run, nodes = BrainRun(pools=(ONPREM, CLOUD, SPOT)), Nodes(limits)
    for _ in range(200):
        run.second(leave=5)
        placement = nodes.follow(run.planned, now_s=run.now_s)
    assert run.planned["cloud"] + run.planned["spot"] > 0
    assert all(nodes.kind(name).is_owned for name in nodes.since_s)
    refusals = [refusal.limit for one in placement.waiting for refusal in one.refusals]
    assert set(refusals) == {"usd_per_day"}
