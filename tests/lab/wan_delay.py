"""A line with a delay, in user space: the kernels we test on can't delay packets themselves.

Two network cards of our own (TUN): what the router sends into one comes out of the other, later.
As a program on the router: python tests/lab/wan_delay.py DELAY_S JITTER_S CARD CARD
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_PACKET_BYTES_MAX = 65536
_IDLE_S = 1.0


def open_card(name: str) -> int:
    """Return the file of a new network card; it is gone when the file is closed."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
    return card


def relay(one: int, other: int, *, delay_s: float, jitter_s: float, seed: int = 1) -> None:
    """Hand packets on between two cards for ever, each `delay_s` and up to `jitter_s` later.

    With jitter packets may overtake each other, as on a real line.
    """
    chance = random.Random(seed)
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    opposite = {one: other, other: one}
    while True:
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, _, target, packet = heapq.heappop(waiting)
            _send(target, packet)
        idle_s = max(waiting[0][0] - now_s, 0) if waiting else _IDLE_S
        ready, _, _ = select.select([one, other], [], [], idle_s)
        for card in ready:
            packet = os.read(card, _PACKET_BYTES_MAX)
            due_s = time.monotonic() + delay_s + chance.uniform(0, jitter_s)
            count += 1
            heapq.heappush(waiting, (due_s, count, opposite[card], packet))


def _send(card: int, packet: bytes) -> None:
    try:
        os.write(card, packet)
    except BlockingIOError:
        # A full card loses packets, as any does.
        return


def main(delay_s: str, jitter_s: str, one: str, other: str) -> None:
    """Open the cards, say so, and relay until ended."""
    cards = open_card(one), open_card(other)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    relay(*cards, delay_s=float(delay_s), jitter_s=float(jitter_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
