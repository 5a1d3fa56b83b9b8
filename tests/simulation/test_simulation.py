"""Laws of a whole run, whatever the policy: nothing is lost, nothing leaks, money has a limit."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoscaling.guard import Limits
from autoscaling.peers.registry import POLICY_NAMES, run_policy
from autoscaling.placement import Situation
from autoscaling.simulator.clock import EPOCH_S
from autoscaling.simulator.engine_model import BLOCK_TOKENS
from autoscaling.simulator.generators import Shape, generate
from autoscaling.simulator.policy import Placed, Signals, Wish
from autoscaling.simulator.scenario import SPOT_HEAVY, Scenario
from autoscaling.simulator.simulation import Simulation
from autoscaling.simulator.tidegate_policy import TidegatePolicy
from autoscaling.simulator.timeline import build_timeline
from autoscaling.simulator.traffic import Traffic, mark_restricted
from autoscaling.snapshot import BurstPolicy
from cluster.errors import ConfigError
from tests.simulation.simulated_runs import EAGER, Listening, MakeTraffic

# ray-default imports Ray, a matter of seconds: it has its own test.
FAST_POLICIES = tuple(name for name in POLICY_NAMES if name not in {"ray-default", "oracle"})


@pytest.mark.parametrize("name", FAST_POLICIES)
def test_every_request_ends_in_one_way_and_none_breaks_residency(
    name: str, scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    traffic = mark_restricted(make_traffic(duration_s=90.0), 0.3, seed=1)
    found = run_policy(name, traffic, scenario, seed=1)
    ended = found.completed + found.rejected + found.failed + found.unfinished
    assert ended == len(traffic.requests)
    assert found.residency_violations == 0
    assert 0 <= found.slo_attainment <= 1


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 1000), rps=st.floats(1, 20), ratio=st.floats(0, 1), heavy=st.booleans())
def test_whatever_comes_requests_are_conserved_and_the_budget_holds(
    scenario: Scenario, seed: int, rps: float, ratio: float, *, heavy: bool
) -> None:
    """The limit of 4 $/h allows two on-demand nodes, or five on spot, or less than both."""
    limits = scenario.settings.limits.model_copy(update={"usd_per_hour": Decimal(4)})
    scenario = replace(
        scenario,
        settings=replace(scenario.settings, limits=limits),
        spot=replace(SPOT_HEAVY, losses_per_hour=30.0) if heavy else scenario.spot,
    )
    traffic = generate("bursty", Shape(mean_rps=rps, duration_s=90.0), seed=seed)
    traffic = mark_restricted(traffic, ratio, seed=seed)
    run = Simulation(traffic, scenario, TidegatePolicy(EAGER), seed=seed)
    found = run.run()
    ended = found.completed + found.rejected + found.failed + found.unfinished
    assert ended == len(traffic.requests)
    assert run.tally.violations == 0
    assert run.tally.burn_usd_per_hour_max <= 4


def test_the_same_seed_gives_the_same_figures_and_another_does_not(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    heavy = replace(scenario, spot=SPOT_HEAVY)
    traffic = make_traffic(mean_rps=20.0)

    def run(seed: int) -> object:
        policy = TidegatePolicy(EAGER)
        return replace(Simulation(traffic, heavy, policy, seed=seed).run(), wall_s=0.0)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_recorder_changes_no_figure_and_hears_every_answer_node_and_decision(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    heavy = replace(scenario, spot=replace(SPOT_HEAVY, losses_per_hour=30.0))
    traffic = make_traffic(mean_rps=20.0)
    timeline = build_timeline(traffic)
    alone = Simulation(traffic, heavy, TidegatePolicy(EAGER), seed=1).run()
    recorded = Simulation(traffic, heavy, TidegatePolicy(EAGER), seed=1, recorder=timeline).run()
    assert replace(recorded, wall_s=0.0) == replace(alone, wall_s=0.0)
    assert sum(timeline.in_time) == round(alone.slo_attainment * len(traffic.requests))
    rented = [span for span in timeline.spans.values() if span.node_type.startswith("cloud")]
    assert len(rented) == alone.launches > 0
    assert sum(span.end == "lost" for span in rented) == alone.lost_nodes
    assert any(one.reasons for one in timeline.decisions)
    spent = [timeline.samples[at].cloud_usd for at in sorted(timeline.samples)]
    assert spent == sorted(spent)
    assert 0 < spent[-1] <= alone.cloud_usd


def test_the_gateway_counts_what_came_and_what_each_pool_answered(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Steady traffic that ends early: the last report, of an idle system, holds all of it."""
    shape = {"mean_rps": 4.0, "duration_s": 60.0}
    traffic = mark_restricted(make_traffic("steady", **shape), 0.3, seed=1)
    quiet = replace(traffic, duration_s=120.0)
    policy = Listening(EAGER)
    run = Simulation(quiet, scenario, policy, seed=1)
    found = run.run()
    models = [signals.gateway.models[0] for signals in policy.heard]
    last = models[-1]
    assert last.arrived == len(traffic.requests)
    assert last.arrived_may_burst == sum(not one.is_restricted for one in traffic.requests)
    served = [pool.served for pool in last.pools]
    assert sum(one.requests for one in served) == found.completed
    assert sum(one.first_tokens for one in served) == found.completed
    assert sum(one.ttft_s for one in served) == pytest.approx(sum(run.tally.ttft_s))
    assert last.late == sum(ttft_s > scenario.slo.ttft_s for ttft_s in run.tally.ttft_s)
    assert found.completed == len(traffic.requests)
    assert sum(one.output_tokens for one in served) == sum(
        one.output_tokens for one in traffic.requests
    )
    assert sum(one.output_tokens_squared for one in served) == sum(
        one.output_tokens**2 for one in traffic.requests
    )
    assert all(pool.gpu_row in {"a100-80-8b", "l40s-8b"} for pool in last.pools)
    arrived = [model.arrived for model in models]
    assert arrived == sorted(arrived)


