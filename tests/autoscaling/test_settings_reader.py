"""A cluster file that changes under the autoscaler: the last good one counts, restarts included."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaling.ray_monitor import ConfigReader, check_as_ray
from autoscaling.settings_reader import SettingsReader, find_copy, find_outdated
from cluster.errors import ConfigError


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


def test_ray_keeps_the_last_good_content_too_and_takes_over_the_next(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    """Ray's own reads the file at every tick, and one it can't read stops them all."""
    settings = SettingsReader(file, check=check_as_ray)
    ray_reader = ConfigReader(settings.read_content)
    write(file, "cluster_name: [truncated")
    ray_reader.refresh_cached_autoscaling_config()
    assert ray_reader.get_cached_autoscaling_config().get_max_num_nodes() == 5
    assert settings.error is not None
    cluster_content["max_workers"] = 9
    write(file, cluster_content)
    ray_reader.refresh_cached_autoscaling_config()
    assert ray_reader.get_cached_autoscaling_config().get_max_num_nodes() == 10
    assert settings.error is None


def test_what_ray_alone_refuses_is_in_force_for_neither(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    def refuse_seven(content: Mapping[str, Any]) -> None:
        if content["max_workers"] == 7:
            raise ConfigError("Ray refuses it: seven")

    settings = SettingsReader(file, check=refuse_seven)
    former = settings.read()
    cluster_content["max_workers"] = 7
    cluster_content["provider"]["limits"]["launches_per_tick"] = 7
    write(file, cluster_content)
    assert settings.read() is former
    assert settings.error is not None
    assert "seven" in settings.error
    assert find_copy(file).exists()
    assert yaml.safe_load(find_copy(file).read_text())["max_workers"] == 4


def test_rays_checks_refuse_a_content_that_they_cant_use(cluster_content: dict[str, Any]) -> None:
    cluster_content["upscaling_speed"] = "fast"
    with pytest.raises(ConfigError, match="Ray refuses it: 'fast' is not of type 'number'"):
        check_as_ray(cluster_content)


def test_a_new_process_takes_the_last_good_copy_while_the_file_is_bad(
    file: Path, cluster_content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cluster_content["provider"]["limits"]["launches_per_tick"] = 7
    write(file, cluster_content)
    SettingsReader(file)
    write(file, "cluster_name: [truncated")
    after_restart = SettingsReader(file, check=check_as_ray)
    assert after_restart.read().limits.launches_per_tick == 7
    ray_config = ConfigReader(after_restart.read_content).get_cached_autoscaling_config()
    assert ray_config.get_provider_config()["limits"]["launches_per_tick"] == 7
    assert after_restart.error is not None
    assert f"the former one stays in force, as kept in {find_copy(file)}" in after_restart.error
    assert caplog.text.count("as kept in") == 1
    write(file, cluster_content)
    after_restart.read()
    assert after_restart.error is None


def test_the_copy_follows_the_last_good_file_and_only_its_owner_reads_it(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    reader = SettingsReader(file)
    cluster_content["max_workers"] = 9
    write(file, cluster_content)
    reader.read()
    assert yaml.safe_load(find_copy(file).read_text())["max_workers"] == 9
    assert find_copy(file).stat().st_mode & 0o777 == 0o600
    write(file, "cluster_name: [truncated")
    reader.read()
    assert yaml.safe_load(find_copy(file).read_text())["max_workers"] == 9
    assert sorted(one.name for one in file.parent.iterdir()) == [file.name, find_copy(file).name]


def test_without_a_copy_a_bad_file_stops_the_start(file: Path) -> None:
    write(file, "cluster_name: [truncated")
    with pytest.raises(ConfigError, match="must be YAML"):
        SettingsReader(file)


def test_a_damaged_copy_is_named_beside_the_bad_file(file: Path) -> None:
    write(file, "cluster_name: [truncated")
    find_copy(file).write_text("")
    with pytest.raises(ConfigError, match=r"(?s)must be YAML.*The copy .* is no better"):
        SettingsReader(file)


def test_another_clusters_copy_on_the_same_machine_is_not_used(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    SettingsReader(file)
    cluster_content["cluster_name"] = "another"
    cluster_content["provider"]["limits"]["usd_per_hour"] = -1
    write(file, cluster_content)
    with pytest.raises(ConfigError, match=r"provider\.limits\.usd_per_hour"):
        SettingsReader(file)


def test_a_good_file_counts_although_it_cant_be_kept(
    file: Path, cluster_content: dict[str, Any]
) -> None:
    find_copy(file).mkdir()
    reader = SettingsReader(file)
    assert reader.read().limits.launches_per_tick == 3
    assert reader.error is not None
    assert "can't be kept for a restart" in reader.error
    assert list(file.parent.glob("*.last-good.*")) == []


@pytest.mark.parametrize(
    ("path", "value", "outdated"),
    [
        (("limits", "usd_per_hour"), 9, ("limits",)),
        (("sites", "cloud", "max_nodes"), 4, ("sites",)),
        (("node_types", "cloud_gpu", "usd_per_hour"), 2.5, ("node_types",)),
        (("burst",), {"up_after_s": 7.0}, ()),
    ],
)
def test_a_change_that_only_a_new_process_learns_is_named_and_others_are_not(
    file: Path, cluster_content: dict[str, Any], path: tuple[str, ...], value: object, outdated: Any
) -> None:
    reader = SettingsReader(file)
    began_with = reader.read()
    assert find_outdated(began_with, reader.read()) == ()
    section = cluster_content["provider"]
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    write(file, cluster_content)
    assert find_outdated(began_with, reader.read()) == outdated
