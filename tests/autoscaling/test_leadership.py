"""One autoscaler acts: another waits, takes over when the first is silent, and the first ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoscaling.leadership import keep_lease, wait_for_lease
from cluster.errors import StateError
from cluster.lease import Lease
from cluster.ledger import Ledger


class Clock:
    """Time that passes while somebody sleeps; what happens meanwhile is `between`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.between: list[object] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.between:
            step = self.between.pop(0)
            if callable(step):
                step()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease_of(name: str, ledger: Ledger, clock: Clock) -> Lease:
    return Lease(ledger, name, monotonic_s=clock)


def test_a_second_process_waits_and_takes_over_from_one_that_fell_silent(
    ledger: Ledger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewed at 3 and 6 s, then silent: 15 s later the second holds the lease."""
    first, second = (lease_of(name, ledger, clock) for name in ("first", "second"))
    token = first.try_acquire()
    clock.between = [first.renew, first.renew]
    said: list[float] = []
    taken = wait_for_lease(second, say_waiting=lambda: said.append(clock.now_s), sleep=clock.sleep)
    assert token is not None
    assert taken == token + 1
    assert clock.now_s == 21.0
    assert said == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0]
    assert caplog.text.count("another autoscaler holds the lease") == 1


def test_one_that_wakes_after_its_lease_was_taken_ends_at_once(
    ledger: Ledger, clock: Clock
) -> None:
    """As after SIGSTOP for longer than the lease lasts, then SIGCONT: its token is void too."""
    first, second = (lease_of(name, ledger, clock) for name in ("first", "second"))
    first.try_acquire()
    second.try_acquire()
    clock.now_s = 20.0
    assert second.try_acquire() is not None
    assert first.token is None
    lost: list[str] = []
    keep_lease(first, on_lost=lost.append, sleep=clock.sleep)
    assert clock.now_s == 20.0
    assert "held by second" in lost[0]


def test_a_ledger_away_for_a_moment_costs_nothing_and_for_longer_the_lease(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lease_of("only", ledger, clock)
    lease.try_acquire()
    lost: list[str] = []

    def fail(*_: object) -> None:
        raise StateError("locked")

    clock.between = [
        lambda: monkeypatch.setattr(ledger, "renew_lease", fail),
        None,
        monkeypatch.undo,
        lambda: monkeypatch.setattr(ledger, "renew_lease", fail),
    ]
    keep_lease(lease, on_lost=lost.append, sleep=clock.sleep)
    assert lost == ["it wasn't renewed for 15 s: locked"]
    assert clock.now_s == 24.0, "renewed last at 9 s"
