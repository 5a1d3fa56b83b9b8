"""The pure parts of the comparisons: the fit of a row, the rule of agreement, the workload."""

import json
import math
from pathlib import Path

import pytest
import yaml

import cluster as cluster_package
from autoscaling.simulator.traffic import TraceRequest, build_traffic
from cluster.config import parse_cluster_config
from deployments.continuous_batching import Performance
from infra.serve_file import read_serve_file
from infra.stream_client import Stream
from tests.benchmarks.reality.cluster_run import CloudNode, find_boots
from tests.benchmarks.reality.engines import replay_model
from tests.benchmarks.reality.figures import (
    Bound,
    count_attainment,
    find_ttft,
    judge,
    sum_overlap_s,
)
from tests.benchmarks.reality.files import shape_cluster, write_files
from tests.benchmarks.reality.fit import Fit, Line, fit_line, take_medians
from tests.benchmarks.reality.replay import Answer, _name_error, list_errors
from tests.benchmarks.reality.simulated_run import run_simulated
from tests.benchmarks.reality.workload import Load, Rise, build_load
from tests.benchmarks.simulator_vs_cluster import build_traffic_load

RATIO = Bound("x", "ratio", 15.0)
POINTS = Bound("x", "points", 3.0)
COUNT = Bound("x", "count", 1.0)


def test_a_line_through_exact_points_is_found_exactly() -> None:
    """30 ms and 0.8 ms a token: 130 ms at 125 tokens, 830 ms at 1000."""
    line = fit_line([(125, 0.130), (1000, 0.830)])
    assert line.base == pytest.approx(0.030)
    assert line.slope == pytest.approx(0.0008)
    assert line.missed == pytest.approx(0.0)


def test_a_line_that_would_fall_is_level() -> None:
    """More requests never make an engine faster: the fall is noise.

    The level that misses 4 and 2 least in parts of each: (4 / 16 + 2 / 4) / (1 / 16 + 1 / 4) = 2.4.
    """
    line = fit_line([(1, 4.0), (8, 2.0)])
    assert (line.base, line.slope) == (pytest.approx(2.4), 0.0)


def test_a_line_that_would_begin_below_zero_goes_through_zero() -> None:
    """In parts of each, through zero: (1 x 1 + 2 x 3 / 9) / (1 + 4 / 9) = 15 / 13."""
    line = fit_line([(1, 1.0), (2, 3.0)])
    assert line.base == 0.0
    assert line.slope == pytest.approx(15 / 13)


def test_one_long_prompt_does_not_move_what_short_ones_take() -> None:
    """Three points lie on 1 + x; the last is twice that. The short ones are met within a fifth."""
    line = fit_line([(1, 2.0), (3, 4.0), (7, 8.0), (31, 64.0)])
    assert line.at(1) == pytest.approx(2.0, rel=0.2)
    assert line.at(7) == pytest.approx(8.0, rel=0.2)


def test_a_line_needs_two_places() -> None:
    with pytest.raises(ValueError, match="two or more places"):
        fit_line([(4, 1.0), (4, 2.0)])


def test_one_stall_among_three_does_not_move_a_point() -> None:
    assert take_medians([(2, 9.0), (1, 1.0), (2, 1.1), (2, 1.0)]) == [(1, 1.0), (2, 1.1)]


def test_a_row_gives_back_the_lines_it_was_made_of() -> None:
    """The table's prefill base is one decode step; with a fit that says so too nothing is lost."""
    fit = Fit(Line(0.02, 0.001, 0.0), Line(0.02, 0.005, 0.0), prompt_tokens=160, output_tokens=64)
    performance = fit.to_row(gpus=1, kv_capacity_tokens=4096, source="a" * 20).to_performance()
    assert performance.tpot_s(4) == pytest.approx(0.04)
    assert performance.prefill_s(512) == pytest.approx(0.532)


@pytest.mark.parametrize(
    ("bound", "measured", "simulated", "is_within"),
    [
        (RATIO, 100.0, 115.0, True),
        (RATIO, 100.0, 84.9, False),
        (RATIO, 0.0, 0.0, True),
        (RATIO, 0.0, 1.0, False),
        (POINTS, 0.90, 0.875, True),
        (POINTS, 0.90, 0.94, False),
        (COUNT, 2.0, 3.0, True),
        (COUNT, 2.0, 4.0, False),
        (RATIO, None, 1.0, False),
        (RATIO, 1.0, None, False),
        (RATIO, 1.0, math.nan, False),
        (RATIO, None, None, None),
    ],
)
def test_figures_agree_up_to_their_bound_and_no_further(
    bound: Bound, measured: float | None, simulated: float | None, *, is_within: bool | None
) -> None:
    (verdict,) = judge({"x": measured}, {"x": simulated}, [bound])
    assert verdict.is_within is is_within


