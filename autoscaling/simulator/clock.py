"""Virtual time: what is due happens in order, and the clock shows when."""

import heapq
from collections.abc import Callable
from typing import Any

EPOCH_S = 1_700_006_400.0
"""Wall time at the start of each simulation: midnight UTC, so that days and months have edges."""


class Clock:
    """Events by time; those of the same time in the order they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, at_s: float, act: Callable[..., None], *args: Any) -> None:
        """Call `act` at `at_s`; a time that has passed means now."""
        self._asked += 1
        heapq.heappush(self._events, (max(at_s, self.now_s), self._asked, act, args))

    def next_s(self) -> float | None:
        """When the next event is due; None = there is none."""
        return self._events[0][0] if self._events else None

    def step(self) -> None:
        """Let the next event happen."""
        self.now_s, _, act, args = heapq.heappop(self._events)
        act(*args)
