"""The shipped table: every row usable, sourced, and read as its source means it."""

import pytest

from deployments.gpu_performance import find_row, load_rows


@pytest.mark.parametrize("name", sorted(load_rows()))
def test_every_row_gives_plausible_timing_and_says_where_it_comes_from(name: str) -> None:
    row = find_row(name)
    performance = row.to_performance()
    assert 0 < performance.tpot_s(1) < performance.tpot_s(64) < 1
    assert performance.prefill_s(1024) == pytest.approx(row.ttft_1024_ms / 1000)
    assert performance.prefill_s(8192) > performance.prefill_s(1024)
    assert ("made up" in row.source.lower()) == (row.kind == "made_up")


@pytest.mark.parametrize(
    ("name", "running", "tpot_ms", "tolerance"),
    [
        ("h100-8b", 8, 7.200, 0.03),
        ("h100-8b", 32, 10.601, 0.03),
        ("a100-80-8b", 32, 22.850, 0.04),
        ("l40s-8b", 64, 54.951, 0.02),
        ("h100x4-70b-fp8", 64, 19.515, 0.03),
    ],
)
def test_the_fits_stay_near_the_figures_they_were_made_from(
    name: str, running: int, tpot_ms: float, tolerance: float
) -> None:
    assert find_row(name).to_performance().tpot_s(running) * 1000 == pytest.approx(
        tpot_ms, rel=tolerance
    )


def test_the_demo_row_is_slow_enough_to_watch() -> None:
    """300 tokens at (100 + 2 x 4) ms take 32 s with four running; TTFT of 300 tokens > 0.3 s."""
    demo = find_row("demo").to_performance()
    assert 300 * demo.tpot_s(4) >= 30
    assert demo.prefill_s(300) >= 0.3


def test_an_unknown_row_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"gpu must be one of .*h100-8b.*; got 'h200'"):
        find_row("h200")
