"""The gateway's queue in simulated time: production decides who waits and where each goes.

`admission.plan_assignments`, `admission.choose_refused`, `routing` below them and
`residency.grant_permit` are called as `deployments.model_queue` calls them; what is simulated is
only the taking and giving back of slots.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from autoscaling.simulator.clock import Clock
from autoscaling.simulator.engine_model import Work
from autoscaling.simulator.tally import Tally
from autoscaling.simulator.traffic import TraceRequest
from deployments.admission import QueueLimits, Ticket, choose_refused, plan_assignments
from deployments.residency import Clearance, DataClass, grant_permit
from deployments.routing import ReplicaLoad

_CLEARANCES = {
    is_restricted: Clearance(
        request_id="simulated",
        data_class=DataClass.RESTRICTED if is_restricted else DataClass.INTERNAL,
        may_burst=True,
        body_sha256="",
    )
    for is_restricted in (False, True)
}


@dataclass(slots=True, eq=False)
class Live:
    """One request between its arrival and its end."""

    request: TraceRequest
    ticket: Ticket
    work: Work
    submitted_s: float = 0.0
    first_s: float | None = None


class Gateway:
    """One gateway with one model's queue. `submit` hands a request to a replica's engine."""

    def __init__(
        self, clock: Clock, limits: QueueLimits, tally: Tally, submit: Callable[[str, Live], None]
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._tally = tally
        self._submit = submit
        self._waiting: dict[int, Live] = {}
        # The tickets of those waiting, kept beside them: decisions read these at every turn.
        self._tickets: dict[int, Ticket] = {}
        self._loads: dict[str, ReplicaLoad] = {}
        self._closing: frozenset[str] = frozenset()
        self._is_dispatching = False
        self._is_changed = False
        self.arrivals = 0
        self.arrivals_may_burst = 0

    def arrive(self, request: TraceRequest) -> None:
        """Take in a request: it gets a slot, waits, or is refused."""
        self.arrivals += 1
        self._tally.arrived += 1
        clearance = _CLEARANCES[request.is_restricted]
        self.arrivals_may_burst += clearance.may_leave_owned
        ticket = Ticket(
            self.arrivals,
            clearance.may_leave_owned,
            arrived_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
        )
        refused = self._choose_refused(ticket)
        if refused == ticket.number:
            self._tally.refuse(may_burst=ticket.may_leave_owned)
            return
        if refused is not None:
            self._expire(refused)
        work = Work(request.prompt_tokens, request.output_tokens, request.blocks)
        self._enqueue(Live(request, ticket, work))
        self.dispatch()
        if ticket.number in self._waiting:
            deadline_s = request.arrival_s + self._limits.wait_s_max
            self._clock.at(deadline_s, self._expire, ticket.number)

    def come_back(self, live: Live, replica_id: str) -> None:
        """Queue a request again at its old place: its replica died before the first token."""
        excluded = live.ticket.excluded | {replica_id}
        live.ticket = replace(live.ticket, excluded=excluded)
        work = live.work
        live.work = Work(work.prompt_tokens, work.output_tokens, work.blocks)
        self._enqueue(live)
        deadline_s = live.request.arrival_s + self._limits.wait_s_max
        self._clock.at(deadline_s, self._expire, live.ticket.number)
        self._is_changed = True

    def open(self, load: ReplicaLoad) -> None:
        """Offer a replica that began to serve."""
        self._loads[load.replica_id] = load
        self.dispatch()

    def close(self, replica_id: str) -> None:
        """Offer a replica to nobody any more; its streams go on."""
        self._loads.pop(replica_id, None)

    def stop_routing(self, pools: frozenset[str]) -> None:
        """Give slots of these pools to nobody, and of all others again."""
        if pools != self._closing:
            self._closing = pools
            self.dispatch()

    def release(self, replica_id: str) -> None:
        """Note that a slot is free again; `dispatch` uses it."""
        self._lighten(replica_id, 1, 0)

    def note_read(self, replica_id: str, prompt_tokens: int) -> None:
        """Note that a replica has read a prompt; `dispatch` uses the room."""
        self._lighten(replica_id, 0, prompt_tokens)

    def dispatch_if_changed(self) -> None:
        """Dispatch if a slot or room to read has become free."""
        if self._is_changed and self._waiting:
            self.dispatch()

    def dispatch(self) -> None:
        """Let production decide until nothing changes any more; calls inside calls are merged."""
        self._is_changed = True
        if self._is_dispatching:
            return
        self._is_dispatching = True
        while self._is_changed and self._waiting:
            self._is_changed = False
            plan = plan_assignments(
                self._tickets.values(),
                self._list_loads(),
                self._limits,
                now_s=self._clock.now_s,
            )
            for assignment in plan.assignments:
                self._assign(assignment.number, assignment.route.load)
        self._is_dispatching = False

    def count_waiting(self) -> tuple[int, int]:
        """How many wait that may leave owned sites, and how many that may not."""
        may_leave = sum(live.ticket.may_leave_owned for live in self._waiting.values())
        return may_leave, len(self._waiting) - may_leave

    def oldest_wait_s(self) -> float:
        """How long the oldest has waited."""
        if not self._waiting:
            return 0.0
        return self._clock.now_s - min(w.request.arrival_s for w in self._waiting.values())

    def _choose_refused(self, newcomer: Ticket) -> int | None:
        if not self._waiting:
            return None
        return choose_refused(
            self._tickets.values(), newcomer, self._limits, now_s=self._clock.now_s
        )

    def _lighten(self, replica_id: str, held: int, reading_tokens: int) -> None:
        load = self._loads.get(replica_id)
        if load is not None:
            self._loads[replica_id] = load.with_more(-held, -reading_tokens)
            self._is_changed = True

    def _enqueue(self, live: Live) -> None:
        self._waiting[live.ticket.number] = live
        self._tickets[live.ticket.number] = live.ticket

    def _list_loads(self) -> list[ReplicaLoad]:
        if not self._closing:
            return list(self._loads.values())
        return [load for load in self._loads.values() if load.pool not in self._closing]

    def _assign(self, number: int, chosen: ReplicaLoad) -> None:
        live = self._waiting.pop(number)
        del self._tickets[number]
        load = self._loads[chosen.replica_id]
        self._loads[load.replica_id] = load.with_more(1, live.ticket.prompt_tokens)
        grant_permit(_CLEARANCES[live.request.is_restricted], site=load.site, is_owned=load.owned)
        self._tally.violations += live.request.is_restricted and not load.owned
        self._submit(load.replica_id, live)

    def _expire(self, number: int) -> None:
        live = self._waiting.pop(number, None)
        if live is not None:
            del self._tickets[number]
            self._tally.refuse(may_burst=live.ticket.may_leave_owned)
