"""What the parts of the ledger share: the store and the clock."""

from collections.abc import Callable

from cluster.store import Store


class LedgerPart:
    """One subject of the ledger. `cluster.ledger.Ledger` joins all parts into one door."""

    def __init__(self, store: Store, now_s: Callable[[], float]) -> None:
        self._store = store
        self._now_s = now_s
