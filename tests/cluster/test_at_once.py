"""Several things are done at once, in order, and to the very end of a process."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.at_once import map_at_once

AT_THE_END = """
import atexit
from cluster.at_once import map_at_once
atexit.register(lambda: print(map_at_once(str, [1, 2, 3], threads_max=2)))
"""


def test_results_come_in_the_order_of_the_items() -> None:
    assert map_at_once(lambda n: n * 2, range(50), threads_max=8) == [n * 2 for n in range(50)]
    assert map_at_once(str, [], threads_max=8) == []


def test_as_many_run_at_once_as_may_and_no_more() -> None:
    """Three meet at the gate; with two threads they would wait for one another in vain."""
    gate = threading.Barrier(3, timeout=10)
    map_at_once(lambda _: gate.wait(), range(3), threads_max=3)
    lonely = threading.Barrier(3, timeout=0.2)
    with pytest.raises(threading.BrokenBarrierError):
        map_at_once(lambda _: lonely.wait(), range(3), threads_max=2)


def test_one_failure_is_raised_after_all_are_done() -> None:
    seen: list[int] = []

    def do(number: int) -> None:
        seen.append(number)
        if number in {1, 3}:
            raise ValueError(number)

    with pytest.raises(ValueError, match="1"):
        map_at_once(do, range(5), threads_max=2)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_it_works_while_python_ends() -> None:
    """Orders that are still queued go out then; an executor refuses work from that moment on."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("['1', '2', '3']\n", "")