def test_only_whole_answers_in_time_attain() -> None:
    """Of five, one is late, one slow, one broken, one never began: one of five is left."""
    answers = [
        Answer(0.0, ttft_s=1.0, tpot_s=0.1),
        Answer(0.0, ttft_s=3.1, tpot_s=0.1),
        Answer(0.0, ttft_s=1.0, tpot_s=0.2),
        Answer(0.0, ttft_s=1.0, tpot_s=0.1, error="cut"),
        Answer(0.0, error="503"),
    ]
    assert count_attainment(answers, ttft_s=3.0, tpot_s=0.15) == pytest.approx(0.2)
    assert find_ttft(answers, 50) == 1.0


def test_refusals_are_counted_by_their_code_and_not_by_their_words() -> None:
    """Two refusals that name different seconds are one kind; a broken stream is another."""
    texts = [json.dumps({"error": {"code": "busy", "message": f"in {s} s"}}) for s in (3, 4)]
    streams = [Stream(0.0, status=429, error=text) for text in texts]
    answers = [Answer(0.0, error=_name_error(s)) for s in [*streams, Stream(0.0, status=200)]]
    assert list_errors(answers) == ["2 x 429 busy", "1 x the stream ended early"]


def test_nodes_are_counted_inside_the_traffics_time_only() -> None:
    """-10..20 gives 20, 90..None gives 10, 95..130 gives 5, 110..120 nothing: 35 of 100 s."""
    spans = [(-10.0, 20.0), (90.0, None), (95.0, 130.0), (110.0, 120.0)]
    assert sum_overlap_s(spans, until_s=100.0) == pytest.approx(35.0)


def test_each_node_boots_as_it_was_recorded_and_as_the_others_where_it_was_not() -> None:
    """a: running 2 s, joined 8 s; b: running 4 s, not joined: it takes a's 6 s from there."""
    nodes = [
        CloudNode("a", 0.0, None, {"intended": 0.0, "running": 2.0, "joined": 8.0}),
        CloudNode("b", 0.0, None, {"intended": 0.0, "running": 4.0}),
    ]
    assert find_boots(nodes) == [{"running": 2.0, "joined": 6.0}, {"running": 4.0, "joined": 6.0}]


def test_the_load_is_the_same_for_a_seed_and_higher_inside_a_rise() -> None:
    """100 s at 1 a second with 50 s at 9: about 500 inside the rise and 50 outside."""
    load = Load(1.0, 100.0, (10, 20), (5, 6), rises=(Rise(0.25, 0.75, 9.0),))
    traffic = build_load("x", load, seed=3)
    inside = sum(25 <= request.arrival_s < 75 for request in traffic.requests)
    assert traffic == build_load("x", load, seed=3)
    assert inside > 5 * (len(traffic.requests) - inside)
    assert all(10 <= request.prompt_tokens <= 20 for request in traffic.requests)


def test_the_engine_model_answers_a_lone_request_as_its_row_says() -> None:
    """Prefill 0.1 + 100 x 0.001 = 0.2 s, then 9 steps of 0.05 + 0.01 s."""
    performance = Performance(0.05, 0.01, 0.1, 0.001, 10_000)
    traffic = build_traffic("one", [TraceRequest(2.0, 100, 10)], 10.0)
    (answer,) = replay_model(traffic, performance, chunk_tokens=None)
    assert answer.ttft_s == pytest.approx(0.2)
    assert answer.tpot_s == pytest.approx(0.06)


def test_a_simulated_node_serves_after_the_boot_that_was_recorded(tmp_path: Path) -> None:
    """40 s of boot, up to 2 s until the scheduler's tick, 1 s of delays, 1 s until it is seen."""
    traffic = build_load("x", build_traffic_load(3.0), seed=1)
    boots_s = [{"running": 30.0, "serving": 10.0}]
    run = run_simulated(traffic, write_files(tmp_path), boots_s=boots_s, seed=1)
    pool = "cloud-cpu-on_demand"
    asked_s = next(look.at_s for look in run.looks if look.wanted[pool])
    seen_s = next(look.at_s for look in run.looks if look.running[pool])
    assert 40.0 <= seen_s - asked_s <= 45.0


def test_the_comparisons_files_are_ones_that_production_accepts(tmp_path: Path) -> None:
    cluster_file, serve_file = write_files(tmp_path)
    settings = parse_cluster_config(yaml.safe_load(cluster_file.read_text()), file="cluster.yaml")
    serve = read_serve_file(serve_file, port=8000, keys_file=None)
    (model,) = serve.gateway.models
    assert settings.node_types["cloud_gpu"].max_nodes == 2
    assert [pool.max_replicas for pool in model.pools] == [1, 2]
    assert len(serve.application_names) == 2


def test_what_the_shipped_cluster_file_says_of_bursts_is_kept(tmp_path: Path) -> None:
    shipped = yaml.safe_load((Path(cluster_package.__file__).parent / "local.yaml").read_text())
    shaped = shape_cluster(shipped, tmp_path)
    assert shaped["provider"]["burst"] == shipped["provider"]["burst"]
    assert shaped["provider"]["limits"] == shipped["provider"]["limits"]
