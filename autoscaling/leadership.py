"""Only one autoscaler acts: this process waits for the lease, keeps it, and ends when it is lost.

    waiting (reads only, says so) ──lease──▶ acting ──lease lost──▶ process ends at once

Ending is the safest way to stop acting: no thread is forgotten, and the supervisor starts a new
process, which waits. What this process had already asked for is refused by the ledger, because its
token is no longer the present one.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from cluster.errors import NotLeaderError, StateError
from cluster.lease import TTL_S, Lease

_log = logging.getLogger(__name__)

_RENEW_PARTS = 5


def wait_for_lease(
    lease: Lease,
    *,
    say_waiting: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
    ttl_s: float = TTL_S,
) -> int:
    """Return the lease's token once this process holds it; tell `say_waiting` at every try."""
    is_said = False
    while True:
        try:
            token = lease.try_acquire()
        except StateError as exc:
            _log.warning("the lease can't be read, to be tried again: %s", exc)
            token = None
        if token is not None:
            _log.info("this autoscaler holds the lease, token %d: it acts", token)
            return token
        if not is_said:
            is_said = True
            _log.warning("another autoscaler holds the lease: this one waits and only reads")
        say_waiting()
        sleep(ttl_s / _RENEW_PARTS)


def keep_lease(
    lease: Lease,
    *,
    on_lost: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    ttl_s: float = TTL_S,
) -> None:
    """Renew the lease until it is lost; then tell `on_lost` why and return."""
    while True:
        try:
            lease.renew()
        except NotLeaderError as exc:
            on_lost(str(exc))
            return
        except StateError as exc:
            _log.warning("the lease can't be renewed, to be tried again: %s", exc)
            if lease.token is None:
                on_lost(f"it wasn't renewed for {ttl_s:g} s: {exc}")
                return
        sleep(ttl_s / _RENEW_PARTS)


def keep_in_background(lease: Lease) -> None:
    """Keep the lease from a thread; the process ends at once when it is lost."""
    threading.Thread(
        target=keep_lease,
        args=(lease,),
        kwargs={"on_lost": _end_process},
        name="lease",
        daemon=True,
    ).start()


def _end_process(why: str) -> None:
    _log.critical("this autoscaler is no longer the one that acts, it ends: %s", why)
    logging.shutdown()
    os._exit(1)
