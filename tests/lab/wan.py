"""Faults of the line between two sites: cut, one way or both; loss; a low rate.

Packets between hosts of one site don't pass the router and are never touched.
"""

from tests.lab.lab import Lab, LabSite

_TABLE = "inet wan"


class Wan:
    """The lines between the lab's sites. Each setting holds until `heal`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
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

    def heal(self) -> None:
        """Undo every fault. Idempotent."""
        self._nft(f"flush chain {_TABLE} forward\n")
        for name in self._lab.sites:
            if "tbf" in self._lab.run(["tc", "qdisc", "show", "dev", f"br-{name}"]):
                self._lab.run(["tc", "qdisc", "delete", "dev", f"br-{name}", "root"])

    def _nft(self, commands: str) -> None:
        self._lab.run(["nft", "-f", "-"], text=commands)


def _match(source: LabSite, target: LabSite) -> str:
    return f"ip saddr {source.network} ip daddr {target.network}"
