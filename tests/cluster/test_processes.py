"""Marks find a process wherever it went; ending by mark leaves nothing and touches nobody else."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from cluster.processes import KEEP_MARKS_READABLE, end_marked, list_marked, start_reaper

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
]
MARK = "TIDEGATE_TEST_MARK"


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    yield value
    end_marked(MARK, value, grace_s=0)


def start(command: list[str], mark: str, **kwargs: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **KEEP_MARKS_READABLE, MARK: mark}
    return subprocess.Popen(command, env=environment, **kwargs)


def test_a_marked_process_is_found_and_an_unmarked_one_is_not(mark: str) -> None:
    marked = start(SLEEP, mark)
    neighbour = start(SLEEP, mark + "x")
    assert list_marked(MARK, mark) == [marked.pid]
    end_marked(MARK, mark + "x", grace_s=0)
    neighbour.wait()


def test_a_daemonised_grandchild_keeps_the_mark(mark: str) -> None:
    script = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    start([sys.executable, "-c", script, *SLEEP], mark).wait()
    assert len(list_marked(MARK, mark)) == 1


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_time(mark: str) -> None:
    deaf = start(DEAF, mark, stdout=subprocess.PIPE)
    deaf.stdout.readline()
    assert end_marked(MARK, mark, grace_s=0.2) == [deaf.pid]
    assert deaf.wait() == -signal.SIGKILL


def test_ending_twice_is_harmless(mark: str) -> None:
    start(SLEEP, mark)
    assert end_marked(MARK, mark)
    assert end_marked(MARK, mark) == []


def test_a_process_that_renames_itself_keeps_the_mark(mark: str) -> None:
    """Ray's workers and vLLM's EngineCore call setproctitle, which else overwrites environ."""
    setproctitle = pytest.importorskip("setproctitle")
    assert setproctitle
    script = (
        "import setproctitle, time; setproctitle.setproctitle('x' * 2000); print(1, flush=True);"
        " time.sleep(60)"
    )
    renamed = start([sys.executable, "-c", script], mark, stdout=subprocess.PIPE)
    renamed.stdout.readline()
    assert list_marked(MARK, mark) == [renamed.pid]


def test_the_reaper_ends_marked_processes_after_its_parent_was_killed(mark: str) -> None:
    script = (
        "import os, subprocess, sys, time; from cluster.processes import start_reaper;"
        f"keep = start_reaper('{MARK}', '{mark}');"
        "print(1, flush=True); time.sleep(60)"
    )
    orphan = start(SLEEP, mark)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    parent.stdout.readline()
    parent.kill()
    assert orphan.wait(timeout=20) != 0


def test_a_reaper_told_to_stand_down_ends_nothing(mark: str) -> None:
    sleeper = start(SLEEP, mark)
    reaper = start_reaper(MARK, mark)
    reaper.communicate(b"k", timeout=20)
    assert sleeper.poll() is None
