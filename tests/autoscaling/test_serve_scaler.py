"""The policy that repeats the brain's numbers: says only what must change, and never raises."""

from dataclasses import dataclass
from typing import Any

import pytest

from autoscaling import target_reader
from autoscaling.serve_scaler import apply_targets
from autoscaling.target_reader import TargetReader
from deployments.signals import Targets


@dataclass(frozen=True)
class Id:
    """As Ray's DeploymentID."""

    name: str
    app_name: str = "m"


@dataclass
class Context:
    """The one field of Ray's AutoscalingContext that is read."""

    target_num_replicas: int


class Board:
    """A blackboard that gives targets, or fails."""

    def __init__(self) -> None:
        self.targets: Targets | None = None
        self.is_broken = False

    def get_targets(self) -> Targets | None:
        if self.is_broken:
            raise ConnectionError("the GCS is away")
        return self.targets


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """The board behind this process's reader; nothing reads in the background."""
    found = Board()
    reader = TargetReader(lambda: found)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(TargetReader, "_read_for_ever", lambda _: None)
    monkeypatch.setattr(target_reader, "READER", reader)
    return found


def ask(**targets_now: int) -> dict[str, int]:
    contexts = {Id(name): Context(number) for name, number in targets_now.items()}
    changes, state = apply_targets(contexts)
    assert state == {}
    return {deployment.name: number for deployment, number in changes.items()}


def test_without_targets_every_number_stays(board: Board) -> None:
    target_reader.READER.read_once()
    assert ask(onprem=1, cloud=0) == {}


def test_only_what_must_change_is_said(board: Board) -> None:
    """A deployment at its number is left out, or Serve would wake a draining one up again."""
    board.targets = Targets(1.0, {"m": {"onprem": 1, "cloud": 2}, "other": {"onprem": 7}})
    target_reader.READER.read_once()
    assert ask(onprem=1, cloud=0) == {"cloud": 2}
    assert ask(onprem=1, cloud=2) == {}
    assert ask(front=1) == {}


def test_the_last_numbers_hold_when_the_board_is_away(board: Board) -> None:
    board.targets = Targets(1.0, {"m": {"cloud": 2}})
    target_reader.READER.read_once()
    board.is_broken = True
    target_reader.READER.read_once()
    assert ask(cloud=0) == {"cloud": 2}


def test_it_never_raises(board: Board) -> None:
    odd: dict[Any, Any] = {object(): object()}
    assert apply_targets(odd) == ({}, {})


def test_a_board_that_cannot_be_opened_is_tried_again() -> None:
    boards: list[Any] = [ConnectionError("not yet"), Board()]

    def open_board() -> Any:
        found = boards.pop(0)
        if isinstance(found, Exception):
            raise found
        found.targets = Targets(1.0, {"m": {"cloud": 1}})
        return found

    reader = TargetReader(open_board, read_s=3600.0)
    reader.read_once()
    reader.read_once()
    assert reader.find_targets("m") == {"cloud": 1}
