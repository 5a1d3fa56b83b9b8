"""The last check before a node is launched: room at its site, money per hour, day and month.

Runs while the ledger is locked, so that two launches at once can't both take the last room.
"""

from collections.abc import Sequence
from decimal import Decimal

from cluster.budget import MoneyLimits, budget_status, decide_spend
from cluster.config import Limits, ProviderSettings
from cluster.errors import BudgetExceededError, HeadExistsError, SiteFullError
from cluster.ledger import Books, Intent
from cluster.model import NodePhase, NodeRecord, NodeTypeName

HELD_PHASES = {NodePhase.INTENDED, NodePhase.LAUNCHED, NodePhase.RUNNING}


def price_of_type(settings: ProviderSettings, node_type: NodeTypeName) -> Decimal | None:
    """Return what a node of the type costs per hour; None = unknown, which is never free."""
    offer = settings.node_types.get(node_type)
    if offer is None:
        return None
    return Decimal(0) if offer.market == "owned" else offer.usd_per_hour


def check_single_head(open_nodes: Sequence[NodeRecord], intents: Sequence[Intent]) -> None:
    """Raise HeadExistsError if the intents would give the cluster a second head."""
    heads = [node for node in open_nodes if node.is_head and node.phase in HELD_PHASES]
    asked = sum(intent.is_head for intent in intents)
    if asked and len(heads) + asked > 1:
        name = heads[0].node_id if heads else "none"
        raise HeadExistsError(
            f"a cluster must have one head; got {asked} more beside {name}. "
            "Another `ray up` may be running: wait for it, or run `ray down` first."
        )


def check_site_room(
    settings: ProviderSettings, open_nodes: Sequence[NodeRecord], intents: Sequence[Intent]
) -> None:
    """Raise SiteFullError if the intents don't fit their site.

    Nodes being ended don't count: the site's queue ends them before it launches the new ones.
    """
    for site in {intent.site for intent in intents}:
        asked = sum(intent.site == site for intent in intents)
        held = sum(node.site == site and node.phase in HELD_PHASES for node in open_nodes)
        room = settings.sites[site].max_nodes
        if held + asked > room:
            raise SiteFullError(
                f"site {site} must hold at most {room} nodes; got {held} + {asked}. "
                f"Raise provider.sites.{site}.max_nodes if there is room."
            )


def money_limits(limits: Limits) -> MoneyLimits:
    """Return the settings' limits of money as decisions take them."""
    return MoneyLimits(
        usd_per_hour=limits.usd_per_hour,
        usd_per_day=limits.usd_per_day,
        usd_per_month=limits.usd_per_month,
        soft_ratio=Decimal(str(limits.soft_ratio)),
        lease_s_min=limits.lease_s_min,
    )


def check_budget(settings: ProviderSettings, books: Books, intents: Sequence[Intent]) -> None:
    """Raise BudgetExceededError if the intents would cost more than an hour, day or month may."""
    verdict = decide_spend(
        budget_status(books.spend, money_limits(settings.limits)),
        [intent.usd_per_hour for intent in intents],
    )
    if not verdict.is_allowed:
        raise BudgetExceededError(f"the launch must stay within budget; got: {verdict.reason}.")
