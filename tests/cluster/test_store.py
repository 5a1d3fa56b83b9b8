"""An older ledger file is brought up to date; a ledger that only reads changes nothing."""

import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest

from cluster.errors import StateError
from cluster.ledger import Ledger
from cluster.model import Cordon, NodeId, NodePhase
from cluster.store import Store
from cluster.store_tables import SCHEMA_VERSION

# What release 0.1.0 wrote, word for word.
VERSION_1 = """
CREATE TABLE nodes (
  node_id VARCHAR NOT NULL, site VARCHAR NOT NULL, node_type VARCHAR NOT NULL,
  phase VARCHAR NOT NULL, is_head BOOLEAN NOT NULL, usd_per_hour VARCHAR, tags JSON NOT NULL,
  node_config JSON NOT NULL, address VARCHAR, owner VARCHAR NOT NULL, intended_s FLOAT NOT NULL,
  changed_s FLOAT NOT NULL, closed_s FLOAT, closed_why VARCHAR, PRIMARY KEY (node_id)
);
CREATE INDEX ix_nodes_phase ON nodes (phase);
CREATE INDEX ix_nodes_site ON nodes (site);
INSERT INTO nodes VALUES ('n-1','cloud','gpu','running',0,'2.00','{"a": "b"}','{}','10.0.0.1',
  'me',1000.0,1010.0,NULL,NULL);
INSERT INTO nodes VALUES ('n-2','cloud','gpu','closed',0,'2.00','{}','{}',NULL,
  'me',1000.0,4600.0,4600.0,'terminated');
INSERT INTO nodes VALUES ('n-3','cloud','gpu','closed',0,'2.00','{}','{}',NULL,
  'me',1000.0,4600.0,4600.0,'no capacity: none left');
PRAGMA user_version = 1;
"""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    file = tmp_path / "ledger.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(VERSION_1)
    connection.close()
    return file


def test_a_file_of_schema_version_1_keeps_its_rows_and_gains_the_new_columns(
    old_file: Path,
) -> None:
    ledger = Ledger(old_file, now_s=lambda: 4600.0)
    first, second, third = ledger.list_all()
    assert (first.phase, first.tags, first.address) == (NodePhase.RUNNING, {"a": "b"}, "10.0.0.1")
    assert (first.launched_s, first.ended_s, first.cordon, first.fence) == (None,) * 4
    assert (second.ended_s, third.ended_s) == (4600.0, None)
    ledger.set_cordon(NodeId("n-1"), Cordon.CORDONED)
    ledger.close()
    assert Ledger(old_file).get(NodeId("n-1")).cordon is Cordon.CORDONED


def test_what_ran_under_schema_version_1_is_charged_and_what_never_ran_is_not(
    old_file: Path,
) -> None:
    """Two nodes ran for an hour at 2 $/h; the third was refused for want of capacity."""
    ledger = Ledger(old_file, now_s=lambda: 4600.0)
    assert ledger.accrued_usd(0.0, 1e9) == Decimal(4)


def test_a_file_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = file.read_bytes()
    with pytest.raises(StateError, match="written by a newer release: use that one"):
        Ledger(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["a b", "a?b", "a#b", "a%41b"])
def test_a_file_may_be_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "ledger.db"
    writer = Ledger(file)
    writer.take_lease("me", seen=writer.lease())
    assert list(tmp_path.rglob("*")) == [file.parent, file]
    assert Ledger(file, reads_only=True).lease().token == 1


def test_a_ledger_that_only_reads_never_makes_a_file(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no such file"):
        Ledger(tmp_path / "none" / "ledger.db", reads_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_only_reads_sees_what_others_write_and_writes_nothing(
    tmp_path: Path,
) -> None:
    writer = Ledger(tmp_path / "ledger.db")
    reader = Ledger(tmp_path / "ledger.db", reads_only=True)
    assert reader.lease().token == 0
    writer.take_lease("me", seen=writer.lease())
    assert reader.lease().token == 1
    with pytest.raises(StateError, match="readonly database"):
        reader.take_lease("you", seen=reader.lease())


def test_a_ledger_that_only_reads_does_not_bring_an_old_file_up_to_date(old_file: Path) -> None:
    before = old_file.read_bytes()
    with pytest.raises(StateError, match="must have schema version 2; got 1"):
        Ledger(old_file, reads_only=True)
    assert old_file.read_bytes() == before


def test_a_file_refuses_a_writer_on_a_second_machine_and_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    Store(file, machine_id="m1").close()
    Store(file, machine_id="m1").close()
    with pytest.raises(StateError, match="belongs to machine m1, and this is m2") as refusal:
        Store(file, machine_id="m2")
    assert "Set provider.store to kind: postgresql with url_env" in str(refusal.value)


def test_the_command_that_the_refusal_names_moves_the_file_for_good(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    Store(file, machine_id="m1").close()
    with pytest.raises(StateError) as refusal:
        Store(file, machine_id="m2")
    statement = str(refusal.value).split('"')[1]
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    Store(file, machine_id="m2").close()
    with pytest.raises(StateError, match="belongs to machine m2"):
        Store(file, machine_id="m1")


def test_a_second_machine_may_read(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    Store(file, machine_id="m1").close()
    Store(file, machine_id="m2", reads_only=True).close()
