"""What only a ledger in PostgreSQL must do: say where it is, keep its password, survive a restart.

Everything a ledger does is tested over both stores in test_ledger.py.
The server takes 3 s to start, once for all tests.
"""

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Self

import psycopg
import pytest
from sqlalchemy import text

from cluster.config import StoreSettings
from cluster.errors import StateError
from cluster.ledger import Intent, Ledger
from cluster.model import ClusterName, NodeId, NodeTypeName, SiteName
from cluster.store import Store
from cluster.store_place import Place, PostgresqlPlace, find_place
from cluster.store_postgresql import PostgresqlDriver
from tests.cluster.ledger_places import open_postgresql_place
from tests.cluster.postgresql_server import PostgresqlServer

CANARY = "canary-5f3a"
POSTGRESQL = StoreSettings(kind="postgresql", url_env="TIDEGATE_LEDGER_URL")
INTENT = Intent(
    node_id=NodeId("n-1"),
    site=SiteName("cloud"),
    node_type=NodeTypeName("cloud_gpu"),
    is_head=False,
    usd_per_hour=Decimal(2),
    tags={},
    node_config={},
)


def find(store: StoreSettings, environment: Mapping[str, str], cluster: str = "test") -> Place:
    return find_place(
        store, state_dir=Path("/state"), cluster=ClusterName(cluster), environment=environment
    )


def test_a_ledger_is_a_file_in_the_state_folder_unless_the_settings_say_otherwise() -> None:
    assert find(StoreSettings(), {}) == Path("/state/test/ledger.db")


def test_settings_without_the_variables_name_are_an_error_that_names_it() -> None:
    with pytest.raises(StateError, match=r"provider.store.url_env must name the environment"):
        find(StoreSettings(kind="postgresql"), {})


@pytest.mark.parametrize("environment", [{}, {"TIDEGATE_LEDGER_URL": ""}], ids=["none", "empty"])
def test_a_variable_that_is_not_set_is_an_error_that_says_what_to_type(
    environment: Mapping[str, str],
) -> None:
    with pytest.raises(StateError, match=r"not set\. .*: export TIDEGATE_LEDGER_URL=postgresql://"):
        find(POSTGRESQL, environment)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{CANARY}/x@host:{CANARY}/db",
        f"mysql://user:{CANARY}@host/db",
        f"postgresql://user:{CANARY}@host",
        f"{CANARY}",
    ],
    ids=["port", "scheme", "database", "nonsense"],
)
def test_a_bad_url_is_an_error_that_never_quotes_it(url: str) -> None:
    with pytest.raises(StateError, match=r"\$TIDEGATE_LEDGER_URL must be a PostgreSQL URL") as bad:
        find(POSTGRESQL, {"TIDEGATE_LEDGER_URL": url})
    assert CANARY not in _say_all(bad.value)


