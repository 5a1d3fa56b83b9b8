"""The ledger as one scrape of the metrics sees it. Opened to read only, and only when asked."""

import time
from collections.abc import Callable
from pathlib import Path

from autoscaling.figures import LedgerView
from cluster.budget import budget_status
from cluster.config import ClusterSettings
from cluster.ledger import Ledger
from cluster.limits import money_limits
from cluster.spend import day_window, month_window


class LedgerReader:
    """Reads one cluster's ledger. For one thread at a time."""

    def __init__(
        self,
        read_settings: Callable[[], ClusterSettings],
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._read_settings = read_settings
        self._now_s = now_s
        self._open: tuple[Path, Ledger] | None = None

    def read(self) -> LedgerView:
        """Return what the ledger says now.

        Raises:
            StateError: there is none yet, or it can't be read.
        """
        settings = self._read_settings()
        ledger = self._ledger(settings.state_dir / settings.cluster_name / "ledger.db")
        now_s = self._now_s()
        return LedgerView(
            budget=budget_status(ledger.spend_now(), money_limits(settings.limits)),
            nodes=ledger.list_all(),
            spend_usd={
                "day": ledger.spend_by_site(day_window(now_s).since_s, now_s),
                "month": ledger.spend_by_site(month_window(now_s).since_s, now_s),
            },
            sold_out=ledger.list_sold_out(),
            holds=ledger.list_holds(),
            listings=ledger.list_listings(),
            boots=ledger.list_boot_records(),
            is_lease_held=ledger.lease().holder is not None,
        )

    def _ledger(self, file: Path) -> Ledger:
        """Return the open ledger, another one if the cluster file names another folder."""
        if self._open is not None and self._open[0] != file:
            self._open[1].close()
            self._open = None
        if self._open is None:
            self._open = (file, Ledger(file, now_s=self._now_s, reads_only=True))
        return self._open[1]
