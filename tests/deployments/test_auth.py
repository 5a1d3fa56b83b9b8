"""Keys: found by hash, read again on change, and a broken change keeps the last good ones."""

from pathlib import Path

import pytest
import yaml

from cluster.errors import ConfigError
from deployments.auth import Keyring, create_key, hash_key, keys_path
from deployments.refusals import NotAuthorisedError
from deployments.residency import DataClass


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 10.0
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "keys.yaml"


def test_a_created_key_is_recognised_with_what_it_may_do(path: Path) -> None:
    key = create_key(
        path,
        tenant="lab",
        data_class=DataClass.RESTRICTED,
        may_burst=False,
        models=frozenset({"a"}),
    )
    tenant = Keyring(path).identify(f"Bearer {key}")
    assert (tenant.tenant, tenant.data_class, tenant.may_burst) == ("lab", "restricted", False)
    assert tenant.may_use("a")
    assert not tenant.may_use("b")


def test_the_file_holds_hashes_and_is_its_owners_alone(path: Path) -> None:
    key = create_key(path, tenant="lab")
    assert key not in path.read_text()
    assert hash_key(key) in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert hash_key(key) not in repr(Keyring(path).identify(f"Bearer {key}"))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x"],
)
def test_anything_but_the_key_is_refused_in_one_way(path: Path, header: str | None) -> None:
    key = create_key(path, tenant="lab")
    keyring = Keyring(path)
    with pytest.raises(NotAuthorisedError) as caught:
        keyring.identify(header and header.format(key=key))
    assert caught.value.to_dict()["error"]["code"] == "invalid_api_key"


def test_a_new_key_works_and_a_removed_one_stops_without_a_restart(path: Path) -> None:
    first = create_key(path, tenant="a")
    keyring = Keyring(path, clock=Clock())
    second = create_key(path, tenant="b")
    assert keyring.identify(f"Bearer {second}").tenant == "b"
    rows = yaml.safe_load(path.read_text())["keys"]
    path.write_text(yaml.safe_dump({"keys": rows[1:]}))
    with pytest.raises(NotAuthorisedError):
        keyring.identify(f"Bearer {first}")


@pytest.mark.parametrize("text", ["keys: [", "keys: [{tenant: x}]", "nothing: 1"])
def test_a_broken_change_keeps_the_last_good_keys(path: Path, text: str) -> None:
    key = create_key(path, tenant="a")
    keyring = Keyring(path, clock=Clock())
    path.write_text(text)
    assert keyring.identify(f"Bearer {key}").tenant == "a"
    path.unlink()
    assert keyring.identify(f"Bearer {key}").tenant == "a"


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python -m deployments\.auth create --tenant NAME"):
        Keyring(tmp_path / "none.yaml")


def test_a_file_others_can_read_is_refused_with_the_fix(path: Path) -> None:
    create_key(path, tenant="a")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keyring(path)


def test_mistakes_are_named_without_their_values(path: Path) -> None:
    create_key(path, tenant="a")
    path.write_text("keys: [{sha256: hunter2, tenant: a, data_class: internal, may_burst: yes}]")
    with pytest.raises(ConfigError, match=r"keys\.0\.sha256") as caught:
        Keyring(path)
    assert "hunter2" not in str(caught.value)


def test_the_path_is_configured_or_in_the_environment_or_at_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIDEGATE_KEYS_FILE", "/etc/keys.yaml")
    assert keys_path("/a.yaml") == Path("/a.yaml")
    assert keys_path(None) == Path("/etc/keys.yaml")
    monkeypatch.delenv("TIDEGATE_KEYS_FILE")
    assert keys_path(None) == Path("~/.tidegate/keys.yaml").expanduser()
