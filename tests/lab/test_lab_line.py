"""The line to the cloud is cut: owned machines serve on, rented ones end themselves.

Earns its minutes: fencing is decided by two sides that can't talk, which no model of ours has.
"""

import json
import time

import pytest

from infra.stream_client import Stream
from tests.lab.hybrid import HybridLab
from tests.lab.hybrid_files import CLOUD
from tests.lab.lab import AWS, ONPREM
from tests.lab.load import Load
from tests.lab.steps import (
    BURST_S_MAX,
    assert_paid_once,
    count_nodes,
    open_burst,
    wait_for_home,
)
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(600)]

FENCE_S_MAX = 90


@pytest.mark.parametrize(
    "cut_s",
    [
        0,
        pytest.param(60, marks=pytest.mark.lab_long),
        pytest.param(300, marks=[pytest.mark.lab_long, pytest.mark.timeout(900)]),
    ],
)
def test_a_cut_line_fails_no_owned_request_and_fences_rented_machines(
    running: HybridLab, cut_s: int
) -> None:
    """Instances and EC2's API are out of reach for `cut_s`, at least until the machines are off.

    They end themselves after 20 s without the head (lost_head_s_max). 2 of the 4 owned slots are
    kept busy by requests that may not leave; 10 others may.
    """
    with open_burst(running):
        pass
    fenced = set(running.ec2.list_paid())
    assert fenced
    with (
        Load(running, streams=2, data_class="restricted") as owned,
        Load(running, streams=10) as free,
    ):
        wait_until(lambda: CLOUD in free.sites, "the cloud serves", timeout_s=BURST_S_MAX)
        began_s = time.monotonic()
        cut(running)
        wait_until(
            lambda: not fenced & set(running.ec2.list_paid()),
            "rented machines end themselves",
            timeout_s=FENCE_S_MAX,
        )
        time.sleep(max(began_s + cut_s - time.monotonic(), 0))
        heal(running)
        healed_s = time.monotonic()
        wait_until(
            lambda: any(is_of_cloud(stream, since_s=healed_s) for stream in free.finished),
            "the cloud serves again",
            timeout_s=BURST_S_MAX,
            now=lambda: (running.ec2.list_paid(), running.list_nodes()),
        )
    assert owned.failed == []
    broken = [stream for stream in free.finished if not stream.is_complete]
    for stream in broken:
        assert stream.site == CLOUD, stream
        assert stream.started_s < began_s, stream
        assert "ask again" in json.loads(stream.error or "{}").get("message", ""), stream
    assert not fenced & set(running.ec2.list_paid())
    wait_for_home(running)
    assert count_nodes(running, site="onprem") == 3
    assert count_nodes(running, site=CLOUD) == 0
    assert_paid_once(running)


def cut(hybrid: HybridLab) -> None:
    """Cut the line: nothing comes through, and EC2's API doesn't answer either."""
    hybrid.wan.cut_both_ways(ONPREM, AWS)
    hybrid.faults.add("hang", seconds=10.0)


def heal(hybrid: HybridLab) -> None:
    """Let everything through again."""
    hybrid.faults.clear()
    hybrid.wan.heal()


def is_of_cloud(stream: Stream, *, since_s: float) -> bool:
    """Return whether the cloud answered a request that was sent since then, to its end."""
    return stream.started_s > since_s and stream.site == CLOUD and stream.is_complete
