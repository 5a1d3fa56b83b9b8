"""Fixtures of the lab: skipped, with the reason, where this machine can't have one."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.ec2 import Ec2
from tests.lab.hybrid import HybridLab, open_hybrid_lab
from tests.lab.hypervisor import Hypervisor
from tests.lab.lab import Lab
from tests.lab.namespaces import explain_missing
from tests.lab.steps import start

_LOGS: pytest.StashKey[tuple[HybridLab, Path]] = pytest.StashKey()


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


@pytest.fixture(scope="session")
def hybrid(
    lab_allowed: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HybridLab]:
    """The machines of the hybrid cluster, one set a session."""
    with open_hybrid_lab(boot_s=1.0) as machines:
        request.config.stash[_LOGS] = machines, tmp_path_factory.mktemp("lab")
        try:
            yield machines
        finally:
            del request.config.stash[_LOGS]


@pytest.fixture
def running(hybrid: HybridLab) -> HybridLab:
    """The hybrid cluster with its applications, started where the last test took it down."""
    if not hybrid.is_running:
        start(hybrid)
    return hybrid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save what the machines say at a failure, and have pytest print where: disks go with them."""
    report = yield
    found = item.config.stash.get(_LOGS, None)
    if report.failed and found is not None:
        machines, folder = found
        target = folder / f"{item.name}-{call.when}"
        machines.save_logs(target)
        report.sections.append(("logs of the lab's machines", str(target)))
    return report
