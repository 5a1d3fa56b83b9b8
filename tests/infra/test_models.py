"""Unpacking the embedded model is safe against kills and neighbours; the real one is in e2e."""

from pathlib import Path

import pytest

import infra.models
from cluster.errors import ConfigError
from infra.models import SMOLLM2, ensure_smollm2


def ignore_progress(share: float, step: str) -> None: ...


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the half-minute conversion by one that writes a file and is counted."""
    done: list[Path] = []

    def convert(source_dir: Path, target_dir: Path, progress: object) -> None:
        (target_dir / "model.safetensors").write_text("weights")
        done.append(target_dir)

    monkeypatch.setattr(infra.models, "_convert", convert)
    return done


def test_the_model_is_converted_once_and_found_afterwards(
    tmp_path: Path, conversions: list[Path]
) -> None:
    first = ensure_smollm2(ignore_progress, tmp_path)
    assert ensure_smollm2(ignore_progress, tmp_path) == first
    assert (first / "model.safetensors").read_text() == "weights"
    assert len(conversions) == 1


def test_a_conversion_that_fails_leaves_no_finished_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(infra.models, "_convert", fail)
    with pytest.raises(OSError, match="no space"):
        ensure_smollm2(ignore_progress, tmp_path)
    assert not (tmp_path / SMOLLM2).exists()


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path, conversions: list[Path]) -> None:
    abandoned = tmp_path / f".{SMOLLM2}.killed"
    abandoned.mkdir()
    ensure_smollm2(ignore_progress, tmp_path)
    assert not abandoned.exists()
    assert (tmp_path / SMOLLM2).is_dir()


def test_progress_ends_at_one(tmp_path: Path, conversions: list[Path]) -> None:
    shares: list[float] = []
    ensure_smollm2(lambda share, _: shares.append(share), tmp_path)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_missing_package_names_the_command_that_fixes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="make setup"):
        ensure_smollm2(ignore_progress, tmp_path)
