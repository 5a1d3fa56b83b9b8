"""What past nodes teach: cold starts and losses by node type."""

import pytest

from autoscaling.node_history import NodeLife, learn_from_nodes
from cluster.model import Market

_HOUR_S = 3600.0
_NOW_S = 1_000_000.0


def _life(
    node_type: str = "l40s",
    *,
    asked_s: float = 0.0,
    boot_s: float | None = None,
    load_s: float | None = None,
    ended_s: float | None = None,
    is_lost: bool = False,
) -> NodeLife:
    joined_s = None if boot_s is None else asked_s + boot_s
    return NodeLife(
        node_type=node_type,
        asked_s=asked_s,
        joined_s=joined_s,
        serving_s=None if joined_s is None or load_s is None else joined_s + load_s,
        ended_s=ended_s,
        is_lost=is_lost,
    )


def _learn_cold_starts(*lives: NodeLife) -> dict[str, float]:
    markets: dict[str, Market] = {"l40s": "spot", "a100": "on_demand"}
    return dict(learn_from_nodes(lives, markets, now_s=_NOW_S).cold_starts_s)


def _learn_losses(*lives: NodeLife, market: Market = "spot") -> float:
    return learn_from_nodes(lives, {"l40s": market}, now_s=_NOW_S).losses_per_hour["l40s"]


def test_a_cold_start_is_the_median_from_asking_to_serving() -> None:
    """60+30, 70+30 and 300+30: one slow node moves the middle one by nothing."""
    lives = [_life(boot_s=boot_s, load_s=30.0) for boot_s in (60.0, 300.0, 70.0)]
    assert _learn_cold_starts(*lives) == {"l40s": 100.0}


def test_only_the_last_nodes_of_a_type_count() -> None:
    """A new image halved the start: 20 nodes at 50 s outvote 30 older ones at 100 s."""
    old = [_life(asked_s=i, boot_s=70.0, load_s=30.0) for i in range(30)]
    new = [_life(asked_s=1000.0 + i, boot_s=30.0, load_s=20.0) for i in range(20)]
    assert _learn_cold_starts(*new, *old) == {"l40s": 50.0}


def test_a_type_that_only_joined_borrows_the_rest_from_other_types() -> None:
    """An a100 joined after 40 s; l40s nodes load for 20 s, 25 s and 90 s: 40 + 25."""
    loads = [_life(boot_s=60.0, load_s=load_s) for load_s in (20.0, 90.0, 25.0)]
    found = _learn_cold_starts(*loads, _life("a100", boot_s=40.0))
    assert found == {"l40s": 85.0, "a100": 65.0}


@pytest.mark.parametrize(
    "life",
    [
        _life(),
        _life(boot_s=60.0),
        _life(boot_s=60.0, load_s=7200.0),
        _life(boot_s=-5.0, load_s=30.0),
    ],
    ids=["never joined", "nobody served", "idled before it served", "the clock stepped"],
)
def test_what_is_no_cold_start_teaches_nothing(life: NodeLife) -> None:
    """Absent, so that the setting counts; never 0."""
    assert _learn_cold_starts(life) == {}


def test_a_node_whose_joining_was_not_seen_counts_as_a_whole() -> None:
    """A replica served after 95 s; the autoscaler restarted while the node joined."""
    assert _learn_cold_starts(NodeLife("l40s", asked_s=5.0, serving_s=100.0)) == {"l40s": 95.0}


def test_a_type_that_left_the_cluster_file_is_not_listed() -> None:
    """Nothing can be launched of it; what it took to load still teaches the others."""
    found = _learn_cold_starts(_life("h100", boot_s=60.0, load_s=35.0), _life("a100", boot_s=40.0))
    assert found == {"a100": 75.0}


def test_before_any_node_the_prior_of_the_market_counts() -> None:
    """0.25 losses in 5 h of spot; 0.05 in 50 h of everything else."""
    assert _learn_losses() == pytest.approx(0.05)
    assert _learn_losses(market="on_demand") == pytest.approx(0.001)


def test_losses_and_node_hours_outweigh_the_prior() -> None:
    """Two nodes of 5 h each, both lost: (0.25 + 2) / (5 + 10) = 0.15 an hour."""
    lost = [
        _life(asked_s=_NOW_S - 6 * _HOUR_S, ended_s=_NOW_S - _HOUR_S, is_lost=True)
        for _ in range(2)
    ]
    assert _learn_losses(*lost) == pytest.approx(0.15)


def test_a_node_that_still_runs_lowers_the_rate() -> None:
    """Ten hours without a loss: 0.25 / 15."""
    assert _learn_losses(_life(asked_s=_NOW_S - 10 * _HOUR_S)) == pytest.approx(0.25 / 15)


def test_losses_of_long_ago_are_forgotten() -> None:
    """A node lost eight days ago is neither a loss nor an hour."""
    ended_s = _NOW_S - 8 * 24 * _HOUR_S
    old = _life(asked_s=ended_s - _HOUR_S, ended_s=ended_s, is_lost=True)
    assert _learn_losses(old) == pytest.approx(0.05)


def test_the_order_of_lives_changes_nothing() -> None:
    """Same nodes, same figures."""
    lives = [_life(asked_s=float(i), boot_s=50.0 + i, load_s=10.0) for i in range(40)]
    markets: dict[str, Market] = {"l40s": "spot"}
    forward = learn_from_nodes(lives, markets, now_s=_NOW_S)
    assert forward == learn_from_nodes(reversed(lives), markets, now_s=_NOW_S)
