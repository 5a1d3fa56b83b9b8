"""An owner ends with its object, its process or its machine's boot; elsewhere nothing is known."""

import os
from pathlib import Path

import pytest

from cluster import owner as owners
from cluster.machine import read_machine_id
from cluster.owner import close_owner, has_ended, is_alive, is_of_this_machine, open_owner

HERE = ("m1", "b1")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is m1 in boot b1, whatever it is called."""
    monkeypatch.setattr(owners, "_machine", lambda: HERE[0])
    monkeypatch.setattr(owners, "_boot_id", lambda: HERE[1])


def test_an_owner_ends_with_its_object() -> None:
    owner = open_owner()
    assert is_alive(owner)
    close_owner(owner)
    assert has_ended(owner)
    assert not is_alive(owner)


def test_an_owner_ends_with_its_process() -> None:
    machine, boot, namespace, pid, start, name = open_owner().split("/")
    assert has_ended("/".join([machine, boot, namespace, pid, str(int(start) + 1), name]))


def test_an_owner_has_ended_although_its_parent_never_asks_how() -> None:
    """In a container without an init, what was killed stays in the process list for ever."""
    pipe_read, pipe_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(pipe_write, open_owner().encode())
        os._exit(0)
    owner = os.read(pipe_read, 1000).decode()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert Path(f"/proc/{pid}/stat").exists()
        assert has_ended(owner)
    finally:
        os.waitpid(pid, 0)
        os.close(pipe_read)
        os.close(pipe_write)


def test_an_owner_ends_with_its_machines_boot() -> None:
    _, _, *rest = open_owner().split("/")
    assert has_ended("/".join(["m1", "b0", *rest]))


@pytest.mark.parametrize(("place", "changed"), [(0, "m2"), (2, "4026531000")])
def test_nothing_is_known_of_an_owner_on_another_machine_or_in_another_container(
    place: int, changed: str
) -> None:
    parts = open_owner().split("/")
    parts[place] = changed
    owner = "/".join(parts)
    assert not is_of_this_machine(owner)
    assert not has_ended(owner)
    assert not is_alive(owner)


def test_machines_without_an_id_are_never_taken_for_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owners, "_machine", lambda: "unknown")
    _, _, *rest = open_owner().split("/")
    assert not has_ended("/".join(["unknown", "b0", *rest]))


def test_nothing_is_known_of_what_is_no_owners_name() -> None:
    for owner in ("nonsense", "another-boot/1/2/abcd", "", "m1/b1"):
        assert not is_alive(owner)
        assert not is_of_this_machine(owner)


def test_a_machine_is_known_by_the_first_file_that_holds_an_id(tmp_path: Path) -> None:
    empty, good = tmp_path / "empty", tmp_path / "good"
    empty.write_text("\n")
    good.write_text("0123abcd\n")
    assert read_machine_id((tmp_path / "none", empty, good)) == "0123abcd"
    assert read_machine_id((tmp_path / "none", empty)) is None
