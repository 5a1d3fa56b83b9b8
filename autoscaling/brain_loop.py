"""The brain's edge: blackboard in, blackboard out, once a second.

Observe, decide, re-check, act, record, each a few lines; the deciding is `autoscaling.replicas`.
Memory is rebuilt from the last record, so a killed process goes on where it stopped.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from autoscaling.guard import Offer
from autoscaling.node_history import NodeFigures
from autoscaling.observation import Observed, build_snapshot
from autoscaling.owned_nodes import list_owned_nodes
from autoscaling.record import (
    CHANGE_CODES,
    Change,
    SchedulerReport,
    Surroundings,
    add_changes,
    build_record,
    list_news,
    read_changes,
    read_memory,
    read_shadow,
)
from autoscaling.replicas import decide_replicas
from autoscaling.shadow import Seen, Shadow, Shadowed, decide_in_shadow
from autoscaling.snapshot import BurstPolicy, Decision, Reason, Snapshot
from autoscaling.stability import ModelMemory
from autoscaling.warm_loop import WarmLoop
from cluster.config import BurstSettings, ClusterSettings
from cluster.notices import Notice
from deployments.signals import Blackboard, GatewaySignals, Targets, decode_signals
from deployments.warm_board import WarmBoard

_log = logging.getLogger(__name__)

# A gateway silent for this long is gone; its last words are taken off the board.
_FORGET_S = 120.0

# A node that was to be taken away and is still there after this long takes work again.
_NOTICE_S_MAX = 1800.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a tick looks besides the blackboard. `now_s` returns wall time.

    `list_problems` says what a person must mend, such as a cluster file that can't be used.
    `read_node_figures` returns what past nodes teach, at once and as far as it is known.
    """

    read_settings: Callable[[], ClusterSettings]
    read_report: Callable[[], SchedulerReport]
    now_s: Callable[[], float]
    list_problems: Callable[[], tuple[str, ...]] = tuple
    read_node_figures: Callable[[], NodeFigures] = NodeFigures


