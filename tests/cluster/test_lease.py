"""One acts, the others wait; who slept through the end of its lease is refused by the ledger."""

import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NotLeaderError
from cluster.lease import Lease
from cluster.ledger import Books, Intent, Ledger
from cluster.model import NodeId, NodeTypeName, SiteName
from tests.cluster.ledger_places import LedgerPlace

TTL_S = 15.0
INTENT = Intent(
    node_id=NodeId("n-1"),
    site=SiteName("cloud"),
    node_type=NodeTypeName("cloud_gpu"),
    is_head=False,
    usd_per_hour=Decimal("1.861"),
    tags={},
    node_config={},
)


class Clock:
    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def accept(_books: Books) -> None:
    return None


@pytest.fixture
def ledger(ledger_place: LedgerPlace) -> Ledger:
    return ledger_place.open()


def test_the_first_holds_the_lease_and_the_second_waits(ledger: Ledger) -> None:
    clock = Clock()
    first, second = (Lease(ledger, name, monotonic_s=clock) for name in ("first", "second"))
    assert first.try_acquire() == 1
    assert second.try_acquire() is None
    with pytest.raises(NotLeaderError, match="second must hold the lease to act; got: held by fir"):
        second.renew()


def test_a_holder_that_renews_keeps_the_lease_for_ever(ledger: Ledger) -> None:
    clock = Clock()
    first, second = (Lease(ledger, name, monotonic_s=clock) for name in ("first", "second"))
    first.try_acquire()
    for _ in range(20):
        clock.now_s += 5.0
        first.renew()
        assert second.try_acquire() is None
    assert first.token == 1


def test_a_silent_holder_loses_the_lease_and_learns_it_when_it_wakes(ledger: Ledger) -> None:
    """SIGSTOP for 16 s: the other takes over under token 2, and token 1 launches nothing."""
    clock = Clock()
    first, second = (Lease(ledger, name, monotonic_s=clock) for name in ("first", "second"))
    stale = first.try_acquire()
    second.try_acquire()
    clock.now_s += TTL_S + 1
    assert second.try_acquire() == 2
    assert first.token is None
    with pytest.raises(NotLeaderError, match=r"token 1; got token 2, held by second"):
        ledger.open_intents([INTENT], owner="first", check=accept, fence=stale)
    assert ledger.list_open() == []
    with pytest.raises(NotLeaderError):
        first.renew()
    ledger.open_intents([INTENT], owner="second", check=accept, fence=second.token)
    assert [node.fence for node in ledger.list_open()] == [2]


def test_a_stale_token_is_refused_even_when_there_is_nothing_to_launch(ledger: Ledger) -> None:
    Lease(ledger, "second").try_acquire()
    with pytest.raises(NotLeaderError):
        ledger.open_intents([], owner="first", check=accept, fence=0)


def test_a_stale_token_ends_no_node_either(ledger: Ledger) -> None:
    ledger.open_intents([INTENT], owner="first", check=accept)
    Lease(ledger, "second").try_acquire()
    with pytest.raises(NotLeaderError):
        ledger.mark_terminating(INTENT.node_id, owner="first", fence=0)
    assert ledger.get(INTENT.node_id).owner == "first"


def test_a_holder_that_slept_but_was_not_replaced_goes_on_under_its_token(ledger: Ledger) -> None:
    clock = Clock()
    lease = Lease(ledger, "first", monotonic_s=clock)
    lease.try_acquire()
    clock.now_s += 60.0
    assert lease.token is None
    lease.renew()
    assert lease.token == 1


def test_clocks_of_different_machines_are_never_compared(ledger: Ledger) -> None:
    """The second machine's clock is a year ahead; it still waits ttl_s from its first look."""
    here, there = Clock(), Clock(now_s=3.2e7)
    first = Lease(ledger, "first", monotonic_s=here)
    second = Lease(ledger, "second", monotonic_s=there)
    first.try_acquire()
    assert second.try_acquire() is None
    there.now_s += TTL_S - 1
    assert second.try_acquire() is None
    there.now_s += 1
    assert second.try_acquire() == 2


def test_a_lease_given_back_is_taken_at_once(ledger: Ledger) -> None:
    first, second = Lease(ledger, "first"), Lease(ledger, "second")
    stale = first.try_acquire()
    first.release()
    first.release()
    with pytest.raises(NotLeaderError, match="held by nobody"):
        ledger.open_intents([INTENT], owner="first", check=accept, fence=stale)
    assert second.try_acquire() == 2


def test_nobody_waits_for_a_holder_known_to_be_gone(ledger: Ledger) -> None:
    Lease(ledger, "first").try_acquire()
    patient = Lease(ledger, "second")
    informed = Lease(ledger, "third", has_ended=lambda holder: holder == "first")
    assert patient.try_acquire() is None
    assert informed.try_acquire() == 2


_HOLDER = """
import sys, time
from cluster.errors import NotLeaderError
from cluster.lease import Lease
from cluster.ledger import Ledger
from pathlib import Path
ledger = Ledger(Path(sys.argv[1]))
lease = Lease(ledger, "first", ttl_s=0.5)
token = lease.try_acquire()
print(token, flush=True)
while True:
    time.sleep(0.05)
    try:
        ledger.open_intents([], owner="first", check=lambda _books: None, fence=token)
        lease.renew()
    except NotLeaderError as exc:
        print(exc, flush=True)
        break
"""


def test_a_process_stopped_past_its_lease_is_refused_when_it_goes_on(tmp_path: Path) -> None:
    """A real process under SIGSTOP, and SIGCONT once another holds the lease; lasts a second."""
    file = tmp_path / "ledger.db"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        holder.send_signal(signal.SIGSTOP)
        ledger = Ledger(file)
        second = Lease(ledger, "second", ttl_s=0.5)
        deadline_s = time.monotonic() + 20
        while second.try_acquire() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate(timeout=20)
        assert "under token 1; got token 2, held by second" in said
        ledger.close()
    finally:
        holder.kill()
        holder.wait()


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.floats(0, 20), st.sampled_from("aawr")),
        max_size=25,
    )
)
def test_under_any_schedule_only_one_token_is_accepted(
    steps: list[tuple[int, float, str]],
) -> None:
    """Three processes take, renew and release at any times; each keeps its last token for ever."""
    ledger, clock = Ledger(Path(":memory:")), Clock()
    leases = [Lease(ledger, f"p{number}", monotonic_s=clock) for number in range(3)]
    tokens: dict[int, int] = {}
    newest = 0
    for who, pause_s, act in steps:
        clock.now_s += pause_s
        if act == "r":
            leases[who].release()
            continue
        try:
            token = leases[who].try_acquire() if act == "a" else leases[who].renew()
        except NotLeaderError:
            continue
        if token is not None:
            assert token >= newest
            tokens[who], newest = token, max(newest, token)
    accepted = {token for token in tokens.values() if _is_accepted(ledger, token)}
    assert accepted <= {newest}
    ledger.close()


def _is_accepted(ledger: Ledger, fence: int) -> bool:
    try:
        ledger.open_intents([], owner="any", check=accept, fence=fence)
    except NotLeaderError:
        return False
    return True
