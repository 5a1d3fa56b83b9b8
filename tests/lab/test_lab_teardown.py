"""`ray down` leaves no instance, process or claim: from elsewhere, twice, with the head dead.

Earns its minutes: what leaks is a machine somebody pays for, and only a real cluster has them.
"""

import pytest

from tests.lab.hybrid import HybridLab
from tests.lab.load import Load
from tests.lab.steps import BURST_S_MAX, assert_nothing_left, start
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(600)]


def rent_a_machine(hybrid: HybridLab) -> None:
    with Load(hybrid, streams=12):
        wait_until(hybrid.ec2.list_paid, "an instance runs", timeout_s=BURST_S_MAX)


def test_ray_down_from_another_machine_finds_everything(running: HybridLab) -> None:
    """Nothing is cached there: sites say what there is, rented machines included."""
    rent_a_machine(running)
    running.down(running.add_operator("operator-2", "10.77.0.6"))
    assert_nothing_left(running)


@pytest.mark.lab_long
def test_a_second_cluster_on_the_same_machines_ends_though_its_head_is_dead(
    running: HybridLab,
) -> None:
    """The first was ended from another machine, so the operator's still remembers it."""
    running.down(running.add_operator("operator-3", "10.77.0.7"))
    assert_nothing_left(running)
    start(running)
    rent_a_machine(running)
    running.kill_cluster_on(running.head)
    running.down()
    assert_nothing_left(running)
