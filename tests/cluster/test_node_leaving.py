"""What a rented node does about notices and a head that is away; values in, values out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.node_leaving import Drain, EndNode, Observation, Wait, decide_agent

CALM = Observation(lost_head_s_max=300.0)


def test_without_a_notice_it_waits() -> None:
    assert decide_agent(CALM) == Wait("no notice")


def test_an_interruption_drains_with_its_deadline() -> None:
    assert decide_agent(replace(CALM, interruption_left_s=110.0)) == Drain(
        "interruption", 110.0, "the site takes the machine away in 110 s"
    )


def test_advice_drains_without_a_deadline() -> None:
    found = decide_agent(replace(CALM, has_rebalance_advice=True))
    assert found == Drain("rebalance", None, "the site advises to move away")


@pytest.mark.parametrize("notice", ["rebalance", "interruption"])
def test_a_notice_that_is_said_again_drains_once(notice: str) -> None:
    seen = replace(
        CALM,
        has_rebalance_advice=True,
        interruption_left_s=80.0 if notice == "interruption" else None,
        drained_for=notice,
    )
    assert isinstance(decide_agent(seen), Wait)


def test_an_interruption_after_advice_drains_again_and_now_with_a_deadline() -> None:
    seen = replace(
        CALM, has_rebalance_advice=True, interruption_left_s=120.0, drained_for="rebalance"
    )
    assert decide_agent(seen) == Drain(
        "interruption", 120.0, "the site takes the machine away in 120 s"
    )


@pytest.mark.parametrize(
    ("lost", "who"), [("head_lost_s", "the head"), ("raylet_lost_s", "the raylet")]
)
def test_a_node_out_of_touch_for_its_limit_ends_itself(lost: str, who: str) -> None:
    assert isinstance(decide_agent(replace(CALM, **{lost: 299.0})), Wait)
    assert decide_agent(replace(CALM, **{lost: 301.0})) == EndNode(
        f"{who} has been away for 301 s; lost_head_s_max is 300 s"
    )


@given(
    st.builds(
        Observation,
        raylet_lost_s=st.floats(0, 1e9),
        head_lost_s=st.floats(0, 1e9),
        lost_head_s_max=st.none(),
        interruption_left_s=st.none() | st.floats(0, 120),
        has_rebalance_advice=st.booleans(),
        drained_for=st.sampled_from([None, "rebalance", "interruption"]),
    )
)
def test_an_owned_node_never_ends_itself(seen: Observation) -> None:
    assert not isinstance(decide_agent(seen), EndNode)
