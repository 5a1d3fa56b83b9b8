"""What was last heard from each host of a site, kept in a file, and which hosts are left alone.

The file holds the way to each host too: a host that was taken out of the cluster file while it was
a node is still reached until it has gone home.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from cluster.backend_settings import SshAccess
from cluster.backends.ssh_host import Claim, HostState
from cluster.model import Cordon, NodeId
from cluster.private_file import write_private

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A host and what it said last. `state` None = it never said anything.

    `as_of_s` (monotonic) is since when that is surely so: the start of a question, the end of a
    change.
    """

    name: str
    address: str
    access: SshAccess
    state: HostState | None = None
    as_of_s: float = 0.0

    @property
    def claim(self) -> Claim | None:
        """Return its claim as last heard."""
        return self.state.claim if self.state else None


class HostMemory:
    """What was last heard from the hosts. Not thread-safe: its owner locks."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hosts: dict[str, KnownHost] = {}
        self._written = ""
        self._load()

    def list_hosts(self) -> list[KnownHost]:
        """Return the hosts heard from, in the order of their names."""
        return [self._hosts[name] for name in sorted(self._hosts)]

    def get(self, name: str) -> KnownHost | None:
        """Return what is known of a host."""
        return self._hosts.get(name)

    def find_node(self, node_id: NodeId) -> list[KnownHost]:
        """Return the hosts whose claim names the node."""
        return [one for one in self.list_hosts() if one.claim and one.claim.spec.node_id == node_id]

    def update(self, heard: Iterable[KnownHost], *, forget: Iterable[str] = ()) -> None:
        """Take in what hosts said, and write it down if it is news. What is older is ignored."""
        for host in heard:
            before = self._hosts.get(host.name)
            if before is None or before.as_of_s <= host.as_of_s:
                self._hosts[host.name] = host
        for name in forget:
            self._hosts.pop(name, None)
        text = json.dumps({name: _to_content(one) for name, one in sorted(self._hosts.items())})
        if text != self._written:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self._file, text)
            self._written = text

    def _load(self) -> None:
        try:
            self._written = self._file.read_text(encoding="utf-8")
            content = json.loads(self._written)
            self._hosts = {name: _from_content(name, one) for name, one in content.items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as exc:
            # The hosts say the same again; only hosts that are silent just now are missed.
            logger.warning("%s must hold what hosts said; got %s. Asking anew.", self._file, exc)


@dataclass(frozen=True, slots=True)
class _Pause:
    """Why a host is left alone, and until when (monotonic)."""

    why: str
    failures: int
    until_s: float


class Pauses:
    """Which failing hosts are left alone, for longer each time. Not thread-safe."""

    def __init__(
        self,
        *,
        first_s: float,
        max_s: float,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._now_s = now_s
        self._draw = draw
        self._pauses: dict[str, _Pause] = {}

    def note_failure(self, name: str, why: str) -> None:
        """Leave a host alone: twice as long as the last time, less up to a quarter by lot."""
        failures = self._pauses[name].failures + 1 if name in self._pauses else 1
        full_s = min(self._max_s, self._first_s * 2.0 ** min(failures - 1, 30))
        pause_s = full_s * (1 - self._draw() / 4)
        self._pauses[name] = _Pause(why, failures, self._now_s() + pause_s)

    def note_success(self, name: str) -> None:
        """Forget a host's failures."""
        self._pauses.pop(name, None)

    def left_s(self, name: str) -> float:
        """Return for how many more seconds a host is left alone."""
        pause = self._pauses.get(name)
        return max(0.0, pause.until_s - self._now_s()) if pause else 0.0

    def explain(self, name: str) -> str:
        """Return why a host is or was left alone, nothing if it wasn't."""
        pause = self._pauses.get(name)
        return pause.why if pause else ""


def _to_content(host: KnownHost) -> Mapping[str, object]:
    state = host.state or HostState()
    return {
        "address": host.address,
        "access": host.access.model_dump(),
        "claim": state.claim.to_json() if state.claim else None,
        "cordon": state.cordon,
        "has_raylet": state.has_raylet,
        "lost_raylet": state.lost_raylet,
    }


def _from_content(name: str, content: Mapping[str, object]) -> KnownHost:
    claim, cordon = content["claim"], content["cordon"]
    state = HostState(
        claim=None if claim is None else Claim.from_json(str(claim)),
        cordon=None if cordon is None else Cordon(str(cordon)),
        has_raylet=bool(content["has_raylet"]),
        lost_raylet=bool(content["lost_raylet"]),
    )
    access = SshAccess.model_validate(content["access"])
    return replace(KnownHost(name, str(content["address"]), access), state=state)
