"""The ledger as one scrape of the metrics sees it. Opened to read only, and only when asked."""

import time
from collections.abc import Callable

from autoscaling.figures import LedgerView
from autoscaling.settings_reader import find_ledger
from cluster.budget import budget_status
from cluster.config import ClusterSettings
from cluster.ledger import Ledger
from cluster.ledger_boot import BootRecord
from cluster.limits import money_limits
from cluster.model import BootStage, NodeId, NodeRecord
from cluster.spend import day_window, month_window
from cluster.store_place import Place

_HISTORY_EVERY_S = 60.0
_BOOT_WRITTEN_LATE_S_MAX = 3600.0


class LedgerReader:
    """Reads one cluster's ledger. For one thread at a time.

    What grows with the cluster's age isn't read whole at each scrape: the nodes of the past once a
    minute, boot stages from the newest known on. 5,000 nodes take half a second on two busy cores.
    """

    def __init__(
        self,
        read_settings: Callable[[], ClusterSettings],
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._read_settings = read_settings
        self._now_s = now_s
        self._open: tuple[Place, Ledger] | None = None
        self._history: tuple[float, list[NodeRecord]] | None = None
        self._boots: dict[tuple[NodeId, BootStage], BootRecord] = {}

    def read(self) -> LedgerView:
        """Return what the ledger says now.

        Raises:
            StateError: there is none yet, or it can't be read.
        """
        settings = self._read_settings()
        ledger = self._ledger(find_ledger(settings))
        now_s = self._now_s()
        return LedgerView(
            budget=budget_status(ledger.spend_now(), money_limits(settings.limits)),
            open_nodes=ledger.list_open(),
            history=self._read_history(ledger, now_s),
            spend_usd={
                "day": ledger.spend_by_site(day_window(now_s).since_s, now_s),
                "month": ledger.spend_by_site(month_window(now_s).since_s, now_s),
            },
            sold_out=ledger.list_sold_out(),
            holds=ledger.list_holds(),
            listings=ledger.list_listings(),
            boots=self._read_boots(ledger, now_s),
            is_lease_held=ledger.lease().holder is not None,
        )

    def _read_history(self, ledger: Ledger, now_s: float) -> list[NodeRecord]:
        if self._history is None or not 0 <= now_s - self._history[0] < _HISTORY_EVERY_S:
            self._history = (now_s, ledger.list_all())
        return self._history[1]

    def _read_boots(self, ledger: Ledger, now_s: float) -> list[BootRecord]:
        # Not later than now: a clock that ran ahead for a while may have written of the future.
        newest_s = min(now_s, max((boot.at_s for boot in self._boots.values()), default=0.0))
        for boot in ledger.list_boot_records(since_s=newest_s - _BOOT_WRITTEN_LATE_S_MAX):
            self._boots[boot.node_id, boot.stage] = boot
        return list(self._boots.values())

    def _ledger(self, place: Place) -> Ledger:
        """Return the open ledger, another one if the cluster file names another place."""
        if self._open is not None and self._open[0] != place:
            self._open[1].close()
            self._open, self._history, self._boots = None, None, {}
        if self._open is None:
            self._open = (place, Ledger(place, now_s=self._now_s, reads_only=True))
        return self._open[1]
