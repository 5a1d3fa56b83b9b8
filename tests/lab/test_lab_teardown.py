"""`ray down` leaves no instance, process or claim: typed on another machine too.

Earns its minutes: what leaks is a machine somebody pays for, and only a real cluster has them.
"""

import pytest

from tests.lab.hybrid import HybridLab
from tests.lab.load import Load
from tests.lab.steps import BURST_S_MAX, assert_nothing_left
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(540)]


def rent_a_machine(hybrid: HybridLab) -> None:
    with Load(hybrid, streams=12):
        wait_until(hybrid.ec2.list_paid, "an instance runs", timeout_s=BURST_S_MAX)


def test_ray_down_from_another_machine_finds_everything(running: HybridLab) -> None:
    """Nothing is cached there: sites say what there is, rented machines included."""
    rent_a_machine(running)
    running.down(running.add_operator("operator-2", "10.77.0.6"))
    assert_nothing_left(running)
