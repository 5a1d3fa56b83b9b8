"""A cluster file that is changed while the autoscaler runs: the last good one counts."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaling.ray_monitor import ConfigReader
from autoscaling.settings_reader import SettingsReader


@pytest.fixture
def file(tmp_path: Path, cluster_content: dict[str, Any]) -> Path:
    made = tmp_path / "cluster.yaml"
    write(made, cluster_content)
    return made


def write(file: Path, content: dict[str, Any] | str) -> None:
    """Replace the file in one step, as an editor does, with a change time of its own."""
    draft = file.with_suffix(".draft")
    draft.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    stamp = file.stat().st_mtime_ns + 10**9 if file.exists() else draft.stat().st_mtime_ns
    os.utime(draft, ns=(stamp, stamp))
    draft.replace(file)


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("limits", "usd_per_day", -1, "provider.limits.usd_per_day"),
        ("limits", "soft_ratio", 2, "provider.limits.soft_ratio"),
        ("store", "kind", "mysql", "provider.store.kind"),
        ("burst", "starting_s_max", 0, "provider.burst.starting_s_max"),
    ],
)
def test_a_mistake_in_any_section_leaves_the_former_settings_and_names_the_key(
    file: Path,
    cluster_content: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    section: str,
    key: str,
    value: object,
    named: str,
) -> None:
    reader = SettingsReader(file)
    former = reader.read()
    cluster_content["provider"].setdefault(section, {})[key] = value
    write(file, cluster_content)
    assert reader.read() is former
    assert reader.error is not None
    assert named in reader.error
    reader.read()
    assert caplog.text.count("the former one stays in force") == 1


def test_the_next_good_file_is_used_and_the_error_is_gone(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    reader = SettingsReader(file)
    write(file, "cluster_name: [truncated")
    reader.read()
    assert reader.error is not None
    cluster_content["provider"]["limits"]["launches_per_tick"] = 7
    write(file, cluster_content)
    assert reader.read().limits.launches_per_tick == 7
    assert reader.error is None


def test_rays_reader_keeps_its_last_good_file_too(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    """Ray's own reads the file at every tick, and one it can't read stops them all."""
    reader = ConfigReader(file)
    write(file, "cluster_name: [truncated")
    reader.refresh_cached_autoscaling_config()
    assert reader.get_cached_autoscaling_config().get_max_num_nodes() == 5
    assert reader.error is not None
    cluster_content["max_workers"] = 9
    write(file, cluster_content)
    reader.refresh_cached_autoscaling_config()
    assert reader.get_cached_autoscaling_config().get_max_num_nodes() == 10
    assert reader.error is None
