"""The same run in the simulator: same files, same traffic, boot times as they were recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoscaling.brain_loop import build_policy
from autoscaling.guard import Limits
from autoscaling.placement import Situation
from autoscaling.simulator.clock import EPOCH_S
from autoscaling.simulator.policy import Placed, Signals, Wish
from autoscaling.simulator.scenario import BootTimes, Scenario, Slo
from autoscaling.simulator.simulation import Simulation
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.tidegate_policy import TidegatePolicy
from autoscaling.simulator.traffic import Traffic
from cluster.model import BootStage
from infra.simulated_files import Choices, read_scenario
from tests.benchmarks.reality.cluster_run import Look
from tests.benchmarks.reality.files import TPOT_S_MAX, TTFT_S_MAX

_S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What the simulator says of the traffic. `looks` are the moments at which a wish changed."""

    outcome: Outcome
    cloud_node_s: float
    looks: list[Look]


@dataclass
class _Watched:
    """Our policy, with a note of each moment at which it wished for something else."""

    inner: TidegatePolicy
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.check_s = self.inner.name, self.inner.check_s
        self.binds_market = self.inner.binds_market

    def observe(self, signals: Signals) -> Wish:
        """Return our policy's wish."""
        wish = self.inner.observe(signals)
        look = Look(
            at_s=signals.now_s - EPOCH_S,
            wanted=dict(wish.replicas),
            running={pool.spec.name: pool.running for pool in signals.pools},
            waiting=signals.waiting,
            cloud_nodes=0,
        )
        if not self.looks or _shape(look) != _shape(self.looks[-1]):
            self.looks.append(look)
        return wish

    def place(self, situation: Situation, limits: Limits) -> Placed:
        """Return our policy's placement."""
        return self.inner.place(situation, limits)


def run_simulated(
    traffic: Traffic,
    files: tuple[Path, Path],
    *,
    boots_s: Sequence[Mapping[str, float]],
    seed: int,
) -> SimulatedRun:
    """Return the simulator's figures. `boots_s`: seconds of each boot stage, node by node."""
    scenario = build_scenario(files, boots_s)
    watched = _Watched(TidegatePolicy(build_policy(scenario.settings.burst)))
    simulation = Simulation(traffic, scenario, watched, seed=seed)
    outcome = simulation.run()
    # Every cloud node of these files has one GPU, so GPU hours are node hours.
    return SimulatedRun(outcome, outcome.cloud_gpu_hours * _S_PER_HOUR, watched.looks)


def build_scenario(files: tuple[Path, Path], boots_s: Sequence[Mapping[str, float]]) -> Scenario:
    """Return the scenario of the files, with an engine as the emulated one.

    The emulated engine's prefills don't slow its decodes, so the model's don't either.
    """
    choices = Choices(
        cluster_file=files[0],
        serve_file=files[1],
        is_interfering=False,
    )
    slo = Slo(TTFT_S_MAX, TPOT_S_MAX)
    boots = tuple(build_boot(boot_s) for boot_s in boots_s)
    # A node more than were seen boots as the one in the middle did.
    usual = sorted(boots, key=lambda boot: boot.joined_s)[len(boots) // 2] if boots else BootTimes()
    return replace(read_scenario(choices), slo=slo, boot=usual, recorded_boots=boots)


def build_boot(boot_s: Mapping[str, float]) -> BootTimes:
    """Return a node's recorded stages as the simulator's."""
    known = {stage: boot_s.get(stage.value, 0.0) for stage in BootStage}
    return BootTimes(
        accepted_s=known[BootStage.ACCEPTED],
        running_s=known[BootStage.RUNNING],
        reachable_s=known[BootStage.REACHABLE],
        joined_s=known[BootStage.SET_UP] + known[BootStage.JOINED],
        weights_s=0.0,
        engine_s=known[BootStage.SERVING],
        spread=0.0,
    )


def _shape(look: Look) -> tuple[object, ...]:
    return (look.wanted, look.running)
