"""Who may act: one autoscaler at a time holds the lease, all others wait and only read.

    waiting ──lease is free, or its holder was silent for ttl_s──▶ holding under a new token
       ▲                                                              │
       └── renew raises NotLeaderError: another holds it ◀────────────┘

No two clocks are compared. A waiting process measures the holder's silence on its own monotonic
clock, from when it first saw the lease as it is. A holder that was stopped meanwhile (SIGSTOP, a
frozen machine) may still believe in its lease when it wakes; so the token goes along with whatever
it wants done, and the ledger refuses a token that isn't the present one in the same transaction.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from cluster.errors import NotLeaderError
from cluster.ledger_leases import Leases, LeaseState

TTL_S = 15.0


def _never_ended(_holder: str) -> bool:
    return False


class Lease:
    """One process's hold on the lease, or its place in the queue. Not thread-safe.

    `has_ended` says of a holder whether it is known to be gone; then nobody waits out its silence.
    """

    def __init__(
        self,
        ledger: Leases,
        holder: str,
        *,
        ttl_s: float = TTL_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        has_ended: Callable[[str], bool] = _never_ended,
    ) -> None:
        self._ledger = ledger
        self._holder = holder
        self._ttl_s = ttl_s
        self._monotonic_s = monotonic_s
        self._has_ended = has_ended
        self._held: LeaseState | None = None
        self._renewed_s = 0.0
        self._seen: LeaseState | None = None
        self._seen_s = 0.0

    @property
    def token(self) -> int | None:
        """Return the token to act under, None without a lease or once it wasn't renewed in time."""
        if self._held is None or self._monotonic_s() - self._renewed_s >= self._ttl_s:
            return None
        return self._held.token

    def try_acquire(self) -> int | None:
        """Take or renew the lease; return its token, None while another holds it.

        To be called again at least every third of `ttl_s`; never waits.

        Raises:
            StateError: the ledger can't be used; nothing is known about the lease.
        """
        if self._held is not None:
            with suppress(NotLeaderError):
                self.renew()
            return None if self._held is None else self._held.token
        now_s = self._monotonic_s()
        state = self._ledger.lease()
        if state != self._seen:
            self._seen, self._seen_s = state, now_s
        if not self._is_up_for_taking(state, silent_s=now_s - self._seen_s):
            return None
        self._held = self._ledger.take_lease(self._holder, seen=state)
        self._renewed_s = now_s
        return None if self._held is None else self._held.token

    def renew(self) -> None:
        """Show that this process lives. To be called at least every third of `ttl_s`.

        Raises:
            NotLeaderError: another holds the lease, or this one never did: only read from now on.
            StateError: the ledger can't be used; the lease runs out unless a later call succeeds.
        """
        # Taken before the call: the ledger may note the renewal any time after this.
        asked_s = self._monotonic_s()
        renewed = None if self._held is None else self._ledger.renew_lease(self._held)
        self._held = renewed
        if renewed is None:
            holder = self._ledger.lease().holder or "nobody"
            raise NotLeaderError(
                f"{self._holder} must hold the lease to act; got: held by {holder}. "
                "It only watches until the lease is free or its holder falls silent."
            )
        self._renewed_s = asked_s

    def release(self) -> None:
        """Give the lease back, so that the next in the queue needn't wait. Idempotent."""
        if self._held is not None:
            self._ledger.free_lease(self._held)
            self._held = None

    def _is_up_for_taking(self, state: LeaseState, *, silent_s: float) -> bool:
        if state.holder is None or silent_s >= self._ttl_s:
            return True
        return self._has_ended(state.holder)
