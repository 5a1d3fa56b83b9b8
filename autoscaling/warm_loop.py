"""The warm tier's edge: reports and demand in, orders out, once a tick of the brain.

The deciding is `autoscaling.warm`; the replicas do it (`deployments.warm_replica`). It acts in
shadow mode too: waking costs no node, and a model whose engines sleep answers nothing.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from autoscaling.owned_places import Key
from autoscaling.warm import WarmDemand, WarmRules, decide_warm
from deployments.signals import GatewaySignals
from deployments.warm_board import WarmBoard, WarmOrders, WarmReport

_log = logging.getLogger(__name__)

_RULES = WarmRules()
# Serve replaces a replica that doesn't answer in less than this: its process is gone by then.
_GONE_S = 60.0


class WarmLoop:
    """Carries the decision to the blackboard."""

    def __init__(self, board: WarmBoard) -> None:
        self._board = board

    def tick(self, signals: Sequence[GatewaySignals], *, now_s: float) -> dict[Key, list[str]]:
        """Write new orders if they change; return whom each pool's sleepers can't wake beside.

        One name for each sleeper whose GPU another model has, by application and pool. Raises what
        the GCS client raises when it is away.
        """
        reports = self._list_reports(now_s)
        if not reports:
            return {}
        orders = self._read_orders(reports, now_s)
        found = decide_warm(reports, list_demands(signals), orders, now_s=now_s, rules=_RULES)
        if found.orders != orders:
            self._board.put_orders(found.orders)
        for reason in found.reasons:
            _log.info("warm: %s", reason)
        away: dict[Key, list[str]] = {}
        for report in reports:
            if (holder := found.away.get(report.replica_id)) is not None:
                away.setdefault((report.app, report.pool), []).append(holder)
        return away

    def _read_orders(self, reports: Sequence[WarmReport], now_s: float) -> WarmOrders:
        """Return the orders on the board; without any that can be right, what holds by itself.

        The board may have lost them, or what is on it can't be read: whoever has memory keeps it,
        under a number that nobody has heard yet.
        """
        heard = max(report.order for report in reports)
        try:
            orders = self._board.get_orders()
        except ValueError as exc:
            _log.warning("the orders on the board can't be read, written anew: %s", exc)
            orders = WarmOrders(-1)
        if orders.number >= heard:
            return orders
        awake = {r.replica_id: now_s for r in reports if r.state not in ("waits", "asleep")}
        orders = WarmOrders(heard + 1, awake)
        self._board.put_orders(orders)
        return orders

    def _list_reports(self, now_s: float) -> list[WarmReport]:
        fresh: list[WarmReport] = []
        for report in self._board.list_reports():
            if now_s - report.at_s > _GONE_S:
                self._board.forget_report(report.replica_id)
                continue
            fresh.append(report)
        return fresh


def list_demands(signals: Iterable[GatewaySignals]) -> list[WarmDemand]:
    """Return what waits for each model at all gateways together."""
    waiting, must_stay = Counter[str](), Counter[str]()
    usd: dict[str, float] = {}
    for report in signals:
        for model in report.models:
            count = model.waiting_public + model.waiting_internal + model.waiting_restricted
            waiting[model.app] += count
            must_stay[model.app] += count - model.waiting_may_burst
            usd[model.app] = max(usd.get(model.app, 0.0), model.usd_per_late_request)
    return [
        WarmDemand(app, count, must_stay[app], usd[app]) for app, count in sorted(waiting.items())
    ]
