"""Waiting for something to become true, with a limit, and a message that says what it was."""

import logging
import time
from collections.abc import Callable

_log = logging.getLogger("lab")
_POLL_S = 0.3


def wait_until(
    is_true: Callable[[], object], what: str, *, timeout_s: float, now: Callable[[], object] = str
) -> float:
    """Return after how many seconds it was true. `now` shows what is instead, on failure."""
    began_s = time.monotonic()
    while not is_true():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, f"{what}: not within {timeout_s:g} s; now {now()}"
        time.sleep(_POLL_S)
    took_s = time.monotonic() - began_s
    _log.info("%s: after %.1f s", what, took_s)
    return took_s
