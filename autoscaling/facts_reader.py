"""Reads the ledger and the notices for a tick of the scheduler: once, and never for long.

A ledger may be on another machine, and a tick must not wait for it: after `wait_s` the tick goes on
with what was read last, and says how old that is. The last check of every launch is in the ledger's
own transaction, so old facts can delay a launch or let one be refused later, and never overspend.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime

from autoscaling.facts import NodeFact, SiteFacts
from autoscaling.guard import Held
from autoscaling.settings_reader import find_ledger
from cluster.budget import BudgetStatus, budget_status
from cluster.config import ClusterSettings
from cluster.ledger import Ledger
from cluster.ledger_sites import Hold, Listing
from cluster.limits import money_limits
from cluster.model import NodePhase
from cluster.notices import Notice
from cluster.store_place import Place

_WAIT_S = 0.5
_CREDENTIALS = "CredentialsError"
# Facts younger than this need no remark: one slow read is nothing.
_OLD_S = 10.0


class FactsReader:
    """One cluster's facts. For one thread at a time."""

    def __init__(
        self,
        read_settings: Callable[[], ClusterSettings],
        list_notices: Callable[[], Sequence[Notice]],
        *,
        open_ledger: Callable[[Place], Ledger] = lambda place: Ledger(place, reads_only=True),
        now_s: Callable[[], float] = time.time,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._read_settings = read_settings
        self._list_notices = list_notices
        self._open_ledger = open_ledger
        self._now_s = now_s
        self._wait_s = wait_s
        self._ledger: Ledger | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="facts")
        self._pending: Future[SiteFacts] | None = None
        self._last = SiteFacts()
        self._last_s: float | None = None
        self._error: str | None = None

    def read(self) -> SiteFacts:
        """Return the facts as of now, or the last ones with a warning; never raises."""
        if self._pending is None:
            self._pending = self._thread.submit(self._collect, self._read_settings())
        done, _ = wait([self._pending], timeout=self._wait_s)
        if done:
            self._take(self._pending)
            self._pending = None
        noticed = frozenset(notice.node for notice in self._list_notices())
        facts = replace(self._last, read_s=self._now_s(), noticed=noticed)
        doubt = self._find_doubt(facts.read_s)
        return facts if doubt is None else replace(facts, warnings=(doubt, *facts.warnings))

    def _take(self, done: "Future[SiteFacts]") -> None:
        error = done.exception()
        if error is None:
            self._last, self._last_s, self._error = done.result(), self._now_s(), None
        else:
            self._error = str(error)

    def _find_doubt(self, now_s: float) -> str | None:
        if self._error is None and self._pending is None:
            return None
        why = self._error or "no answer yet"
        if self._last_s is None:
            return f"the ledger hasn't been read yet: {why}"
        age_s = now_s - self._last_s
        if age_s < _OLD_S:
            return None
        return f"the ledger was last read {age_s:.0f} s ago: {why}"

    def _collect(self, settings: ClusterSettings) -> SiteFacts:
        """Read the ledger; runs in the reader's thread."""
        if self._ledger is None:
            self._ledger = self._open_ledger(find_ledger(settings))
        nodes = {
            str(record.node_id): NodeFact(
                record.intended_s if record.launched_s is None else record.launched_s,
                record.cordon,
            )
            for record in self._ledger.list_open()
            if record.phase is not NodePhase.CLOSED
        }
        budget = budget_status(self._ledger.spend_now(), money_limits(settings.limits))
        holds = list_held(settings, self._ledger.list_holds(), self._ledger.list_listings())
        return SiteFacts(holds=holds, nodes=nodes, budget=budget, warnings=list_warnings(budget))


def list_held(
    settings: ClusterSettings, holds: Sequence[Hold], listings: Sequence[Listing]
) -> dict[str, Held]:
    """Return why types aren't asked for, by type: sold out, or a site that doesn't know us."""
    held: dict[str, Held] = {
        hold.node_type: Held(
            "sold_out", f"is sold out until {_say_time(hold.until_s)} UTC: {hold.why}"
        )
        for hold in holds
    }
    refused = {one.site: one.error for one in listings if one.error_kind == _CREDENTIALS}
    for name, node_type in settings.node_types.items():
        if node_type.site in refused:
            why = f"waits for new credentials of site {node_type.site}: {refused[node_type.site]}"
            held[name] = Held("credentials", why)
    return held


def list_warnings(budget: BudgetStatus) -> tuple[str, ...]:
    """Return what to say of money limits that are nearly reached, or reached."""
    words = {"soft": "nearly reached", "hard": "reached"}
    return tuple(
        f"{use.limit} is {words[use.level]}: {use.reason}"
        for use in budget.uses
        if use.level in words
    )


def _say_time(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%H:%M:%S")