def repeat_prefix(traffic: Traffic) -> Traffic:
    """The traffic with prompts of twelve blocks, all but the last the same in all of them."""
    requests = tuple(
        replace(request, prompt_tokens=12 * BLOCK_TOKENS, blocks=(*range(11), 11 + number))
        for number, request in enumerate(traffic.requests)
    )
    return replace(traffic, requests=requests)


def test_the_gateway_counts_what_of_repeated_prompts_was_not_read(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Each replica reads the eleven shared blocks once, and of all others the last block only."""
    traffic = repeat_prefix(make_traffic("steady", mean_rps=2.0, duration_s=60.0))
    policy = Listening(EAGER)
    found = Simulation(replace(traffic, duration_s=120.0), scenario, policy, seed=1).run()
    served = [pool.served for pool in policy.heard[-1].gateway.models[0].pools]
    assert sum(one.requests for one in served) == found.completed == len(traffic.requests)
    replicas = max(sum(pool.running for pool in signals.pools) for signals in policy.heard)
    reused = sum(one.cached_tokens for one in served) / (11 * BLOCK_TOKENS)
    assert reused == len(traffic.requests) - replicas
    whole, last = (12 * BLOCK_TOKENS) ** 2, BLOCK_TOKENS**2
    squares = sum(one.read_tokens_squared for one in served)
    assert squares == replicas * whole + (len(traffic.requests) - replicas) * last


class _Unaware(TidegatePolicy):
    """Is told nothing of what was cached, as by an older gateway."""

    def observe(self, signals: Signals) -> Wish:
        (model,) = signals.gateway.models
        less = {"cached_tokens": 0, "read_tokens_squared": 0, "output_tokens_squared": 0}
        pools = tuple(replace(pool, served=replace(pool.served, **less)) for pool in model.pools)
        gateway = replace(signals.gateway, models=(replace(model, pools=pools),))
        return super().observe(replace(signals, gateway=gateway))


def test_nothing_is_rented_for_prompts_that_need_not_be_read(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Four owned replicas read a twelfth of each prompt and answer all in time.

    A brain that takes them to read whole prompts rents for the same traffic.
    """
    pools = tuple(
        pool.model_copy(update={"min_replicas": 4}) if pool.owned else pool
        for pool in scenario.model.pools
    )
    running = replace(scenario, model=scenario.model.model_copy(update={"pools": pools}))
    traffic = repeat_prefix(make_traffic("steady", mean_rps=5.0, duration_s=240.0))
    aware = Simulation(traffic, running, TidegatePolicy(EAGER), seed=1).run()
    unaware = Simulation(traffic, running, _Unaware(EAGER), seed=1).run()
    assert (aware.launches, aware.slo_attainment) == (0, 1.0)
    assert unaware.launches > 0


class _Leaving(TidegatePolicy):
    """Two rented replicas; nothing more is routed to them from 70 s on, none are left from 72 s."""

    pool = "cloud-l40s-on_demand"

    def __init__(self, policy: BurstPolicy) -> None:
        super().__init__(policy)
        self.begun: dict[int, int] = {}

    def observe(self, signals: Signals) -> Wish:
        at_s = int(signals.now_s - EPOCH_S)
        pools = signals.gateway.models[0].pools
        self.begun[at_s] = sum(pool.served.first_tokens for pool in pools if pool.pool == self.pool)
        owned = {pool.spec.name: 1 for pool in signals.pools if pool.spec.owned}
        return Wish(
            replicas={**owned, self.pool: 2 if at_s < 72 else 0},
            closing=frozenset() if at_s < 70 else frozenset({self.pool}),
        )


def test_a_pool_on_its_way_to_zero_gets_nothing_more_and_ends_what_it_has(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """A prompt is read within 2 s of the stop here, so what is begun stands still from 73 s on."""
    policy = _Leaving(EAGER)
    run = Simulation(make_traffic("steady", mean_rps=12.0), scenario, policy, seed=1)
    found = run.run()
    assert 0 < policy.begun[60] < policy.begun[69] <= policy.begun[73]
    assert policy.begun[73] == policy.begun[119]
    assert (found.failed, found.unfinished) == (0, 0)
    assert run.fleet.served[policy.pool].requests == policy.begun[73]


class _Watching(TidegatePolicy):
    """Fails the run when a cloud node is asked for while an owned one has room for what waits."""

    launches = 0

    def place(self, situation: Situation, limits: Limits) -> Placed:
        placed = super().place(situation, limits)
        kinds = {offer.name: offer for offer in situation.offers}
        cloud = [name for name in placed.launches if not kinds[name].is_owned]
        free = [n for n in situation.nodes if n.is_owned and n.free.get("GPU", 0) >= 1]
        waits_at_home = [
            demand
            for demand in situation.demands
            for node in free
            if all(bundle.accepts(node.labels) for bundle in demand.bundles)
        ]
        assert len(cloud) <= len(situation.demands) - len(waits_at_home)
        self.launches += len(cloud)
        return placed

    def observe(self, signals: Signals) -> Wish:
        wish = super().observe(signals)
        at_home = next(pool for pool in signals.pools if pool.spec.owned)
        burst = sum(count for name, count in wish.replicas.items() if name != at_home.spec.name)
        before = sum(pool.planned for pool in signals.pools if not pool.spec.owned)
        if burst > before:
            assert wish.replicas[at_home.spec.name] == at_home.spec.max_replicas
        return wish


def test_no_cloud_node_is_launched_while_owned_capacity_that_fits_is_free(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    policy = _Watching(EAGER)
    Simulation(make_traffic(mean_rps=20.0), scenario, policy, seed=1).run()
    assert policy.launches > 0


def test_restricted_demand_alone_creates_no_cloud_capacity(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    traffic = mark_restricted(make_traffic(mean_rps=20.0), 1.0, seed=1)
    found = Simulation(traffic, scenario, TidegatePolicy(EAGER), seed=1).run()
    assert found.launches == 0
    assert found.rejected > 0


def test_the_oracle_costs_nothing_where_owned_capacity_is_enough(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    calm = make_traffic("steady", mean_rps=2.0)
    assert run_policy("oracle", calm, scenario, seed=1).cloud_usd == 0
    loud = make_traffic("steady", mean_rps=60.0, duration_s=60.0)
    bound = run_policy("oracle", loud, scenario, seed=1)
    served = run_policy("static-peak", loud, scenario, seed=1)
    assert 0 < bound.cloud_usd < served.cloud_usd
    assert bound.slo_attainment >= served.slo_attainment


def test_rays_own_policy_and_scheduler_are_called(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """It imports Ray, 2 s, and starts none of its processes."""
    traffic = make_traffic("steady", mean_rps=20.0, duration_s=150.0)
    found = run_policy("ray-default", traffic, scenario, seed=1)
    assert found.launches > 0
    assert found.completed + found.rejected + found.failed + found.unfinished == len(
        traffic.requests
    )


def test_an_unknown_policy_is_refused_with_the_names_there_are(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    with pytest.raises(ConfigError, match=r"--policy must be one of tidegate, .*; got 'magic'"):
        run_policy("magic", make_traffic(), scenario, seed=1)
