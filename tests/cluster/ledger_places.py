"""The places a ledger can be in, so that one suite of tests runs over all of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.config import StoreSettings
from cluster.ledger import Ledger
from cluster.model import ClusterName
from cluster.store_place import Place, find_place
from tests.cluster.postgresql_server import PostgresqlServer

_numbers = itertools.count()


@dataclass
class LedgerPlace:
    """A place that is empty at first; every `open` is another process's view of it."""

    place: Place
    now_s: float = 1000.0
    opened: list[Ledger] = field(default_factory=list)

    def open(self, *, reads_only: bool = False) -> Ledger:
        """Return a ledger there, its clock at `now_s`; it is closed after the test."""
        ledger = Ledger(self.place, now_s=lambda: self.now_s, reads_only=reads_only)
        self.opened.append(ledger)
        return ledger


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.daemon)])
def ledger_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerPlace]:
    """Each kind of place in turn, new for every test."""
    if request.param == "sqlite":
        place: Place = tmp_path / "state" / "ledger.db"
    else:
        place = open_postgresql_place(request.getfixturevalue("postgresql_server"))
    held = LedgerPlace(place)
    yield held
    for ledger in held.opened:
        ledger.close()


def open_postgresql_place(server: PostgresqlServer) -> Place:
    """Return a schema on the server that nobody used before."""
    return find_place(
        StoreSettings(kind="postgresql", url_env="URL"),
        state_dir=Path("/nonexistent"),
        cluster=ClusterName(f"test-{next(_numbers)}"),
        environment={"URL": server.url()},
    )
