"""Which engines that share a GPU are awake: more models than GPUs can wait.

Engines of a pool with `gpu_shares` above one are started once and sleep without GPU memory. Waking
one takes seconds and no node, so it is the first answer to a model that waits. One that is awake
stays so until another model waits for its GPU: at once if it has nothing to do, else after a turn,
and never for less important waiting than its own. Then its streams end before it sleeps.

Never two awake on one GPU: an engine is told to wake only when each other one on its GPUs has said,
after the last change of orders, that it has none of their memory. Pure; memory is the orders.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.warm_board import WarmOrders, WarmReport

_OFF = frozenset({"waits", "asleep"})


@dataclass(frozen=True, slots=True)
class WarmRules:
    """`turn_s`: how long a busy engine stays awake though another model waits for its GPU.

    Waking takes about three seconds, so a turn of thirty spends at most a tenth on changes.
    `look_s`: how long one that just woke may look idle before its first request reaches it.
    """

    turn_s: float = 30.0
    look_s: float = 3.0


@dataclass(frozen=True, slots=True)
class WarmDemand:
    """What waits for a model, and how much of it may not leave owned sites."""

    app: str
    waiting: int = 0
    must_stay: int = 0
    usd_per_late_request: float = 0.0

    @property
    def order(self) -> tuple[bool, float, str]:
        """Sort key: what must stay first, then what is worth most."""
        return (self.must_stay == 0, -self.waiting * self.usd_per_late_request, self.app)


@dataclass(frozen=True, slots=True)
class WarmDecision:
    """The orders to write, unless they are the old ones, and what there is to say of a model.

    `away` names, by replica, the model that has the GPU which a waiting model's sleeper needs.
    """

    orders: WarmOrders
    reasons: tuple[str, ...] = ()
    away: Mapping[str, str] = field(default_factory=dict)


def decide_warm(
    reports: Iterable[WarmReport],
    demands: Iterable[WarmDemand],
    orders: WarmOrders,
    *,
    now_s: float,
    rules: WarmRules,
) -> WarmDecision:
    """Return who may be awake now. Replicas without a report are gone."""
    known = {report.replica_id: report for report in reports}
    awake = {key: since_s for key, since_s in orders.awake.items() if key in known}
    desk = _Desk(known, {d.app: d for d in demands}, dict(awake), orders, now_s, rules)
    desk.serve()
    number = orders.number + (desk.awake != dict(orders.awake))
    new = WarmOrders(number, dict(sorted(desk.awake.items())), tuple(desk.next))
    return WarmDecision(new, tuple(desk.reasons), desk.list_away())


class _Desk:
    """One decision in the making."""

    def __init__(
        self,
        known: Mapping[str, WarmReport],
        demands: Mapping[str, WarmDemand],
        awake: dict[str, float],
        orders: WarmOrders,
        now_s: float,
        rules: WarmRules,
    ) -> None:
        self._known = known
        self._demands = demands
        self._orders = orders
        self._now_s = now_s
        self._rules = rules
        self._promised: set[str] = set()
        self.awake = awake
        self.next: list[str] = []
        self.reasons: list[str] = []

    def serve(self) -> None:
        """Give GPUs to whom room was made for, to models that wait, and then to first starts."""
        for key in self._orders.next:
            chosen = self._known.get(key)
            caller = self._demands.get(chosen.app) if chosen is not None else None
            if chosen is not None and (chosen.state == "waits" or (caller and caller.waiting)):
                self._wake_one(caller or WarmDemand(chosen.app), [chosen])
        callers = sorted((d for d in self._demands.values() if d.waiting), key=lambda d: d.order)
        for caller in callers:
            if self._needs_more(caller):
                self._wake_one(caller, list(self._known.values()))
        unstarted = [r for r in self._known.values() if r.state == "waits"]
        for report in sorted(unstarted, key=lambda r: r.replica_id):
            if report.replica_id not in self.awake:
                self._wake_one(WarmDemand(report.app), [report])

    def list_away(self) -> dict[str, str]:
        """Return the sleepers of waiting models whose GPU another has and keeps, with that one."""
        found: dict[str, str] = {}
        waiting = {demand.app for demand in self._demands.values() if demand.waiting}
        for report in self._known.values():
            if report.app not in waiting or report.replica_id in self.next:
                continue
            others = self._list_rivals(report)
            holders = [o for o in others if o.replica_id in self.awake or o.state not in _OFF]
            if report.state in _OFF and report.replica_id not in self.awake and holders:
                found[report.replica_id] = holders[0].app
        return found

    def _needs_more(self, caller: WarmDemand) -> bool:
        """Whether all that is awake for a model works, and nothing is on its way to it."""
        if any(self._known[key].app == caller.app for key in self.next):
            return False
        mine = [self._known[key] for key in self.awake if self._known[key].app == caller.app]
        return all(report.state == "awake" and report.live > 0 for report in mine)

    def _wake_one(self, caller: WarmDemand, among: Sequence[WarmReport]) -> None:
        """Wake one of a model's sleepers, or make room for it."""
        sleepers = [
            report
            for report in among
            if report.app == caller.app
            and report.replica_id not in self.awake
            and report.state in _OFF
            and not self._promised.intersection(report.gpus)
        ]
        choices = [(self._count_in_the_way(report), report.replica_id) for report in sleepers]
        for _, key in sorted(choices):
            chosen = self._known[key]
            rivals = self._list_rivals(chosen)
            holding = [rival for rival in rivals if rival.replica_id in self.awake]
            if all(self._yields(rival, caller) for rival in holding):
                self._promised.update(chosen.gpus)
                self._make_way(chosen, holding)
                if not holding and all(self._is_off(rival) for rival in rivals):
                    self.awake[key] = self._now_s
                    self.reasons.append(f"{chosen.app}/{chosen.pool}: {key} wakes")
                else:
                    self.next.append(key)
                return

    def _make_way(self, chosen: WarmReport, holding: Sequence[WarmReport]) -> None:
        for rival in holding:
            del self.awake[rival.replica_id]
            text = f"{rival.replica_id} sleeps once its {rival.live} streams end, for {chosen.app}"
            self.reasons.append(f"{rival.app}/{rival.pool}: {text}")

    def _list_rivals(self, report: WarmReport) -> list[WarmReport]:
        gpus = set(report.gpus)
        rivals = [r for r in self._known.values() if r is not report and gpus.intersection(r.gpus)]
        return sorted(rivals, key=lambda rival: rival.replica_id)

    def _count_in_the_way(self, report: WarmReport) -> tuple[int, int]:
        holding = [r for r in self._list_rivals(report) if not self._is_off(r)]
        return len(holding), sum(rival.live for rival in holding)

    def _is_off(self, report: WarmReport) -> bool:
        """Whether it has no GPU memory, and knows that it may not take any."""
        is_told = report.replica_id in self.awake or report.replica_id in self._orders.awake
        return not is_told and report.state in _OFF and report.order >= self._orders.number

    def _yields(self, rival: WarmReport, caller: WarmDemand) -> bool:
        """Whether an engine that may be awake gives its GPU to the caller now."""
        own = self._demands.get(rival.app, WarmDemand(rival.app))
        had_s = self._now_s - self._orders.awake.get(rival.replica_id, self._now_s)
        if rival.state != "awake" or not self._rules.look_s <= had_s:
            return False
        if rival.live == 0 and own.waiting == 0:
            return True
        if caller.waiting == 0 or (own.must_stay > 0 and caller.must_stay == 0):
            return False
        return had_s >= self._rules.turn_s
