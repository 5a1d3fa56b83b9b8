"""All policies by name, ours first; each is built for one run."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from autoscaling.brain_loop import build_policy
from autoscaling.peers.foresight import build_foresight
from autoscaling.peers.queue_hpa import QueueHpa
from autoscaling.peers.sizing import build_sizing
from autoscaling.peers.skyserve import SkyServe
from autoscaling.peers.static import AllCloud, OnPremOnly, StaticPeak
from autoscaling.peers.wva import Wva
from autoscaling.simulator.policy import Policy
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.simulation import Say, Simulation
from autoscaling.simulator.tally import Outcome
from autoscaling.simulator.tidegate_policy import TidegatePolicy
from autoscaling.simulator.timeline import Recorder
from autoscaling.simulator.traffic import Traffic
from cluster.errors import ConfigError


def _build_ray_default(_traffic: Traffic, _scenario: Scenario, _seed: int) -> Policy:
    try:
        from autoscaling.peers.ray_default import RayDefault  # noqa: PLC0415 - Ray, only if asked
    except ImportError as exc:
        raise ConfigError(
            f"--policy ray-default must be able to import Ray 2.60.0; got: {exc}. "
            "Install the extra `cpu` or `gpu`."
        ) from exc
    return RayDefault()


def _bound_cost(traffic: Traffic, scenario: Scenario, *, seed: int) -> Outcome:
    try:
        from autoscaling.peers.oracle import bound_cost  # noqa: PLC0415 - SciPy, only if asked
    except ImportError as exc:
        raise ConfigError(
            f"--policy oracle must be able to import SciPy; got: {exc}. "
            "Install the extra `simulate`."
        ) from exc
    return bound_cost(traffic, scenario, seed=seed)


_ORACLE = "oracle"

_BUILDERS: Mapping[str, Callable[[Traffic, Scenario, int], Policy]] = {
    "tidegate": lambda _, scenario, _seed: TidegatePolicy(build_policy(scenario.settings.burst)),
    "ray-default": _build_ray_default,
    "skyserve": lambda traffic, scenario, _: SkyServe(build_sizing(traffic, scenario)),
    "wva": lambda _traffic, _scenario, _seed: Wva(),
    "queue-hpa": lambda _traffic, _scenario, _seed: QueueHpa(),
    "static-peak": lambda traffic, scenario, _: StaticPeak(build_sizing(traffic, scenario)),
    "onprem-only": lambda traffic, scenario, _: OnPremOnly(build_sizing(traffic, scenario)),
    "all-cloud": lambda traffic, scenario, _: AllCloud(build_sizing(traffic, scenario)),
    "foresight": lambda traffic, scenario, seed: build_foresight(traffic, scenario, seed=seed),
}

POLICY_NAMES = (*_BUILDERS, _ORACLE)


def run_policy(
    name: str,
    traffic: Traffic,
    scenario: Scenario,
    *,
    seed: int,
    say: Say | None = None,
    recorder: Recorder | None = None,
    ablated: frozenset[str] = frozenset(),
) -> Outcome:
    """Return one policy's figures; a bound, which is no run, tells the recorder nothing.

    `ablated` parts of our own brain are switched off; the others have no such parts.

    Raises:
        ConfigError: there is no policy of this name, or Ray isn't installed for the one that is it.
    """
    if name == _ORACLE:
        return _bound_cost(traffic, scenario, seed=seed)
    if name not in _BUILDERS:
        raise ConfigError(f"--policy must be one of {', '.join(POLICY_NAMES)}; got {name!r}.")
    policy = _BUILDERS[name](traffic, scenario, seed)
    if ablated:
        brain = replace(build_policy(scenario.settings.burst), ablated=ablated)
        policy = TidegatePolicy(brain)
    return Simulation(traffic, scenario, policy, seed=seed, recorder=recorder).run(say)
