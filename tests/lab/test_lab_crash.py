"""The autoscaler is killed at the worst moments: nothing leaks, nothing is launched twice.

Earns its minutes: every step is tried one by one against moto elsewhere; here the process, its
supervisor, Ray's bootstrap over SSH and the machines are real.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.lab.hybrid import HybridLab
from tests.lab.hybrid_files import CLOUD
from tests.lab.load import Load
from tests.lab.namespaces import list_members
from tests.lab.steps import BURST_S_MAX, assert_paid_once, count_nodes, wait_for_home
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(540)]

RESTART_S_MAX = 30
ANSWER_S = 3.0


def test_three_kills_at_the_worst_moments_leak_nothing_and_launch_nothing_twice(
    running: HybridLab,
) -> None:
    """4 owned slots and 8 streams: one rented machine with 8 slots is more than enough.

    Killed while a launch is carried out whose answer nobody hears; while the machine is being set
    up; and while a termination is asked for that is never carried out.
    """
    wait_for_home(running)
    before = {found["InstanceId"] for found in running.ec2.list_instances()}
    with Load(running, streams=8) as load:
        kill_during_call(running, "RunInstances", fault="delay")
        wait_until(
            lambda: [host for host in running.rented if is_being_set_up(host.pid)],
            "a rented machine is being set up",
            timeout_s=BURST_S_MAX,
            now=running.ec2.list_paid,
        )
        assert count_nodes(running, site=CLOUD) == 0
        kill_autoscaler(running)
        wait_until(
            lambda: CLOUD in load.sites,
            "the cloud serves",
            timeout_s=BURST_S_MAX,
            now=running.ec2.list_paid,
        )
    assert load.failed == []
    kill_during_call(running, "TerminateInstances", fault="hang")
    wait_for_home(running)
    launched = {found["InstanceId"] for found in running.ec2.list_instances()} - before
    assert len(launched) == 1
    assert_paid_once(running)
    wait_until(lambda: count_nodes(running) == 3, "three nodes are left", timeout_s=60)


def kill_during_call(hybrid: HybridLab, action: str, *, fault: str) -> None:
    """Kill the autoscaler while it waits for the answer to a call.

    With the fault "delay" the call is carried out afterwards; with "hang" it never is.
    """
    before = hybrid.faults.count(action)
    hybrid.faults.add(fault, action=action, seconds=ANSWER_S, times=1)
    wait_until(
        lambda: hybrid.faults.count(action) > before, f"{action} is called", timeout_s=BURST_S_MAX
    )
    kill_autoscaler(hybrid)


def kill_autoscaler(hybrid: HybridLab) -> None:
    """Kill the autoscaler's process at once; its supervisor has to start another."""
    killed = find_autoscaler(hybrid)
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: find_autoscaler(hybrid) - killed,
        "the supervisor starts another autoscaler",
        timeout_s=RESTART_S_MAX,
    )


def find_autoscaler(hybrid: HybridLab) -> set[int]:
    """Return the autoscaler's process on the head, without its supervisor."""
    found = set(hybrid.list_processes()) & set(list_members(hybrid.head.pid))
    return {pid for pid in found if is_autoscaler(pid)}


def is_autoscaler(pid: int) -> bool:
    """Return whether a process is the autoscaler; one that has ended isn't."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "autoscaling.monitor" in words and not {"--stay", "--supervise"} & set(words)


def is_being_set_up(host_pid: int) -> bool:
    """Return whether the head has put its first file on a machine."""
    return Path(f"/proc/{host_pid}/root/home/root/.tidegate/auth_token").exists()
