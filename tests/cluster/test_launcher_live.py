"""The shipped cluster file under Ray's own launcher: up, status, up again, kill, down.

Earns its minute because the launcher, the provider it loads by name, real raylets and the started
autoscaler meet only here; each of them has its own account of what a node is.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.config import read_cluster_file
from cluster.ledger import Ledger
from cluster.model import NodePhase
from cluster.processes import MARK_CLUSTER, MARK_NODE, end_marked, list_marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

LOCAL_FILE = Path(__file__).parents[2] / "cluster" / "local.yaml"
NAME = "launcher-test"
PORTS = {
    "gcs": 21799,
    "dashboard": 21798,
    "serve": 21797,
    "autoscaler_metrics": 21796,
    "dashboard_metrics": 21795,
    "proxy_metrics": 21794,
    "proxy_stats": 21793,
    "proxy_fallback": 21792,
    "nodes": 21700,
}


@dataclass(frozen=True)
class Launcher:
    """Ray's command line, as typed in a shell that has nothing but a path and a home."""

    file: Path
    home: Path

    def run(self, *arguments: str) -> str:
        bin_folder = Path(sys.executable).parent
        done = subprocess.run(
            [bin_folder / "ray", *arguments],
            env={"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def status(self) -> str:
        return self.run("exec", str(self.file), "ray status")

    def wait_for_status(self, wanted: str) -> None:
        deadline_s = time.monotonic() + 180
        while wanted not in self.status():
            assert time.monotonic() < deadline_s, self.status()
            time.sleep(2)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    content = read_cluster_file(LOCAL_FILE)
    content["cluster_name"] = NAME
    content["provider"].update(state_dir=str(tmp_path / "state"), ports=PORTS)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "home").mkdir()
    yield Launcher(file=file, home=tmp_path / "home")
    end_marked(MARK_CLUSTER, NAME, grace_s=0)


def test_the_launcher_brings_the_local_cluster_up_twice_and_down_even_with_a_dead_head(
    launcher: Launcher, tmp_path: Path
) -> None:
    launcher.run("up", "-y", str(launcher.file))
    launcher.wait_for_status("1 onprem_gpu\n")
    assert "cloud_gpu" not in launcher.status()

    launcher.run("up", "-y", str(launcher.file))
    launcher.wait_for_status("1 onprem_gpu\n")

    ledger = Ledger(tmp_path / "state" / NAME / "ledger.db")
    (head,) = [record for record in ledger.list_open() if record.is_head]
    for pid in list_marked(MARK_NODE, head.node_id):
        os.kill(pid, signal.SIGKILL)
    assert list_marked(MARK_CLUSTER, NAME), "the worker outlives the head for now"

    launcher.run("down", "-y", str(launcher.file))
    assert list_marked(MARK_CLUSTER, NAME) == []
    assert {record.phase for record in ledger.list_all()} == {NodePhase.CLOSED}
    assert list((tmp_path / "state" / NAME / "nodes").iterdir()) == []