class BrainLoop:
    """Carries the brain's decisions to the blackboard."""

    def __init__(self, board: Blackboard, sources: Sources) -> None:
        self._board = board
        self._sources = sources
        self._warm = WarmLoop(WarmBoard(board.gcs_client))
        self._memory: dict[str, ModelMemory] | None = None
        self._shadow: Shadow = {}
        self._changes: tuple[Change, ...] = ()
        self._known: tuple[Reason, ...] = ()
        self._unreadable: set[str] = set()
        self._tick_s = 0.0
        self.notices: tuple[Notice, ...] = ()
        self.serving: frozenset[str] = frozenset()

    def tick(self) -> Decision:
        """Return the decision just carried out.

        Raises what the GCS client raises when it is away; nothing is remembered then.
        """
        began_s = time.monotonic()
        settings = self._sources.read_settings()
        report = self._sources.read_report()
        self.notices = self._list_notices()
        requested = self._board.get_targets()
        if self._memory is None:
            self._memory = self._recall()
        policy = build_policy(settings.burst)
        learned = self._sources.read_node_figures()
        signals, offers = self._list_signals(), list_offers(settings)
        away = self._warm.tick(signals, now_s=self._sources.now_s())
        observed = Observed(
            signals=signals,
            requested=requested,
            offers=offers,
            blocked_sites=report.blocked_sites,
            cold_starts_s=learned.cold_starts_s,
            losses_per_hour=learned.losses_per_hour,
            memory=self._memory,
            owned_nodes=list_owned_nodes(offers, report.nodes, signals),
            away=away,
        )
        snapshot = build_snapshot(observed, now_s=self._sources.now_s(), policy=policy)
        decision, shadowed = self._decide(snapshot, observed, policy)
        self._act(decision if shadowed is None else shadowed.carried, snapshot, requested)
        self.serving = list_serving(observed.signals)
        changes = add_changes(self._changes, decision, now_s=snapshot.now_s)
        around = self._look_around(changes, learned)
        record = build_record(decision, snapshot, report, around, shadowed=shadowed)
        self._board.put_decision(record)
        self._memory, self._changes = dict(decision.memory), changes
        self._shadow = {} if shadowed is None else shadowed.shadow
        self._say(decision, policy.mode)
        self._tick_s = time.monotonic() - began_s
        return decision

    def _decide(
        self, snapshot: Snapshot, observed: Observed, policy: BurstPolicy
    ) -> tuple[Decision, Shadowed | None]:
        """Return the decision and, in shadow mode, what is carried out of it."""
        if policy.mode == "act":
            return decide_replicas(snapshot, policy), None
        seen = Seen(observed.signals, observed.requested)
        return decide_in_shadow(self._shadow, seen, snapshot, policy)

    def _look_around(self, changes: tuple[Change, ...], learned: NodeFigures) -> Surroundings:
        return Surroundings(
            problems=self._sources.list_problems(),
            waiting=self._board.get_waiting(now_s=self._sources.now_s()),
            brain_s=self._tick_s,
            changes=changes,
            learned=learned,
        )

    def _list_notices(self) -> tuple[Notice, ...]:
        """Return the notices of nodes that may still be there; old ones are taken off the board."""
        fresh: list[Notice] = []
        for notice in self._board.list_notices():
            if self._sources.now_s() - notice.noted_s > _NOTICE_S_MAX:
                self._board.forget_notice(notice.node)
                continue
            if notice not in self.notices:
                _log.warning("%s has a notice of %s", notice.node, notice.kind)
            fresh.append(notice)
        return tuple(fresh)

    def _act(self, decision: Decision, snapshot: Snapshot, requested: Targets | None) -> None:
        """Write the targets, unless they were written meanwhile or there is nothing to say.

        Without any model known, targets on the board are another process's word: they stay.
        """
        if not decision.memory and requested is not None and not snapshot.models:
            return
        if self._board.get_targets() != requested:
            _log.warning("another process wrote targets: this decision is not carried out")
            return
        self._board.put_targets(Targets(decided_s=snapshot.now_s, replicas=decision.targets))

    def _recall(self) -> dict[str, ModelMemory]:
        """Return the memory of the last record, none if there is none that can be read.

        What the record tells people goes on as well.
        """
        record = self._board.get_decision() or {}
        memory: dict[str, ModelMemory] = {}
        try:
            memory = read_memory(record)
            self._shadow, self._changes = read_shadow(record), read_changes(record)
        except ValueError as exc:
            what = "what the last decision record tells" if memory else "the last decision record"
            _log.warning("%s can't be read, beginning without it: %s", what, exc)
        if memory:
            _log.info("going on from the last decision record: %s", ", ".join(sorted(memory)))
        return memory

    def _list_signals(self) -> Sequence[GatewaySignals]:
        """Return what gateways said, nothing if one of them can't be understood.

        What can't be understood or is old is taken off the board: if its gateway lives, it speaks
        again at once, and if it is dead, it doesn't hold the numbers for ever.
        """
        signals: list[GatewaySignals] = []
        is_readable = True
        for gateway, raw in self._board.list_raw_signals().items():
            try:
                report = decode_signals(raw)
            except ValueError as exc:
                if gateway not in self._unreadable:
                    why = str(exc).splitlines()[0]
                    _log.warning("signals of gateway %s can't be read: %s", gateway, why)
                self._unreadable.add(gateway)
                self._board.forget_signals(gateway)
                is_readable = False
                continue
            if self._sources.now_s() - report.published_s > _FORGET_S:
                self._board.forget_signals(gateway)
            signals.append(report)
        return signals if is_readable else ()

    def _say(self, decision: Decision, mode: Literal["act", "shadow"]) -> None:
        """Log what is new: every change with its reason, every hold when its kind changes."""
        who = "brain" if mode == "act" else "brain, in shadow"
        reasons = (*decision.reasons, *decision.unmet)
        news = {str(reason) for reason in list_news(reasons, self._known)}
        for reason in reasons:
            if reason.code in CHANGE_CODES or str(reason) in news:
                _log.info("%s: %s", who, reason)
        self._known = reasons


def list_serving(signals: Sequence[GatewaySignals]) -> frozenset[str]:
    """Return the nodes that serve, by Ray's ids: a gateway counts a replica on each as running."""
    pools = [pool for report in signals for model in report.models for pool in model.pools]
    return frozenset(node for pool in pools for node in pool.ray_nodes)


def build_policy(settings: BurstSettings) -> BurstPolicy:
    """Return the brain's policy from the cluster file's settings."""
    return BurstPolicy(**settings.model_dump())


def list_offers(settings: ClusterSettings) -> tuple[Offer, ...]:
    """Return the node types of the cluster file, for what they hold and cost."""
    return tuple(
        Offer(
            name=node_type.name,
            site=node_type.site,
            market=node_type.market,
            resources={name: float(amount) for name, amount in node_type.resources.items()},
            labels=node_type.labels,
            usd_per_hour=Decimal(node_type.usd_per_hour),
            nodes_min=node_type.min_nodes,
            nodes_max=node_type.max_nodes,
            round_trip_s=settings.sites[node_type.site].round_trip_s,
            egress_usd_per_gb=settings.sites[node_type.site].egress_usd_per_gb,
        )
        for node_type in settings.node_types.values()
    )
