"""Nodes in simulated time: launched within limits, booted, lost, sent home; and what they cost."""

import math
from collections.abc import Iterator
from decimal import Decimal
from functools import partial

from autoscaling import node_history
from autoscaling.guard import Held, Limits, Offer
from autoscaling.placement import Situation
from autoscaling.releases import Resident, decide_releases
from autoscaling.simulator.clock import Clock
from autoscaling.simulator.fleet import Fleet, jitter
from autoscaling.simulator.machines import Machine
from autoscaling.simulator.policy import Placed, Policy
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.tally import Spent, Tally
from autoscaling.simulator.timeline import NodeEvent, NodeTurn, Recorder
from autoscaling.simulator.traffic import build_random
from cluster.budget import Commitment, MoneyLimits, SpendNow, budget_status
from cluster.config import NodeTypeSettings
from cluster.spend import Charge, Window, cost_of, day_window, month_window

EPOCH_S = 1_700_006_400.0
"""Wall time at the start of each simulation: midnight UTC, so that days and months have edges."""

_SOLD_OUT_S = 180.0
_GPU = "GPU"

_LEARN_S = 10.0
"""How old what the nodes teach may be: it changes by the minute, and is asked for every second."""


class NodeLife:
    """All nodes of a cluster file, and the scheduler tick that asks for them."""

    def __init__(
        self,
        clock: Clock,
        scenario: Scenario,
        tally: Tally,
        fleet: Fleet,
        *,
        seed: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._clock = clock
        self._scenario = scenario
        self._settings = scenario.settings
        self._tally = tally
        self._fleet = fleet
        self._recorder = recorder
        self._boot_chance = build_random(seed, "boot")
        self._spot_chance = build_random(seed, "spot")
        self._sold_out: set[str] = set()
        self._held_until_s: dict[str, float] = {}
        self._machines: list[Machine] = []
        self._made = 0
        self._figures = node_history.NodeFigures()
        self._learned_s = -math.inf
        self.placed = Placed()

    def begin(self) -> None:
        """Join the head and the nodes that are always there, and let spot markets begin."""
        for kind in self._settings.node_types.values():
            is_head = kind.name == self._settings.head_node_type
            for _ in range(max(kind.min_nodes, is_head)):
                self._join(self._make(kind))
            if kind.market == "spot" and self._scenario.spot.sold_out_ratio > 0:
                is_out = self._spot_chance.random() < self._scenario.spot.sold_out_ratio
                self._turn_market(kind.name, is_out)

    def tick(self, policy: Policy) -> None:
        """Place what waits, launch what the policy asks for, send home what idles."""
        self._fleet.place_pending()
        situation = Situation(
            offers=self.list_offers(),
            nodes=tuple(m.as_node() for m in self._present() if not m.is_leaving),
            retiring=tuple(m.kind.name for m in self._present() if m.is_leaving),
            demands=tuple(self._fleet.list_pending()),
        )
        self.placed = policy.place(situation, self._build_limits())
        for name in self.placed.launches:
            self._launch(name)
        self._send_home()
        burn = self.burn_usd_per_hour()
        self._tally.burn_usd_per_hour_max = max(self._tally.burn_usd_per_hour_max, burn)

    def burn_usd_per_hour(self) -> float:
        """Return what the rented nodes there are cost in an hour."""
        rented = (m.kind.usd_per_hour for m in self._present() if not m.is_owned)
        return float(sum(rented, Decimal(0)))

    def list_offers(self) -> tuple[Offer, ...]:
        """Return the node types as a decision sees them now."""
        return tuple(
            Offer(
                name=kind.name,
                site=kind.site,
                market=kind.market,
                resources={name: float(amount) for name, amount in kind.resources.items()},
                labels=kind.labels,
                usd_per_hour=kind.usd_per_hour,
                nodes_min=kind.min_nodes,
                nodes_max=max(kind.max_nodes, kind.name == self._settings.head_node_type),
                held=self._find_hold(kind.name),
            )
            for kind in self._settings.node_types.values()
        )

    def learn(self) -> node_history.NodeFigures:
        """Return what the nodes so far teach of cold starts and losses, as production learns it."""
        now_s = self._clock.now_s
        if now_s - self._learned_s >= _LEARN_S:
            self._learned_s = now_s
            self._figures = node_history.learn_from_nodes(
                [_as_life(machine) for machine in self._machines],
                {kind.name: kind.market for kind in self._settings.node_types.values()},
                now_s=now_s,
            )
        return self._figures

    def sum_spent(self, until_s: float) -> Spent:
        """Return what all nodes cost from the start to `until_s`."""
        window = Window(EPOCH_S, EPOCH_S + until_s)
        cloud = [m for m in self._machines if not m.is_owned]
        usd = cost_of([_charge(m) for m in cloud], window, now_s=EPOCH_S + until_s)
        gpu_s = sum(_gpu_s(m, until_s) for m in cloud)
        owned_gpu_s = sum(_gpu_s(m, until_s) for m in self._machines if m.is_owned)
        rate = float(self._scenario.owned_usd_per_gpu_hour)
        return Spent(float(usd or 0), owned_gpu_s / 3600 * rate, gpu_s / 3600)

    def _present(self) -> list[Machine]:
        return list(self._fleet.machines.values())

    def _find_hold(self, node_type: str) -> Held | None:
        until_s = self._held_until_s.get(node_type, -math.inf)
        if until_s <= self._clock.now_s:
            return None
        return Held(
            "sold_out", f"is sold out, asked for again in {until_s - self._clock.now_s:.0f} s"
        )

    def _build_limits(self) -> Limits:
        given = self._settings.limits
        now_s = EPOCH_S + self._clock.now_s
        charges = [_charge(machine) for machine in self._machines if not machine.is_owned]
        spend = SpendNow(
            now_s=now_s,
            commitments=[
                Commitment(m.kind.usd_per_hour, since_s=EPOCH_S + m.requested_s)
                for m in self._present()
                if not m.is_owned
            ],
            day_usd=cost_of(charges, day_window(now_s), now_s=now_s),
            month_usd=cost_of(charges, month_window(now_s), now_s=now_s),
        )
        money = MoneyLimits(
            usd_per_hour=given.usd_per_hour,
            usd_per_day=given.usd_per_day,
            usd_per_month=given.usd_per_month,
            soft_ratio=Decimal(str(given.soft_ratio)),
            lease_s_min=given.lease_s_min,
        )
        return Limits(
            launches_per_tick=given.launches_per_tick,
            site_nodes_max={name: site.max_nodes for name, site in self._settings.sites.items()},
            usd_per_hour_max=given.usd_per_hour,
            budget=budget_status(spend, money),
        )

    def _make(self, kind: NodeTypeSettings) -> Machine:
        self._made += 1
        machine = Machine(
            id=f"{kind.name}-{self._made:05d}",
            kind=kind,
            requested_s=self._clock.now_s,
            free={name: float(amount) for name, amount in kind.resources.items()},
        )
        self._machines.append(machine)
        self._fleet.machines[machine.id] = machine
        self._say(machine.id, kind.name, "asked")
        return machine

    def _launch(self, node_type: str) -> None:
        """Ask the site for a node; a type that is sold out isn't asked for again for a while."""
        if node_type in self._sold_out:
            self._held_until_s[node_type] = self._clock.now_s + _SOLD_OUT_S
            self._say("", node_type, "sold_out")
            return
        kind = next(k for k in self._settings.node_types.values() if k.name == node_type)
        machine = self._make(kind)
        self._tally.launches += not machine.is_owned
        boot = self._scenario.boot
        stages = (boot.accepted_s, boot.running_s, boot.reachable_s, boot.joined_s)
        total_s = sum(jitter(self._boot_chance, stage_s, boot.spread) for stage_s in stages)
        self._clock.at(self._clock.now_s + total_s, self._join, machine)

    def _join(self, machine: Machine) -> None:
        if machine.ended_s is not None:
            return
        machine.joined_s = machine.idle_since_s = self._clock.now_s
        self._say(machine.id, machine.kind.name, "joined")
        spot = self._scenario.spot
        if machine.kind.market == "spot" and spot.losses_per_hour > 0:
            loss_s = self._clock.now_s + self._spot_chance.expovariate(spot.losses_per_hour / 3600)
            self._clock.at(loss_s - spot.notice_s, self._notice, machine)
            self._clock.at(loss_s, self._lose, machine)
        self._fleet.place_pending()

    def _notice(self, machine: Machine) -> None:
        if machine.ended_s is None:
            machine.is_leaving = True
            self._say(machine.id, machine.kind.name, "notice")
            self._fleet.drain_machine(machine)

    def _lose(self, machine: Machine) -> None:
        if machine.ended_s is None:
            self._tally.lost_nodes += 1
            machine.is_lost = True
            self._end(machine, "lost")
            self._fleet.lose_machine(machine)

    def _end(self, machine: Machine, how: NodeTurn) -> None:
        machine.ended_s = self._clock.now_s
        self._say(machine.id, machine.kind.name, how)
        del self._fleet.machines[machine.id]

    def _turn_market(self, node_type: str, is_out: bool) -> None:  # noqa: FBT001 - the state itself
        """Begin a spell with or without nodes of a type, and plan its end."""
        (self._sold_out.add if is_out else self._sold_out.discard)(node_type)
        spot = self._scenario.spot
        out_s, ratio = spot.sold_out_spell_s, spot.sold_out_ratio
        mean_s = out_s if is_out else out_s * (1 - ratio) / ratio
        ends_s = self._clock.now_s + self._spot_chance.expovariate(1 / mean_s)
        self._clock.at(ends_s, partial(self._turn_market, node_type), not is_out)

    def _send_home(self) -> None:
        homecoming = decide_releases(
            list(self._list_residents()),
            now_s=self._clock.now_s,
            lease_s_min=self._settings.limits.lease_s_min,
        )
        for node_id in homecoming.releases:
            self._end(self._fleet.machines[node_id], "home")

    def _say(self, node_id: str, node_type: str, turn: NodeTurn) -> None:
        if self._recorder is not None:
            self._recorder.note_node(NodeEvent(self._clock.now_s, node_id, node_type, turn))

    def _list_residents(self) -> Iterator[Resident]:
        """Yield the nodes that may go home: not the head, nor what must always be there."""
        kept = {kind.name: kind.min_nodes for kind in self._settings.node_types.values()}
        kept[self._settings.head_node_type] = 1
        for machine in self._present():
            if kept[machine.kind.name] > 0:
                kept[machine.kind.name] -= 1
                continue
            if machine.joined_s is None:
                continue
            idle_since_s = machine.idle_since_s
            idle_s = 0.0 if idle_since_s is None else self._clock.now_s - idle_since_s
            yield Resident(
                id=machine.id,
                node_type=machine.kind.name,
                is_owned=machine.is_owned,
                usd_per_hour=machine.kind.usd_per_hour,
                is_idle=not machine.replicas,
                is_overdue=not machine.replicas
                and idle_s >= self._scenario.idle_s[machine.kind.name],
                is_needed=machine.id in self.placed.used_nodes,
                launched_s=machine.requested_s,
            )


def _as_life(machine: Machine) -> node_history.NodeLife:
    return node_history.NodeLife(
        node_type=machine.kind.name,
        asked_s=machine.requested_s,
        joined_s=machine.joined_s,
        serving_s=machine.serving_s,
        ended_s=machine.ended_s,
        is_lost=machine.is_lost,
    )


def _charge(machine: Machine) -> Charge:
    ended_s = None if machine.ended_s is None else EPOCH_S + machine.ended_s
    return Charge(
        machine.kind.site, machine.kind.usd_per_hour, EPOCH_S + machine.requested_s, ended_s
    )


def _gpu_s(machine: Machine, until_s: float) -> float:
    ended_s = until_s if machine.ended_s is None else min(until_s, machine.ended_s)
    return max(0.0, ended_s - machine.requested_s) * machine.kind.resources.get(_GPU, 0)
