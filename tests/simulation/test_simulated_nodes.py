"""Nodes of a run: what they cost and teach, how spot comes and goes, and how far sites are."""

from dataclasses import replace
from itertools import pairwise

import pytest

from autoscaling.peers.registry import run_policy
from autoscaling.simulator.market import list_sold_out
from autoscaling.simulator.scenario import SPOT_HEAVY, Delays, Scenario, SpotMarket
from autoscaling.simulator.simulation import Simulation
from autoscaling.simulator.tidegate_policy import TidegatePolicy
from autoscaling.simulator.timeline import build_timeline
from cluster.model import SiteName
from tests.simulation.simulated_runs import EAGER, PATIENT, Listening, MakeTraffic


def with_cloud(scenario: Scenario, **changes: float) -> Scenario:
    """The scenario with other settings of its cloud site."""
    settings = scenario.settings
    cloud = settings.sites[SiteName("cloud")].model_copy(update=changes)
    sites = {**settings.sites, SiteName("cloud"): cloud}
    return replace(scenario, settings=replace(settings, sites=sites))


def test_the_policy_learns_cold_starts_and_losses_from_the_nodes_of_the_run(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """A node takes 26 s in the median from its request to serving, and a tick of 4 s at most.

    Boot stages of 1, 5, 3 and 7 s, then 2 s of weights and 8 s of engine, within three spreads of
    15 %. Of 60 losses an hour for each node, at least a fifth must have been seen after 200 s.
    """
    spot = replace(SPOT_HEAVY, losses_per_hour=60.0, notice_s=5.0, sold_out_ratio=0.0)
    traffic = make_traffic("steady", mean_rps=20.0, duration_s=200.0)
    policy = Listening(EAGER)
    Simulation(traffic, replace(scenario, spot=spot), policy, seed=1).run()
    assert "cloud_spot" not in policy.heard[0].cold_starts_s
    last = policy.heard[-1]
    assert 26 * 0.55 < last.cold_starts_s["cloud_spot"] < 26 * 1.45 + 4
    assert last.losses_per_hour["cloud_spot"] > policy.heard[0].losses_per_hour["cloud_spot"]


def test_a_node_is_paid_from_its_request_to_its_end(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Static capacity of 12 nodes that never goes home: 4 are asked for at 4, 8 and 12 s of 60."""
    traffic = make_traffic("steady", mean_rps=40.0, duration_s=60.0)
    policy = run_policy("static-peak", traffic, scenario, seed=1)
    assert policy.launches == 12
    nodes_usd = policy.cloud_usd - policy.egress_usd
    assert nodes_usd == pytest.approx(4 * 1.861 * (56 + 52 + 48) / 3600)
    assert policy.cloud_gpu_hours == pytest.approx(nodes_usd / 1.861)


def test_what_a_site_that_is_not_owned_sends_is_paid_by_the_byte(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Tokens of the cloud's pools x 300 bytes at 90 $ a GB, a thousand times the usual price."""
    dear = with_cloud(scenario, egress_usd_per_gb=90.0)
    run = Simulation(make_traffic(mean_rps=20.0), dear, TidegatePolicy(EAGER), seed=1)
    found = run.run()
    sent = sum(
        served.output_tokens
        for name, served in run.fleet.served.items()
        if not run.fleet.pools[name].owned
    )
    assert found.egress_usd == pytest.approx(sent * 300e-9 * 90)
    assert 0 < found.egress_usd < found.cloud_usd


def test_the_way_to_a_site_adds_to_its_first_tokens_and_counts_in_no_other(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """Half a second there and back; the scenario has 30 ms."""
    traffic = make_traffic(mean_rps=20.0)
    mean_s: dict[str, float] = {}
    for name, there in (("near", scenario), ("far", with_cloud(scenario, round_trip_s=0.53))):
        run = Simulation(traffic, there, TidegatePolicy(EAGER), seed=1)
        run.run()
        served = [run.fleet.served[pool] for pool in run.fleet.pools if pool.startswith("cloud")]
        mean_s[name] = sum(s.ttft_s for s in served) / sum(s.first_tokens for s in served)
    assert mean_s["far"] - mean_s["near"] == pytest.approx(0.5, abs=0.05)


def test_policies_of_one_seed_meet_the_same_spells_without_spot() -> None:
    """A quarter of 1,000 h in spells of 20 minutes: 750 of them, so the share is within a tenth."""
    until_s = 3_600_000.0
    spells = list_sold_out("cloud_spot", SPOT_HEAVY, seed=1, until_s=until_s)
    assert spells == list_sold_out("cloud_spot", SPOT_HEAVY, seed=1, until_s=until_s)
    assert spells != list_sold_out("other_spot", SPOT_HEAVY, seed=1, until_s=until_s)
    assert all(begin < end < later for (begin, end), (later, _) in pairwise(spells))
    assert sum(end - begin for begin, end in spells) / until_s == pytest.approx(0.25, rel=0.1)
    usual = SpotMarket()
    assert list_sold_out("cloud_spot", usual, seed=1, until_s=until_s) == ()


def test_the_cluster_files_limit_on_all_nodes_holds(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """A head, two owned nodes and one more: only one node of the cloud at a time."""
    tight = replace(scenario, cluster_nodes_max=4)
    timeline = build_timeline(make_traffic(mean_rps=20.0))
    Simulation(
        make_traffic(mean_rps=20.0), tight, TidegatePolicy(EAGER), seed=1, recorder=timeline
    ).run()
    rented = [span for span in timeline.spans.values() if span.node_type.startswith("cloud")]
    assert rented
    assert all(
        first.ended_s is not None and first.ended_s <= later.asked_s
        for first, later in pairwise(sorted(rented, key=lambda span: span.asked_s))
    )


def test_each_delay_between_processes_makes_a_burst_later(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """20 s of age, or 20 s until Serve hears of it; waiting replicas are seen every 4 s."""
    traffic = make_traffic("steady", mean_rps=20.0)

    def find_first_launch_s(delays: Delays) -> float:
        timeline = build_timeline(traffic)
        slow = replace(scenario, delays=delays)
        Simulation(traffic, slow, TidegatePolicy(PATIENT), seed=1, recorder=timeline).run()
        return min(
            span.asked_s for span in timeline.spans.values() if span.node_type.startswith("cloud")
        )

    at_once_s = find_first_launch_s(Delays(0.0, 0.0, 0.0))
    assert find_first_launch_s(Delays(20.0, 0.0, 0.0)) == pytest.approx(at_once_s + 20.0, abs=4.0)
    assert find_first_launch_s(Delays(0.0, 20.0, 0.0)) == pytest.approx(at_once_s + 20.0, abs=4.0)


def test_lost_spot_nodes_are_replaced_and_their_requests_are_accounted_for(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    spot = replace(SPOT_HEAVY, losses_per_hour=60.0, notice_s=5.0, sold_out_ratio=0.0)
    traffic = make_traffic("steady", mean_rps=20.0, duration_s=200.0)
    found = Simulation(traffic, replace(scenario, spot=spot), TidegatePolicy(EAGER), seed=1).run()
    assert found.lost_nodes > 0
    assert found.launches > found.lost_nodes / 2
    ended = found.completed + found.rejected + found.failed + found.unfinished
    assert ended == len(traffic.requests)


def test_spot_that_is_sold_out_falls_back_to_on_demand(
    scenario: Scenario, make_traffic: MakeTraffic
) -> None:
    """None to be had at any time: what is launched costs the on-demand price."""
    spot = replace(SPOT_HEAVY, sold_out_ratio=0.999, sold_out_spell_s=1e9)
    traffic = make_traffic("steady", mean_rps=20.0, duration_s=150.0)
    found = Simulation(traffic, replace(scenario, spot=spot), TidegatePolicy(EAGER), seed=1).run()
    assert found.launches > 0
    nodes_usd = found.cloud_usd - found.egress_usd
    assert nodes_usd / found.cloud_gpu_hours == pytest.approx(1.861)
