"""What is done about one site: orders carried out, and the ledger brought in line with reality.

Every step is one call that never raises: a site's failure is noted, and the next look tries again.
`SiteThread` makes the calls; simulations make them in simulated time. What is learned goes into
the ledger, which is where all questions are answered from.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.backends.contract import NodeBackend
from cluster.errors import (
    BackendError,
    CredentialsError,
    NoCapacityError,
    NotLeaderError,
    TidegateError,
)
from cluster.ledger import Ledger
from cluster.model import LaunchSpec, NodeId, NodePhase, SiteName, SoldOut
from cluster.site_reconcile import Clock, Conduct, Reconciler

logger = logging.getLogger(__name__)

_CREDENTIALS_HOLD_S = 60.0

# These say that nothing was started, so there is nothing to end.
_NOTHING_STARTED = (NoCapacityError, CredentialsError, NotLeaderError)


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the node of an intent."""

    spec: LaunchSpec


@dataclass(frozen=True, slots=True)
class Terminate:
    """End nodes."""

    node_ids: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class SetTags:
    """Write tags of a node to its site; sent with the next look, several at once."""

    node_id: NodeId
    tags: Mapping[str, str]


Task = Launch | Terminate | SetTags


class SiteWorker:
    """Carries out orders for one site and looks at it. For one thread."""

    def __init__(
        self,
        site: SiteName,
        *,
        backend: NodeBackend,
        ledger: Ledger,
        reconciler: Reconciler,
        conduct: Conduct,
        clock: Clock | None = None,
    ) -> None:
        self.site = site
        self.backend = backend
        self._ledger = ledger
        self._reconciler = reconciler
        self._conduct = conduct
        self._clock = clock or Clock()
        # Launches that failed and whose intent is still open, each with its error.
        self._failed: dict[NodeId, Exception] = {}
        self._unsent_tags: dict[NodeId, dict[str, str]] = {}
        self._sold_out: Sequence[SoldOut] | None = None
        self._is_recalled = False
        # The error that the last call at the site met, None once it answers.
        self.error: Exception | None = None

    @property
    def has_unsent_tags(self) -> bool:
        """Return whether tags still wait for their site."""
        return bool(self._unsent_tags)

    @property
    def silent(self) -> frozenset[NodeId]:
        """Return the nodes that the site couldn't ask the last time."""
        return self._reconciler.silent

    @property
    def doubtful(self) -> frozenset[NodeId]:
        """Return the nodes that the last listing lacked, and that the next decides about."""
        return self._reconciler.doubtful

    def perform(self, task: Task) -> None:
        """Carry out one order."""
        if isinstance(task, Launch):
            self._guarded(partial(self._launch, task.spec))
        elif isinstance(task, Terminate):
            self._guarded(partial(self._terminate, task.node_ids))
        else:
            self._note_tags(task)

    def look(self) -> bool:
        """Compare the ledger with the site; returns whether the site could be asked."""
        if not self._conduct.may_act():
            return False
        self._guarded(self._recall_sold_out)
        for node_id, error in list(self._failed.items()):
            self._guarded(partial(self._settle_failed_launch, node_id, error))
        self.send_tags()
        is_done = self._guarded(self._reconcile)
        self._guarded(self._write_sold_out)
        return is_done

    def send_tags(self) -> None:
        """Write the tags that wait to their site."""
        for node_id in list(self._unsent_tags):
            self._guarded(partial(self._send_tags, node_id))

    # --- orders

    def _launch(self, spec: LaunchSpec) -> None:
        try:
            if self._ledger.get(spec.node_id).phase is not NodePhase.INTENDED:
                return
            self._check_may_launch()
            self.backend.launch(spec)
        except Exception as exc:
            # Whatever failed, nobody else closes this intent: its owner is alive.
            self._failed[spec.node_id] = exc
            self._guarded(partial(self._hold_type, spec, exc))
            self._guarded(partial(self._settle_failed_launch, spec.node_id, exc))
            raise
        self._ledger.mark_launched(spec.node_id)

    def _check_may_launch(self) -> None:
        if not self._conduct.may_act():
            raise NotLeaderError(f"site {self.site} must be left to the autoscaler that leads.")
        if isinstance(self.error, CredentialsError):
            raise self.error

    def _hold_type(self, spec: LaunchSpec, error: Exception) -> None:
        """Keep the scheduler from asking for more of what the site can't give now."""
        if isinstance(error, NoCapacityError):
            retry_s = error.retry_s
        elif isinstance(error, CredentialsError):
            retry_s = _CREDENTIALS_HOLD_S
        else:
            return
        until_s = self._clock.wall_s() + retry_s
        self._ledger.hold_type(self.site, spec.node_type, until_s, str(error))

    def _settle_failed_launch(self, node_id: NodeId, error: Exception) -> None:
        """End what a failed launch may have left, or close its intent if nothing was started.

        Whether the site started something is unknown, so it is ended: that is idempotent. If that
        fails too, or the ledger can't be written, the next look begins with another try.
        """
        phase = self._ledger.get(node_id).phase
        if phase is NodePhase.INTENDED and isinstance(error, _NOTHING_STARTED):
            prefix = "no capacity" if isinstance(error, NoCapacityError) else "launch failed"
            self._ledger.mark_closed(node_id, why=f"{prefix}: {error}", never_ran=True)
        elif phase in {NodePhase.INTENDED, NodePhase.TERMINATING}:
            self._ledger.mark_terminating(node_id, owner=self._conduct.owner)
            self._reconciler.reasons[node_id] = f"launch failed: {error}"
            self.backend.terminate([node_id])
            self._reconciler.note_ended([node_id])
        del self._failed[node_id]

    def _terminate(self, node_ids: Sequence[NodeId]) -> None:
        if not self._conduct.may_act():
            raise NotLeaderError(f"site {self.site} must be left to the autoscaler that leads.")
        if node_ids:
            self.backend.terminate(node_ids)
            self._reconciler.note_ended(node_ids)

    def _note_tags(self, task: SetTags) -> None:
        for memory in (self._unsent_tags, self._reconciler.own_tags):
            held = memory.get(task.node_id, {})
            memory[task.node_id] = {**held, **task.tags}

    def _send_tags(self, node_id: NodeId) -> None:
        tags = self._unsent_tags[node_id]
        self.backend.set_tags(node_id, tags)
        del self._unsent_tags[node_id]

    # --- looks

    def _reconcile(self) -> None:
        """Bring the ledger in line with what the site has, and end what should be gone."""
        looked_s = self._clock.wall_s()
        try:
            instances = self.backend.list_instances()
        except Exception as exc:
            self._ledger.note_listing(self.site, self._clock.wall_s(), exc)
            raise
        self._ledger.note_listing(self.site, looked_s, None)
        self._note_answer()
        orders = self._reconciler.take_in(
            instances, looked_s=looked_s, settle_s=self.backend.settle_s
        )
        self._terminate([*orders.to_end, *orders.to_close])
        for node_id in orders.to_close:
            self._reconciler.close_never_launched(node_id)

    def _recall_sold_out(self) -> None:
        if not self._is_recalled:
            known = tuple(one for one in self._ledger.list_sold_out() if one.site == self.site)
            self.backend.recall_sold_out(known)
            self._sold_out, self._is_recalled = known, True

    def _write_sold_out(self) -> None:
        rows = tuple(self.backend.sold_out)
        if self._is_recalled and rows != self._sold_out:
            self._ledger.replace_sold_out(self.site, rows)
            self._sold_out = rows

    # --- failures

    def _guarded(self, step: Callable[[], None]) -> bool:
        """Do one step; returns whether it succeeded. A failure is noted and tried again later."""
        try:
            step()
        except TidegateError as exc:
            self._note_failure(exc)
        except Exception:
            # Work goes on whatever happens: without it, the site's nodes would run unwatched.
            logger.exception("site %s: unexpected failure", self.site)
        else:
            return True
        return False

    def _note_failure(self, error: TidegateError) -> None:
        """Log a failure once, however often it repeats."""
        is_repeated = (type(error), str(error)) == (type(self.error), str(self.error))
        if not is_repeated:
            logger.warning("site %s: %s", self.site, error)
        if isinstance(error, BackendError) and not isinstance(error, NoCapacityError):
            self.error = error

    def _note_answer(self) -> None:
        """Note that the site answers; what waited for its credentials may go on."""
        if self.error is None:
            return
        logger.info("site %s: answers again", self.site)
        if isinstance(self.error, CredentialsError):
            for hold in self._ledger.list_holds():
                if hold.site == self.site and hold.why == str(self.error):
                    self._ledger.lift_hold(hold.site, hold.node_type)
        self.error = None
