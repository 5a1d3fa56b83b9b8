"""Fixtures of the lab: skipped, with the reason, where this machine can't have one."""

from collections.abc import Iterator

import pytest

from tests.lab.ec2 import Ec2
from tests.lab.hypervisor import Hypervisor
from tests.lab.lab import Lab
from tests.lab.namespaces import explain_missing


@pytest.fixture(scope="session")
def lab_allowed() -> None:
    """Skip what needs a lab where there can't be one."""
    if reason := explain_missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def lab(lab_allowed: None) -> Iterator[Lab]:
    """An empty lab."""
    with Lab() as running:
        yield running


@pytest.fixture(scope="module")
def ec2(lab: Lab) -> Ec2:
    """EC2's API in the lab."""
    return Ec2(lab)


@pytest.fixture(scope="module")
def hypervisor(lab: Lab, ec2: Ec2) -> Iterator[Hypervisor]:
    """Machines behind the instances."""
    with Hypervisor(lab, ec2) as running:
        yield running
