"""However a start ends, no process of it lives on: interrupted half-way, or killed.

Earns its minute: what leaks is a raylet, HAProxy or an engine, and only a real start has them.
"""

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from cluster.processes import MARK_CLUSTER, end_marked, list_marked
from tests.e2e.served import TIDEGATE, cluster_name

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

PORT_OFFSET = 3400
CLUSTER = cluster_name(PORT_OFFSET)
PROCESSES_OF_A_HEAD = 12


@pytest.fixture
def half_started() -> Iterator[subprocess.Popen[bytes]]:
    """A start in the middle: Ray's head is up, nodes and applications are on their way."""
    process = subprocess.Popen(
        [TIDEGATE, "serve", "--port-offset", str(PORT_OFFSET)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 120
    while len(list_marked(MARK_CLUSTER, CLUSTER)) < PROCESSES_OF_A_HEAD:
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.5)
    yield process
    process.kill()
    process.wait()
    end_marked(MARK_CLUSTER, CLUSTER, grace_s=0)


def test_a_start_that_is_killed_leaves_no_process_after_ten_seconds(
    half_started: subprocess.Popen[bytes],
) -> None:
    """SIGKILL can't be caught: the reaper outside ends what is left."""
    half_started.kill()
    half_started.wait()
    deadline_s = time.monotonic() + 10
    while (left := list_marked(MARK_CLUSTER, CLUSTER)) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert left == []


def test_a_start_that_is_told_to_stop_leaves_no_process(
    half_started: subprocess.Popen[bytes],
) -> None:
    """It begins on what the killed start before it left: open nodes in the ledger, old folders."""
    half_started.send_signal(signal.SIGTERM)
    half_started.wait(timeout=120)
    assert list_marked(MARK_CLUSTER, CLUSTER) == []
