"""`tidegate demo` proves its own steps; this runs it as a user does and checks what it leaves.

Earns its minutes: the only test in which placement, brain, launcher, gateway and drain all meet.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import MARK_CLUSTER, end_marked, list_marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

STEPS = 7


def test_the_demo_bursts_and_goes_home_without_cutting_a_stream() -> None:
    offset = 3100
    tidegate = Path(sys.executable).parent / "tidegate"
    try:
        done = subprocess.run(
            [tidegate, "demo", "--engine", "emulated", "--port-offset", str(offset)],
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
        assert done.stdout.count("shown") == STEPS, done.stdout
        assert list_marked(MARK_CLUSTER, f"tidegate-local-{offset}") == []
    finally:
        end_marked(MARK_CLUSTER, f"tidegate-local-{offset}", grace_s=0)
