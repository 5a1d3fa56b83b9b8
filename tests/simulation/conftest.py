"""Scenarios and traffic that the simulator's tests share, small enough to run in moments."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoscaling.simulator.generators import Shape, generate
from autoscaling.simulator.scenario import BootTimes, Scenario
from autoscaling.simulator.traffic import Traffic
from deployments.admission import QueueLimits
from infra.simulated_files import Choices, read_scenario


def build_small_scenario() -> Scenario:
    """The shipped one with 8 slots a replica, one of four owned ones running, and quick boots."""
    shipped = read_scenario(Choices())
    pools = tuple(
        pool.model_copy(update={"slots": 8, "min_replicas": 1 if pool.owned else 0})
        for pool in shipped.model.pools
    )
    boot = BootTimes(running_s=5.0, reachable_s=3.0, joined_s=7.0, weights_s=2.0, engine_s=8.0)
    return replace(
        shipped,
        model=shipped.model.model_copy(update={"pools": pools}),
        queue=QueueLimits(waiting_max=24, wait_s_max=20.0),
        boot=boot,
        nodes_tick_s=4.0,
    )


@pytest.fixture
def scenario() -> Scenario:
    return build_small_scenario()


@pytest.fixture
def make_traffic() -> Callable[..., Traffic]:
    def make(name: str = "bursty", *, seed: int = 1, **shape: Any) -> Traffic:
        given = {"mean_rps": 10.0, "duration_s": 120.0, **shape}
        return generate(name, Shape(**given), seed=seed)

    return make
