"""What is asked of the cluster and what it has: the values that placement reads.

Mirrors Ray's resource demand without importing it, so that the same decisions run in the monitor,
in a simulation and in tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

# Ray gives every node one unit of any resource whose name begins so, without listing it.
IMPLICIT_RESOURCE_PREFIX = "node:__internal_implicit_resource_"

# Ray counts resources in ten-thousandths; adding floats must not lose one.
_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Term:
    """One requirement on one node label: its value is among `values`, or not if `is_negated`."""

    key: str
    values: frozenset[str]
    is_negated: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels satisfy it; a label that is absent has no value."""
        return (labels.get(self.key) in self.values) != self.is_negated


Selector = tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources that must be on one node. One of `selectors` must hold; none = any node."""

    resources: Mapping[str, float]
    selectors: tuple[Selector, ...] = ()

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may hold it."""
        if not self.selectors:
            return True
        return any(all(term.holds(labels) for term in selector) for selector in self.selectors)


@dataclass(frozen=True, slots=True)
class Demand:
    """One task, actor or placement group that waits for nodes; all of its bundles or none.

    PACK and SPREAD are wishes that Ray's own scheduler honours on the nodes there are; no node is
    launched for them. `group` names the placement group, whose bundles STRICT_SPREAD keeps apart.
    """

    id: str
    bundles: tuple[Bundle, ...]
    strategy: Strategy = "PACK"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node that runs or is on its way. `free` is what nothing uses now, of `total`.

    `groups` names the STRICT_SPREAD groups that have a bundle here already.
    """

    id: str
    node_type: str
    is_owned: bool
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()


def covers(free: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether `free` has all of `wanted`."""
    return all(amount <= amount_of(free, name) for name, amount in wanted.items() if amount > 0)


def subtract(free: dict[str, float], wanted: Mapping[str, float]) -> None:
    """Take `wanted` out of `free`, in place."""
    for name, amount in wanted.items():
        free[name] = round(amount_of(free, name) - amount, _DECIMALS)


def amount_of(resources: Mapping[str, float], name: str) -> float:
    """How much of a resource there is, Ray's implicit ones included."""
    return resources.get(name, 1.0 if name.startswith(IMPLICIT_RESOURCE_PREFIX) else 0.0)


def merge_bundles(bundles: tuple[Bundle, ...]) -> Bundle:
    """One bundle that holds what all of these hold, for a group that must share a node.

    The selectors of all bundles apply at once: every combination of their alternatives is one.
    """
    resources: dict[str, float] = {}
    selectors: tuple[Selector, ...] = ((),)
    for bundle in bundles:
        for name, amount in bundle.resources.items():
            resources[name] = round(resources.get(name, 0.0) + amount, _DECIMALS)
        alternatives = bundle.selectors or ((),)
        selectors = tuple(
            dict.fromkeys((*left, *right) for left in selectors for right in alternatives)
        )
    merged = tuple(tuple(dict.fromkeys(selector)) for selector in selectors)
    return Bundle(resources, () if () in merged else merged)


def describe_demand(demand: Demand) -> str:
    """The demand in a few words, such as `{GPU: 1} at site=onprem`."""
    parts = [_describe_bundle(bundle) for bundle in demand.bundles]
    if len(parts) == 1:
        return parts[0]
    return f"{demand.strategy} group of {' + '.join(parts)}"


def _describe_bundle(bundle: Bundle) -> str:
    amounts = ", ".join(f"{name}: {amount:g}" for name, amount in sorted(bundle.resources.items()))
    selectors = " or ".join(
        " and ".join(_describe_term(term) for term in selector) for selector in bundle.selectors
    )
    return f"{{{amounts}}}" + (f" at {selectors}" if selectors else "")


def _describe_term(term: Term) -> str:
    return f"{term.key}{'!=' if term.is_negated else '='}{'|'.join(sorted(term.values))}"
