"""What the ledger and the notices say about nodes and money, as one value for the decisions.

Pure. `autoscaling.facts_reader` builds it at the edge, at most once a tick; it is read by
`autoscaling.placement`, `autoscaling.guard` and `autoscaling.releases`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaling.guard import Held
from cluster.budget import BudgetStatus
from cluster.model import Cordon


@dataclass(frozen=True, slots=True)
class NodeFact:
    """One node that isn't gone. `launched_s` is when it began to cost, wall time."""

    launched_s: float
    cordon: Cordon | None = None


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """Everything the ledger knows that a tick may need, as of `read_s`, wall time.

    `holds` says, by node type, why its site isn't asked for it now. `noticed` names the nodes that
    their site has announced to take away. `budget` None = what is spent couldn't be read yet.
    `warnings` are for people: limits nearly reached, and facts that are old.
    """

    read_s: float = 0.0
    holds: Mapping[str, Held] = field(default_factory=dict)
    nodes: Mapping[str, NodeFact] = field(default_factory=dict)
    noticed: frozenset[str] = frozenset()
    budget: BudgetStatus | None = None
    warnings: tuple[str, ...] = ()

    def is_retiring(self, node_id: str) -> bool:
        """Whether the node takes no more work, and fills its place until it is gone."""
        fact = self.nodes.get(node_id)
        return node_id in self.noticed or (fact is not None and fact.cordon is not None)

    def is_draining(self, node_id: str) -> bool:
        """Whether an operator wants the node emptied and gone."""
        fact = self.nodes.get(node_id)
        return fact is not None and fact.cordon is Cordon.DRAINING
