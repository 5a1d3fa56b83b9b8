"""The oracle's integer program: whole nodes with boots and leases against work, in cells of time.

Variables, each for every cell of time:

    asked[pool]          nodes requested in the cell; each is there for its lease, at least
    longer[pool]         nodes kept beyond it
    done[class]          work finished or left out since the start, in seconds of the first kind
    spent[class, kind]   work finished in the cell by one kind of replica
    left_out[class]      work of requests that arrive in the cell and never end in time

Rules: what is done has arrived, and what is due by a cell's end is done by then. No kind works more
than its replicas serve. At a cell's end, requests whose first token is due are done, but for those
in slots, and these want no more than the longest answers there are. Work that is left out costs a
miss for each largest request of its class and cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from autoscaling.peers.oracle_work import Floats, Kind, Requests, WorkClass

# The bound is the solver's, not its best plan: what these leave undone makes it lower, never wrong.
_GAP = 0.02
_NODES_MAX = 20
_LIMIT_S = 60.0
_TANGENTS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Rented:
    """A pool of rented replicas: its price, how many there can be, and in which cells one may ask.

    `kind` is a position in the list of kinds, `lease_s` what is paid at least, `usd_per_token` the
    way home of an answer's token.
    """

    kind: int
    usd_per_s: float
    replicas_max: int
    may_ask: tuple[bool, ...]
    lease_s: float
    usd_per_token: float


@dataclass(frozen=True, slots=True)
class Terms:
    """How time is cut, and what renting means, in s.

    `boot_s` is from a request to serving at the earliest, `lease_s` the longest lease of any pool.
    """

    cell_s: float
    cells: int
    boot_s: float
    lease_s: float
    ttft_s: float

    @property
    def ends_s(self) -> Floats:
        """The end of each cell."""
        return np.arange(1, self.cells + 1, dtype=np.float64) * np.float64(self.cell_s)

    @property
    def lease_cells(self) -> int:
        """Cells that a node which lives for its lease may touch, and one that costs nothing yet.

        A node that touches j cells more has lived longer than its lease by j cells at least.
        """
        return int(np.ceil(self.lease_s / self.cell_s)) + 2

    def serving(self, age: int) -> float:
        """Return the part of a cell in which a node asked for `age` cells before may serve."""
        return float(np.clip((age + 1) - self.boot_s / self.cell_s, 0.0, 1.0))


@dataclass(slots=True)
class _Columns:
    """Variables and rows `low <= sum of terms <= high`, as a solver wants them."""

    low: list[Floats] = field(default_factory=list)
    high: list[Floats] = field(default_factory=list)
    count: int = 0
    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    row_low: list[float] = field(default_factory=list)
    row_high: list[float] = field(default_factory=list)

    def take(self, low: Floats, high: Floats) -> int:
        """Return the first of new variables with these bounds."""
        self.low.append(low)
        self.high.append(high)
        self.count += len(low)
        return self.count - len(low)

    def rule(self, terms: Sequence[tuple[int, float]], *, low: float, high: float) -> None:
        for column, value in terms:
            self.row.append(len(self.row_low))
            self.column.append(column)
            self.value.append(value)
        self.row_low.append(low)
        self.row_high.append(high)

    def constraint(self) -> LinearConstraint:
        shape = (len(self.row_low), self.count)
        matrix = csr_array((self.value, (self.row, self.column)), shape=shape)
        return LinearConstraint(matrix, self.row_low, self.row_high)


class Program:
    """See the module. Solved twice: for the fewest misses, then for the least money."""

    def __init__(
        self,
        requests: Requests,
        classes: Sequence[WorkClass],
        kinds: Sequence[Kind],
        rented: Sequence[Rented],
        terms: Terms,
    ) -> None:
        self._requests, self._kinds = requests, kinds
        self._rented, self._terms = rented, terms
        self._all = _Columns()
        nothing = np.zeros(terms.cells)
        self._asked = [
            self._all.take(nothing, p.replicas_max * np.array(p.may_ask, dtype=float))
            for p in rented
        ]
        self._longer = [
            self._all.take(nothing, np.full(terms.cells, float(p.replicas_max))) for p in rented
        ]
        self._whole = self._all.count
        self._misses: list[tuple[int, float]] = []
        self._spent: list[list[tuple[int, float]]] = [[] for _ in kinds]
        self._ways_home: list[tuple[int, float]] = []
        self._done: list[int] = [self._add_class(one) for one in classes]
        self._add_leases()
        self._add_capacity()
        self._add_slots()

    def count_misses(self) -> float:
        """Return a lower bound of the misses with all replicas there can be."""
        goal = np.zeros(self._all.count)
        for column, value in self._misses:
            goal[column] = value
        return self._solve(goal, is_whole=False)

    def bound_usd(self, misses_max: float) -> float:
        """Return a lower bound of the money with at most so many misses."""
        terms = self._terms
        self._all.rule(self._misses, low=-np.inf, high=misses_max)
        goal = np.zeros(self._all.count)
        left_s = terms.cell_s * terms.cells - terms.ends_s
        for pool, asked, longer in zip(self._rented, self._asked, self._longer, strict=True):
            goal[asked : asked + terms.cells] = pool.usd_per_s * np.minimum(pool.lease_s, left_s)
            goal[longer : longer + terms.cells] = pool.usd_per_s * terms.cell_s
        for first, usd_per_work_s in self._ways_home:
            goal[first : first + terms.cells] = usd_per_work_s
        return self._solve(goal, is_whole=True)

    def _solve(self, goal: Floats, *, is_whole: bool) -> float:
        whole = np.zeros(self._all.count)
        whole[: self._whole] = is_whole
        found = milp(
            goal,
            integrality=whole,
            bounds=Bounds(np.concatenate(self._all.low), np.concatenate(self._all.high)),
            constraints=self._all.constraint(),
            options={"time_limit": _LIMIT_S, "mip_rel_gap": _GAP, "node_limit": _NODES_MAX},
        )
        bound = found.fun if not is_whole and found.status == 0 else found.mip_dual_bound
        return max(0.0, float(bound or 0.0))

    def _add_class(self, one: WorkClass) -> int:
        """Add a class's work as it arrives and falls due; return its first `done`."""
        terms, requests = self._terms, self._requests
        ends_s = terms.ends_s
        work_s = requests.work_s[0, one.members]
        cell = (requests.arrival_s[one.members] / terms.cell_s).astype(int)
        cell = np.minimum(cell, terms.cells - 1)
        arriving = np.bincount(cell, weights=work_s, minlength=terms.cells).astype(np.float64)
        largest = np.zeros(terms.cells)
        np.maximum.at(largest, cell, work_s)
        due = np.searchsorted(ends_s, requests.due_s[one.members] - 1e-9)
        is_within = due < terms.cells
        due_s = np.bincount(due[is_within], weights=work_s[is_within], minlength=terms.cells)
        done = self._all.take(
            np.cumsum(due_s, dtype=np.float64), np.cumsum(arriving, dtype=np.float64)
        )
        left_out = self._all.take(np.zeros(terms.cells), arriving)
        spent = {
            kind: self._all.take(np.zeros(terms.cells), np.full(terms.cells, np.inf))
            for kind, ratio in enumerate(one.ratio)
            if ratio is not None
        }
        for kind, first in spent.items():
            self._spent[kind].append((first, one.ratio[kind] or 0.0))
            usd = min((p.usd_per_token for p in self._rented if p.kind == kind), default=0.0)
            self._ways_home.append((first, usd * one.tokens_per_work_s))
        for c in range(terms.cells):
            step = [(done + c, 1.0), (left_out + c, -1.0)]
            step += [(first + c, -1.0) for first in spent.values()]
            step += [(done + c - 1, -1.0)] if c else []
            self._all.rule(step, low=0.0, high=0.0)
            if largest[c]:
                self._misses.append((left_out + c, 1 / largest[c]))
        return done

    def _add_leases(self) -> None:
        """Nodes stay longer only if they were there before, and never are too many."""
        lease = self._terms.lease_cells
        for pool, asked, longer in zip(self._rented, self._asked, self._longer, strict=True):
            for c in range(self._terms.cells):
                before = [(longer + c - 1, -1.0)] if c else []
                before += [(asked + c - lease, -1.0)] if c >= lease else []
                self._all.rule([(longer + c, 1.0), *before], low=-np.inf, high=0.0)
                there = [(asked + k, 1.0) for k in range(max(0, c - lease + 1), c + 1)]
                there.append((longer + c, 1.0))
                self._all.rule(there, low=-np.inf, high=float(pool.replicas_max))

    def _list_serving(self, kind: int, cell: int, *, is_end: bool) -> list[tuple[int, float]]:
        """Return the rented replicas that serve in a cell, in parts of it or at its end."""
        lease = self._terms.lease_cells
        found: list[tuple[int, float]] = []
        for pool, asked, longer in zip(self._rented, self._asked, self._longer, strict=True):
            if pool.kind != kind:
                continue
            found.append((longer + cell, 1.0))
            for k in range(max(0, cell - lease + 1), cell + 1):
                part = self._terms.serving(cell - k)
                if part > 0:
                    found.append((asked + k, 1.0 if is_end else part))
        return found

    def _add_capacity(self) -> None:
        cell_s = self._terms.cell_s
        for number, kind in enumerate(self._kinds):
            owned = _count_owned(kind)
            for c in range(self._terms.cells):
                wanted = [(first + c, ratio) for first, ratio in self._spent[number]]
                serving = self._list_serving(number, c, is_end=False)
                wanted += [(column, -part * cell_s) for column, part in serving]
                self._all.rule(wanted, low=-np.inf, high=owned * cell_s)

    def _add_slots(self) -> None:
        """Require at each cell's end what is begun and can't be in a slot any more to be done.

        The longest k answers in work, as a function of k, lie below each of its tangents.
        """
        terms, requests = self._terms, self._requests
        owned = sum(_count_owned(kind) * kind.slots for kind in self._kinds)
        longest_s = _find_longest_rest(requests)
        begun_s = np.concatenate([[0.0], np.cumsum(requests.work_s[0])])
        for c, end_s in enumerate(terms.ends_s):
            begun = int(np.searchsorted(requests.arrival_s, end_s - terms.ttft_s, side="right"))
            is_open = requests.due_s[:begun] > end_s
            rest_s = -np.sort(-longest_s[:begun][is_open])
            if len(rest_s) <= owned:
                continue
            top_s = np.concatenate([[0.0], np.cumsum(rest_s)])
            slots = [
                (column, -float(self._kinds[number].slots))
                for number in range(len(self._kinds))
                for column, _ in self._list_serving(number, c, is_end=True)
            ]
            done = [(first + c, 1.0) for first in self._done]
            per_replica = max(kind.slots for kind in self._kinds)
            for more in _TANGENTS:
                at = owned + more * per_replica
                if at >= len(rest_s):
                    break
                slope_s = rest_s[at]
                low = begun_s[begun] - top_s[at] - slope_s * (owned - at)
                rule = [*done, *((column, -value * slope_s) for column, value in slots)]
                self._all.rule(rule, low=low, high=np.inf)


def _count_owned(kind: Kind) -> int:
    return sum(pool.max_replicas for pool in kind.pools) if kind.is_owned else 0


def _find_longest_rest(requests: Requests) -> Floats:
    """Return what each request can lack once its first token is there, in the first kind's time.

    A part of a request counts on every kind as the same part of its work on the first.
    """
    share = (requests.decode_s / requests.work_s).max(axis=0)
    rest: Floats = share * requests.work_s[0]
    return rest
