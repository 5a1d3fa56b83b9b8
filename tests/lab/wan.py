"""Faults of the line between two sites: cut, one way or both; loss; a low rate; delay.

Packets between hosts of one site don't pass the router and are never touched.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.lab import Lab, LabSite
from tests.lab.namespaces import kill_entered

if TYPE_CHECKING:
    import subprocess

_CARDS = ("wan0", "wan1")
_RELAY = Path(__file__).with_name("wan_delay.py")
_RELAY_S_MAX = 20
_TABLES = 100
_TABLE = "inet wan"


class Wan:
    """The lines between the lab's sites. Each setting holds until `heal`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._relay: subprocess.Popen[str] | None = None
        self._nft(
            f"add table {_TABLE}\n"
            f"add chain {_TABLE} forward {{ type filter hook forward priority 0; }}\n"
        )

    def cut(self, source: LabSite, target: LabSite) -> None:
        """Drop what goes from one site to another; the other way stays as it is."""
        self._nft(f"add rule {_TABLE} forward {_match(source, target)} drop\n")

    def cut_both_ways(self, one: LabSite, other: LabSite) -> None:
        """Drop everything between two sites."""
        self.cut(one, other)
        self.cut(other, one)

    def lose(self, source: LabSite, target: LabSite, *, percent: int) -> None:
        """Drop every packet with this probability."""
        match = _match(source, target)
        self._nft(f"add rule {_TABLE} forward {match} numgen random mod 100 < {percent} drop\n")

    def limit_rate(self, target: LabSite, *, mbit_per_s: float) -> None:
        """Let in at most this much into a site, whatever it comes from outside it."""
        self._lab.run(
            [
                *("tc", "qdisc", "replace", "dev", f"br-{target.name}", "root", "tbf"),
                *("rate", f"{mbit_per_s}mbit", "burst", "32kbit", "latency", "50ms"),
            ]
        )

    def delay(self, one: LabSite, other: LabSite, *, delay_s: float, jitter_s: float = 0.0) -> None:
        """Hold every packet between two sites up, both ways: the round trip takes twice as long.

        Connections lose what is on its way when the delay changes.
        """
        self._end_delay()
        words = [str(delay_s), str(jitter_s), *_CARDS]
        self._relay = self._lab.start([sys.executable, str(_RELAY), *words])
        deadline_s = time.monotonic() + _RELAY_S_MAX
        while not set(_CARDS) <= set(self._list_cards()):
            assert time.monotonic() < deadline_s, "the relay must open its cards"
            time.sleep(0.02)
        for number, (source, target, card) in enumerate(
            ((one, other, _CARDS[0]), (other, one, _CARDS[1])), start=_TABLES
        ):
            self._ip(f"link set {card} up")
            self._ip(f"route replace default dev {card} table {number}")
            self._ip(
                f"rule add iif br-{source.name} to {target.network} lookup {number} pref {number}"
            )

    def heal(self) -> None:
        """Undo every fault. Idempotent."""
        self._end_delay()
        self._nft(f"flush chain {_TABLE} forward\n")
        for name in self._lab.sites:
            if "tbf" in self._lab.run(["tc", "qdisc", "show", "dev", f"br-{name}"]):
                self._lab.run(["tc", "qdisc", "delete", "dev", f"br-{name}", "root"])

    def _end_delay(self) -> None:
        """Let packets pass the router directly again."""
        if self._relay is None:
            return
        for number in (_TABLES, _TABLES + 1):
            self._ip(f"rule delete pref {number}")
        kill_entered(self._relay)
        self._relay = None
        deadline_s = time.monotonic() + _RELAY_S_MAX
        while set(_CARDS) & set(self._list_cards()):
            assert time.monotonic() < deadline_s, "the relay's cards must be gone"
            time.sleep(0.02)

    def _list_cards(self) -> list[str]:
        return [line.split()[0] for line in self._ip("-brief link").splitlines()]

    def _ip(self, words: str) -> str:
        return self._lab.run(["ip", *words.split()])

    def _nft(self, commands: str) -> None:
        self._lab.run(["nft", "-f", "-"], text=commands)


def _match(source: LabSite, target: LabSite) -> str:
    # A delayed packet passes the router twice; only the first time counts.
    return f"iifname br-{source.name} ip saddr {source.network} ip daddr {target.network}"
