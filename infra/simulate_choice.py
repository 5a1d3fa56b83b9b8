"""Which runs a simulation consists of: policies, ours in parts, ours with a node that is bought."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from autoscaling.peers.registry import POLICY_NAMES
from autoscaling.simulator.scenario import Scenario
from autoscaling.snapshot import BRAIN_PARTS
from cluster.errors import ConfigError
from infra.progress import console
from infra.simulate_run import Variant
from infra.what_if import Purchase, add_node

OURS = "tidegate"
USUAL_POLICIES = (OURS, "ray-default", "onprem-only", "all-cloud", "oracle")
"""What a buyer asks: ours, what Ray does by itself, the two ends, and how far it could go."""

PARTS = (*BRAIN_PARTS, "in-time", "reading")
"""What can be switched off: the brain's parts and two of admission and routing.

in-time: who can still be answered in time goes first; reading: a replica with much left to read of
its prompts gets no more.
"""

ALL = "all"

_NEEDS = {"ray-default": ("ray", "`cpu` or `gpu`"), "oracle": ("scipy", "`simulate`")}
"""Policies that need a library of an extra, and the extra."""


def choose_variants(
    scenario: Scenario, policies: Sequence[str], parts: Sequence[str], purchase: Purchase | None
) -> list[Variant]:
    """Return the rows in order: ours whole, in parts, with the node, each where it was asked for.

    Raises:
        ConfigError: there is no such policy, part or node type.
    """
    names = _choose_policies(policies, is_ours_only=bool(parts or purchase))
    for part in parts:
        if part not in {*PARTS, ALL}:
            choice = ", ".join((*PARTS, ALL))
            raise ConfigError(f"--ablate must be one of {choice}; got {part!r}.")
    if (parts or purchase) and OURS not in names:
        names.insert(0, OURS)
    chosen = PARTS if ALL in parts else tuple(dict.fromkeys(parts))
    found: list[Variant] = []
    for name in names:
        found.append(Variant(name, name, scenario))
        if name == OURS:
            found += [_switch_off(part, scenario) for part in chosen]
            if purchase is not None:
                bigger = add_node(scenario, purchase)
                found.append(Variant(label_bought(purchase), OURS, bigger))
    return found


def label_bought(purchase: Purchase) -> str:
    """Return the name of the row with the node that is bought."""
    return f"{OURS} +1 {purchase.node_type}"


def _switch_off(part: str, scenario: Scenario) -> Variant:
    """Return our policy without one part."""
    label = f"{OURS} -{part}"
    if part in BRAIN_PARTS:
        return Variant(label, OURS, scenario, frozenset({part}))
    if part == "in-time":
        queue = replace(scenario.queue, in_time_s=None)
        return Variant(label, OURS, replace(scenario, queue=queue))
    pools = tuple(
        pool.model_copy(update={"reading_tokens_max": None}) for pool in scenario.model.pools
    )
    model = scenario.model.model_copy(update={"pools": pools})
    return Variant(label, OURS, replace(scenario, model=model))


def _choose_policies(given: Sequence[str], *, is_ours_only: bool) -> list[str]:
    """Return the policies' names without repetition; without a wish, those that can be run."""
    if ALL in given:
        return _list_runnable(POLICY_NAMES)
    for name in given:
        if name not in POLICY_NAMES:
            choice = ", ".join((*POLICY_NAMES, ALL))
            raise ConfigError(f"--policy must be one of {choice}; got {name!r}.")
        if _find_missing(name):
            raise ConfigError(f"--policy {name} must be left out: {_find_missing(name)}.")
    if given:
        return list(dict.fromkeys(given))
    if is_ours_only:
        return [OURS]
    return _list_runnable(USUAL_POLICIES)


def _list_runnable(names: Sequence[str]) -> list[str]:
    """Return those that can be run here; the others are named on stderr."""
    missing = {name: text for name in names if (text := _find_missing(name))}
    for name, text in missing.items():
        console.print(f"{name} is left out: {text}", markup=False)
    return [name for name in names if name not in missing]


def _find_missing(name: str) -> str | None:
    """Return what a policy lacks here: known before hours are simulated, not after."""
    library, extra = _NEEDS.get(name, (None, None))
    if library is None or importlib.util.find_spec(library) is not None:
        return None
    return f"{library} isn't installed here; it comes with the extra {extra}"
