"""Starts `tidegate serve` as a user does, and insists that nothing of it is left afterwards."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.processes import MARK_CLUSTER, end_marked, list_marked

TIDEGATE = Path(sys.executable).parent / "tidegate"
START_S_MAX = 480
STOP_S_MAX = 90
KILLED_S_MAX = 20


@dataclass
class Served:
    """One `tidegate serve` that is ready."""

    url: str
    key: str
    cluster: str
    port_offset: int
    process: subprocess.Popen[str]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Interrupt it as a person would; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_S_MAX)


def cluster_name(port_offset: int) -> str:
    return f"tidegate-local-{port_offset}"


def start_serving(
    *,
    engine: str,
    port_offset: int,
    log: Path,
    cluster_file: Path | None = None,
    serve_file: Path | None = None,
) -> Served:
    """Return a ready `tidegate serve`; on failure show its log.

    Clusters of several modules may run at once, so each has an offset of its own: hundreds, no two
    of them 500 apart, because a cluster's `serve` and `proxy_fallback` are.
    """
    files = [cluster_file] if cluster_file else []
    files += ["--serve-file", serve_file] if serve_file else []
    process = subprocess.Popen(
        [TIDEGATE, "serve", "--engine", engine, "--port-offset", str(port_offset), *files],
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        start_new_session=True,
    )
    said: dict[str, str] = {}
    deadline_s = time.monotonic() + START_S_MAX
    for line in process.stdout:
        words = line.split()
        if len(words) == 2 and words[0] in ("URL", "key"):
            said[words[0]] = words[1]
        if "Ctrl-C" in line:
            break
        assert time.monotonic() < deadline_s, log.read_text()
    assert set(said) == {"URL", "key"}, f"exit {process.poll()}\n{log.read_text()}"
    return Served(
        url=said["URL"].removesuffix("/v1"),
        key=said["key"],
        cluster=cluster_name(port_offset),
        port_offset=port_offset,
        process=process,
    )


def finish(served: Served) -> None:
    """Stop it if it still runs, and never leave anything to the next test."""
    try:
        if served.process.poll() is None:
            assert served.stop() == 0
        assert list_marked(MARK_CLUSTER, served.cluster) == []
    finally:
        served.process.kill()
        end_marked(MARK_CLUSTER, served.cluster, grace_s=0)


def kill(served: Served) -> None:
    """Kill it and insist that nothing of it is left soon: its reaper ends it in a few seconds.

    For a cluster that nobody looks at again: an orderly stop takes twenty.
    """
    try:
        served.process.kill()
        served.process.wait()
        deadline_s = time.monotonic() + KILLED_S_MAX
        while (left := list_marked(MARK_CLUSTER, served.cluster)) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert left == []
    finally:
        end_marked(MARK_CLUSTER, served.cluster, grace_s=0)
