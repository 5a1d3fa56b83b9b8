"""A site in simulated time that misbehaves as real ones do, chosen by a seed.

Truth is here: which instances were ever started, for which node, from when until when. Several
backends, one for each process that talks to the site, share it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.backends.contract import CommandRunner
from cluster.errors import BackendError, NoCapacityError
from cluster.model import (
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    SoldOut,
    merge_tags,
)

BOOT_S = 15.0
SETTLE_S = 30.0
_TIMEOUT_S = 40.0

LAUNCH_FAULTS = ("throttled", "sold_out", "lost", "duplicate", "timeout", "timeout_lost")
END_FAULTS = ("throttled", "lost", "partial", "timeout")
LIST_FAULTS = ("throttled", "timeout", "late")
CRASHES = ("crash_before", "crash_after")


class Crash(BaseException):
    """The process that made the call ends here. No handler of the code under test may see it."""


@dataclass(slots=True)
class Started:
    """One instance that was ever started. Times are true ones, not what a clock shows."""

    spec: LaunchSpec
    launched_s: float
    visible_s: float
    is_stranger: bool = False
    ended_s: float | None = None
    hidden_s: float | None = None

    @property
    def is_live(self) -> bool:
        return self.ended_s is None


@dataclass
class SimulatedSite:
    """What is true at the site. `faults` are those of this schedule; `advance` lets time pass."""

    rng: random.Random
    now_s: Callable[[], float]
    wall_s: Callable[[], float]
    advance: Callable[[float], None]
    faults: frozenset[str] = frozenset()
    fault_ratio: float = 0.0
    honours_tokens: bool = True
    started: list[Started] = field(default_factory=list)

    def live(self) -> list[Started]:
        return [one for one in self.started if one.is_live]

    def start(self, spec: LaunchSpec, *, is_stranger: bool = False) -> None:
        """Start an instance, once for each token."""
        if self.honours_tokens and any(one.spec.node_id == spec.node_id for one in self.started):
            return
        lag_s = self.rng.uniform(0, SETTLE_S / 2) if "late" in self.faults else 0.0
        now_s = self.now_s()
        self.started.append(Started(spec, now_s, now_s + lag_s, is_stranger=is_stranger))

    def end(self, node_id: NodeId) -> None:
        """End what EC2 would find by its tags: what it doesn't list yet, it doesn't find."""
        for one in self.live():
            if one.spec.node_id == node_id and one.visible_s <= self.now_s():
                lag_s = self.rng.uniform(0, SETTLE_S / 2) if "late" in self.faults else 0.0
                one.ended_s, one.hidden_s = self.now_s(), self.now_s() + lag_s

    def lose_one(self) -> None:
        """Take an instance away, as a spot interruption does."""
        live = self.live()
        if live:
            lost = self.rng.choice(live)
            lost.ended_s = lost.hidden_s = self.now_s()

    def listing(self) -> list[Instance]:
        now_s = self.now_s()
        off_s = self.wall_s() - now_s
        return [
            Instance(
                one.spec,
                InstanceState.RUNNING
                if now_s - one.launched_s >= BOOT_S
                else InstanceState.BOOTING,
                address="192.0.2.1" if now_s - one.launched_s >= BOOT_S else None,
                launched_s=one.launched_s + off_s,
            )
            for one in self.started
            if one.visible_s <= now_s and (one.hidden_s is None or one.hidden_s > now_s)
        ]

    def draw(self, kinds: Sequence[str]) -> str | None:
        """Return the fault that meets a call, None for none."""
        possible = [kind for kind in kinds if kind in self.faults]
        if not possible or self.rng.random() >= self.fault_ratio:
            return None
        return self.rng.choice(possible)


class SimulatedBackend:
    """One process's way to the site."""

    settle_s = SETTLE_S
    sold_out: Sequence[SoldOut] = ()

    def __init__(self, site: SimulatedSite) -> None:
        self._site = site

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Do nothing: what is sold out is drawn anew."""

    def launch(self, spec: LaunchSpec) -> None:
        fault = self._enter(LAUNCH_FAULTS)
        if fault == "sold_out":
            raise NoCapacityError("none left", retry_s=20)
        if fault in {"throttled", "timeout"}:
            raise BackendError(fault)
        self._site.start(spec)
        if fault == "duplicate":
            self._site.start(spec)
        self._leave(fault)

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        fault = self._enter(END_FAULTS)
        if fault in {"throttled", "timeout"}:
            raise BackendError(fault)
        for node_id in node_ids[: 1 if fault == "partial" else None]:
            self._site.end(node_id)
        self._leave(fault)

    def list_instances(self) -> list[Instance]:
        fault = self._enter(LIST_FAULTS)
        if fault in {"throttled", "timeout"}:
            raise BackendError(fault)
        listing = self._site.listing()
        self._leave(fault)
        return listing

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        for one in self._site.live():
            if one.spec.node_id == node_id:
                one.spec = replace(one.spec, tags=merge_tags(one.spec.tags, tags))

    def open_command_runner(self, node_id: NodeId) -> CommandRunner:
        raise NotImplementedError(f"{node_id} runs no commands here")

    def _enter(self, kinds: Sequence[str]) -> str | None:
        fault = self._site.draw((*kinds, *CRASHES))
        if fault == "crash_before":
            raise Crash
        if fault is not None and fault.startswith("timeout"):
            self._site.advance(_TIMEOUT_S)
        return fault

    def _leave(self, fault: str | None) -> None:
        if fault == "crash_after":
            raise Crash
        if fault in {"lost", "timeout_lost", "partial"}:
            raise BackendError(f"{fault}: no answer came")