def test_neither_errors_nor_logs_hold_the_password(
    postgresql_server: PostgresqlServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong password, and a server that isn't there."""
    caplog.set_level(logging.DEBUG)
    wrong = postgresql_server.url(password=CANARY)
    gone = wrong.replace(str(postgresql_server.port), "1")
    for url in (wrong, gone):
        place = find(POSTGRESQL, {"TIDEGATE_LEDGER_URL": url})
        with pytest.raises(StateError, match="must be a usable ledger; got: ") as refusal:
            Ledger(place)
        said = _say_all(refusal.value) + repr(place) + str(place) + caplog.text
        assert "127.0.0.1" in said
        assert CANARY not in said


def test_whatever_the_database_says_is_told_without_the_password() -> None:
    place = find(POSTGRESQL, {"TIDEGATE_LEDGER_URL": f"postgresql://user:{CANARY}@host/db"})
    assert isinstance(place, PostgresqlPlace)
    said = PostgresqlDriver(place).explain(ValueError(f"no such\n  user:{CANARY}@host"))
    assert said == "no such user:***@host"


def test_a_writer_that_froze_inside_a_transaction_does_not_stop_the_others(
    postgresql_server: PostgresqlServer,
) -> None:
    """Another machine holds the write lock and stands still: the server cuts it off after 3 s."""
    place = open_postgresql_place(postgresql_server)
    ledger, frozen = Ledger(place), Store(place)

    def freeze() -> None:
        with frozen.transaction() as session:
            session.connection()
            ledger.open_intents([INTENT], owner="me", check=lambda _books: None)
            session.execute(text("SELECT 1"))

    with pytest.raises(StateError, match="terminating connection"):
        freeze()
    assert len(ledger.list_open()) == 1
    for one in (ledger, frozen):
        one.close()


def test_an_intent_whose_commit_was_not_answered_is_written_and_known_as_such(
    postgresql_server: PostgresqlServer,
) -> None:
    """An intent that nobody launches would hold money and room while its owner lives."""
    with _Line(postgresql_server.port) as line:
        url = postgresql_server.url().replace(str(postgresql_server.port), str(line.port))
        ledger = Ledger(find(POSTGRESQL, {"TIDEGATE_LEDGER_URL": url}, cluster="cut"))
        line.cuts_at = b"COMMIT"
        ledger.open_intents([INTENT], owner="me", check=lambda _books: None)
        assert line.cuts_at is None, "the line was never cut"
        assert [one.node_id for one in ledger.list_open()] == ["n-1"]
        with pytest.raises(StateError, match="duplicate key"):
            ledger.open_intents([INTENT], owner="me", check=lambda _books: None)
        ledger.close()


def test_a_line_that_went_dead_is_given_up_within_seconds(
    postgresql_server: PostgresqlServer,
) -> None:
    """Linux alone would wait for two hours in silence, and a quarter of an hour for a receipt."""
    store = Store(open_postgresql_place(postgresql_server))
    with store.snapshot() as session:
        descriptor = session.connection().connection.dbapi_connection.fileno()
        with socket.socket(fileno=os.dup(descriptor)) as line:
            tcp = {
                name: line.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    store.close()
    assert tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 15
    assert 0 < tcp["TCP_USER_TIMEOUT"] <= 15_000


def test_the_servers_own_log_holds_neither_password_nor_url(
    postgresql_server: PostgresqlServer,
) -> None:
    Ledger(open_postgresql_place(postgresql_server)).close()
    log = postgresql_server.read_log()
    assert "pg_advisory_xact_lock" in log
    assert postgresql_server.password not in log


def test_clusters_in_one_database_do_not_see_one_another(
    postgresql_server: PostgresqlServer,
) -> None:
    environment = {"TIDEGATE_LEDGER_URL": postgresql_server.url()}
    ours = Ledger(find(POSTGRESQL, environment, cluster="ours"))
    theirs = Ledger(find(POSTGRESQL, environment, cluster="theirs"))
    ours.open_intents([INTENT], owner="me", check=lambda _books: None)
    assert theirs.list_open() == []
    assert len(ours.list_open()) == 1
    for ledger in (ours, theirs):
        ledger.close()


def test_a_ledger_goes_on_after_its_connections_were_cut(
    postgresql_server: PostgresqlServer,
) -> None:
    ledger = Ledger(open_postgresql_place(postgresql_server))
    ledger.open_intents([INTENT], owner="me", check=lambda _books: None)
    with psycopg.connect(postgresql_server.url(), autocommit=True) as connection:
        cut = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tidegate'"
        ).fetchall()
    assert cut
    assert [node.node_id for node in ledger.list_open()] == ["n-1"]
    another = replace(INTENT, node_id=NodeId("n-2"))
    ledger.open_intents([another], owner="me", check=lambda _books: None)
    assert len(ledger.list_open()) == 2
    ledger.close()


class _Line:
    """A line to the server that can be cut once, after words went to the server."""

    def __init__(self, server_port: int) -> None:
        self.cuts_at: bytes | None = None
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server_port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                if self.cuts_at is not None and self.cuts_at in data:
                    self.cuts_at = None
                    source.shutdown(socket.SHUT_RDWR)
                    target.sendall(data)
                    time.sleep(0.3)
                    return
                target.sendall(data)


def _say_all(error: BaseException) -> str:
    """Return all that a log of the error could hold, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error)
