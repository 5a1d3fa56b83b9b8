"""Money, limits and what is sold out, as the ledger has them, ready for JSON."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cluster.budget import LimitUse, budget_status
from cluster.config import Limits
from cluster.ledger import Ledger
from cluster.limits import money_limits
from cluster.model import SiteName
from cluster.spend import day_window, month_window


def describe_ledger(ledger: Ledger, limits: Limits) -> dict[str, Any]:
    """Return what a ledger knows besides nodes. Money as text, None = unknown."""
    now = ledger.spend_now()
    status = budget_status(now, money_limits(limits))
    day, month = day_window(now.now_s), month_window(now.now_s)
    return {
        "budget": [_describe_use(use) for use in status.uses],
        "spend": {
            "day_usd": _text(now.day_usd),
            "month_usd": _text(now.month_usd),
            "by_site": {
                "day": _texts(ledger.spend_by_site(day.since_s, now.now_s)),
                "month": _texts(ledger.spend_by_site(month.since_s, now.now_s)),
            },
        },
        "sold_out": [
            {
                "site": one.site,
                "instance_type": one.instance_type,
                "zone": one.zone,
                "market": one.market,
                "code": one.code,
                "until_s": one.until_s,
            }
            for one in ledger.list_sold_out()
        ],
        "holds": [
            {
                "site": hold.site,
                "node_type": hold.node_type,
                "until_s": hold.until_s,
                "why": hold.why,
            }
            for hold in ledger.list_holds()
        ],
        "sites": [
            {"site": look.site, "listed_s": look.listed_s, "error": look.error}
            for look in ledger.list_listings()
        ],
    }


def _describe_use(use: LimitUse) -> dict[str, Any]:
    return {
        "limit": use.limit,
        "limit_usd": str(use.limit_usd),
        "used_usd": _text(use.used_usd),
        "spent_usd": _text(use.spent_usd),
        "level": use.level,
        "reason": use.reason,
    }


def _texts(by_site: Mapping[SiteName, Decimal | None]) -> dict[str, str | None]:
    return {site: _text(usd) for site, usd in by_site.items()}


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else str(usd)
