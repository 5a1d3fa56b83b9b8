"""Nodes in simulated time: launched within limits, booted, lost, sent home; and what they cost."""

import math
from collections.abc import Iterator
from dataclasses import replace

from autoscaling import node_history
from autoscaling.guard import Held, Offer
from autoscaling.placement import Situation
from autoscaling.releases import Resident, decide_releases
from autoscaling.simulator.clock import EPOCH_S, Clock
from autoscaling.simulator.fleet import Fleet, jitter
from autoscaling.simulator.machines import Machine
from autoscaling.simulator.market import draw_life_s, list_sold_out
from autoscaling.simulator.policy import Placed, Policy
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.spending import build_limits, sum_spent, sum_usd_per_hour
from autoscaling.simulator.tally import Spent, Tally
from autoscaling.simulator.timeline import NodeEvent, NodeTurn, Recorder
from autoscaling.simulator.traffic import build_random
from cluster.config import NodeTypeSettings

_SOLD_OUT_S = 180.0
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
        self._seed = seed
        self._sold_out: dict[str, tuple[tuple[float, float], ...]] = {}
        self._held_until_s: dict[str, float] = {}
        self._machines: list[Machine] = []
        self._made = dict.fromkeys(scenario.settings.node_types, 0)
        self._offers = self._build_offers()
        self._figures = node_history.NodeFigures()
        self._learned_s = -math.inf
        self.placed = Placed()

    def begin(self, until_s: float) -> None:
        """Join the head and the nodes that are always there; fix spot markets up to `until_s`."""
        for kind in self._settings.node_types.values():
            is_head = kind.name == self._settings.head_node_type
            for _ in range(max(kind.min_nodes, is_head)):
                self._join(self._make(kind))
            if kind.market == "spot":
                self._sold_out[kind.name] = list_sold_out(
                    kind.name, self._scenario.spot, seed=self._seed, until_s=until_s
                )

    def tick(self, policy: Policy) -> None:
        """Place what waits, launch what the policy asks for, send home what idles."""
        self._fleet.place_pending()
        situation = Situation(
            offers=self.list_offers(),
            nodes=tuple(m.as_node() for m in self._present() if not m.is_leaving),
            retiring=tuple(m.kind.name for m in self._present() if m.is_leaving),
            demands=tuple(self._fleet.list_pending()),
        )
        now_s = EPOCH_S + self._clock.now_s
        limits = build_limits(self._machines, self._scenario, now_s)
        self.placed = policy.place(situation, limits)
        for name in self.placed.launches:
            self._launch(name)
        self._send_home()
        burn = self.sum_usd_per_hour()
        self._tally.burn_usd_per_hour_max = max(self._tally.burn_usd_per_hour_max, burn)

    def list_offers(self) -> tuple[Offer, ...]:
        """Return the node types as a decision sees them now."""
        now_s = self._clock.now_s
        if not any(until_s > now_s for until_s in self._held_until_s.values()):
            return self._offers
        return tuple(replace(one, held=self._find_hold(one.name)) for one in self._offers)

    def _build_offers(self) -> tuple[Offer, ...]:
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
                round_trip_s=self._settings.sites[kind.site].round_trip_s,
                egress_usd_per_gb=self._settings.sites[kind.site].egress_usd_per_gb,
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
        return sum_spent(self._machines, self._scenario, until_s)

    def sum_usd_per_hour(self) -> float:
        """Return what the rented nodes there are cost in an hour."""
        return sum_usd_per_hour(self._present())

    def _present(self) -> list[Machine]:
        return list(self._fleet.machines.values())

    def _find_hold(self, node_type: str) -> Held | None:
        until_s = self._held_until_s.get(node_type, -math.inf)
        if until_s <= self._clock.now_s:
            return None
        return Held(
            "sold_out", f"is sold out, asked for again in {until_s - self._clock.now_s:.0f} s"
        )

    def _make(self, kind: NodeTypeSettings) -> Machine:
        self._made[kind.name] += 1
        is_owned = kind.market == "owned"
        boot = self._scenario.boot if is_owned else self._scenario.find_boot(self._tally.launches)
        machine = Machine(
            id=f"{kind.name}-{self._made[kind.name]:05d}",
            kind=kind,
            requested_s=self._clock.now_s,
            free={name: float(amount) for name, amount in kind.resources.items()},
            boot=boot,
        )
        self._machines.append(machine)
        self._fleet.machines[machine.id] = machine
        self._say(machine.id, kind.name, "asked")
        return machine

    def _is_sold_out(self, node_type: str) -> bool:
        now_s = self._clock.now_s
        return any(begin_s <= now_s < end_s for begin_s, end_s in self._sold_out.get(node_type, ()))

    def _launch(self, node_type: str) -> None:
        """Ask the site for a node; a type that is sold out isn't asked for again for a while."""
        if self._is_sold_out(node_type):
            self._held_until_s[node_type] = self._clock.now_s + _SOLD_OUT_S
            self._say("", node_type, "sold_out")
            return
        kind = next(k for k in self._settings.node_types.values() if k.name == node_type)
        machine = self._make(kind)
        self._tally.launches += not machine.is_owned
        boot = machine.boot
        stages = (boot.accepted_s, boot.running_s, boot.reachable_s, boot.joined_s)
        chance = build_random(self._seed, f"boot {machine.id}")
        total_s = sum(jitter(chance, stage_s, boot.spread) for stage_s in stages)
        self._clock.at(self._clock.now_s + total_s, self._join, machine)

    def _join(self, machine: Machine) -> None:
        if machine.ended_s is not None:
            return
        machine.joined_s = machine.idle_since_s = self._clock.now_s
        self._say(machine.id, machine.kind.name, "joined")
        spot = self._scenario.spot
        if machine.kind.market == "spot":
            life_s = draw_life_s(machine.id, spot, seed=self._seed)
            if life_s is not None:
                loss_s = self._clock.now_s + life_s
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
