"""A bound that no policy can beat: the least cloud money at the same attainment, knowing it all.

Time is cut into cells, and an integer program (`oracle_program`) finds the cheapest nodes that
could do the work (`oracle_work`). Why it is a bound: take any run. Count for each cell the work
that each kind of replica did on requests answered in time, in seconds; put each node's request at
the beginning of its cell and its end at the end of its cell; call every request that missed left
out. That satisfies each rule of the program:

- nobody works before it serves: a node serves after a boot that is three standard deviations
  faster than the usual one, and owned replicas from the first second;
- a request in time is finished by its deadline, and its first token by its own. From then on it
  holds a slot until its last token, so at any time no more are begun and not over than there are
  slots, and what these lack is at most the longest answers there are;
- its work is at least what `oracle_work` says, and 1 % of the requests at most are left out, each
  no larger than the largest of its class and cell.

Rounded outwards a node touches up to two cells more than it pays for, which cost nothing in the
program: the money is at most what the run paid, lease and way home of the answers included. The
solver's own bound is taken, not its best plan, so stopping early makes it lower, never wrong.

What the run's luck may add: spot lost within its lease isn't paid to the end, so a lease on spot is
taken at its expected length. Spells without spot are known, from the seed. Work may be cut up and
put anywhere at any time, blocks of prompts are remembered for ever and by everyone, and replicas
never stand idle while there is work: no real schedule gets all of that, so the bound stays below
what can be had.

Attainment is what all the replicas there can be would reach, bounded the same way.
"""

import math
from dataclasses import replace

from autoscaling.peers.oracle_program import Program, Rented, Terms
from autoscaling.peers.oracle_work import Kind, list_kinds, measure_requests, sort_into_classes
from autoscaling.peers.renting import find_usd_per_hour, list_holders, list_spells
from autoscaling.simulator.scenario import BootTimes, Scenario
from autoscaling.simulator.tally import Outcome, Spent, Tally, build_outcome
from autoscaling.simulator.traffic import Traffic
from autoscaling.wan import price_answer_usd
from cluster.config import NodeTypeSettings
from cluster.model import SiteName
from deployments.spec import PoolSpec

NAME = "oracle"
MISS_RATIO = 0.01
_CELL_S = 30.0
_CELLS_MAX = 240
_FAST_SIGMAS = 3.0
_S_PER_HOUR = 3600.0


def bound_cost(
    traffic: Traffic, scenario: Scenario, *, seed: int, miss_ratio: float = MISS_RATIO
) -> Outcome:
    """Return the bound as a row of the table; what isn't bounded is 0 or unknown there.

    At most `miss_ratio` of the requests miss, or as few as can.
    """
    kinds = list_kinds(scenario)
    count = len(traffic.requests)
    requests = measure_requests(traffic, scenario, kinds)
    reach, usd = 1.0, 0.0
    if count > requests.unreachable:
        classes = sort_into_classes(requests, kinds)
        terms = build_terms(traffic, scenario)
        rented = _list_rented(kinds, scenario, terms, seed=seed)
        program = Program(requests, classes, kinds, rented, terms)
        misses = program.count_misses()
        reach = 1 - (misses + requests.unreachable) / count
        # A hair more than the fewest, or rounding would leave nothing that is possible.
        usd = program.bound_usd(max(1.001 * misses + 1e-3, miss_ratio * count))
    bound = build_outcome(NAME, Tally(scenario.slo), Spent(usd, 0.0, 0.0), wall_s=0.0)
    note = "a bound, not a run: see docs/simulate.md"
    return replace(bound, slo_attainment=reach, completed=count - requests.unreachable, note=note)


def build_terms(traffic: Traffic, scenario: Scenario) -> Terms:
    """Return how the traffic's time is cut and what renting means in it."""
    cells = min(_CELLS_MAX, max(1, math.ceil(traffic.duration_s / _CELL_S)))
    return Terms(
        cell_s=traffic.duration_s / cells,
        cells=cells,
        boot_s=find_fast_boot_s(scenario.boot),
        lease_s=scenario.settings.limits.lease_s_min,
        ttft_s=scenario.slo.ttft_s,
    )


def find_fast_boot_s(boot: BootTimes) -> float:
    """Return the time from a node's request to serving, three standard deviations early."""
    joined_s = (boot.accepted_s, boot.running_s, boot.reachable_s, boot.joined_s)
    stages_s = (*joined_s, boot.weights_s + boot.engine_s)
    return max(0.0, sum(stages_s) - _FAST_SIGMAS * boot.spread * math.hypot(*stages_s))


def _list_rented(kinds: list[Kind], scenario: Scenario, terms: Terms, *, seed: int) -> list[Rented]:
    found: list[Rented] = []
    for number, kind in enumerate(kinds):
        for pool in kind.pools:
            holders = [] if pool.owned else list_holders(pool, scenario)
            if holders:
                found.append(_rent(number, pool, holders, scenario, terms, seed=seed))
    return found


def _rent(
    number: int,
    pool: PoolSpec,
    holders: list[NodeTypeSettings],
    scenario: Scenario,
    terms: Terms,
    *,
    seed: int,
) -> Rented:
    site = scenario.settings.sites[SiteName(pool.site)]
    is_spot = pool.market == "spot"
    until_s = terms.cell_s * terms.cells
    spells = list_spells(pool, holders, scenario, seed=seed, until_s=until_s)
    begins_s = terms.ends_s - terms.cell_s
    may_ask = tuple(
        not all(any(b <= begin and end <= e for b, e in one) for one in spells)
        for begin, end in zip(begins_s, terms.ends_s, strict=True)
    )
    return Rented(
        kind=number,
        usd_per_s=find_usd_per_hour(pool, holders) / _S_PER_HOUR,
        replicas_max=pool.max_replicas,
        may_ask=may_ask,
        lease_s=_expect_lease_s(scenario) if is_spot else terms.lease_s,
        usd_per_token=price_answer_usd(1.0, usd_per_gb=site.egress_usd_per_gb),
    )


def _expect_lease_s(scenario: Scenario) -> float:
    """Return how long a node on spot is paid at least, on average: until it is lost, or its lease.

    It can't be lost before it has joined, here taken as 0 s: a little low.
    """
    lease_s, per_s = scenario.settings.limits.lease_s_min, scenario.spot.losses_per_hour
    per_s /= _S_PER_HOUR
    return (1 - math.exp(-per_s * lease_s)) / per_s if per_s > 0 else lease_s
