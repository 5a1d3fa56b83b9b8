"""The key that `tidegate serve` prints is one the gateway accepts, whatever was there before."""

from pathlib import Path

from deployments.auth import Keyring, create_key
from infra.local_key import ensure_local_key


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    assert ensure_local_key(tmp_path) == ensure_local_key(tmp_path)


def test_the_key_is_accepted_beside_keys_made_earlier(tmp_path: Path) -> None:
    earlier = create_key(tmp_path / "keys.yaml", tenant="team")
    key, keys_file = ensure_local_key(tmp_path)
    keyring = Keyring(keys_file)
    assert keyring.identify(f"Bearer {key}").tenant == "local"
    assert keyring.identify(f"Bearer {earlier}").tenant == "team"


def test_an_empty_key_left_by_a_kill_is_replaced(tmp_path: Path) -> None:
    ensure_local_key(tmp_path)
    (tmp_path / "local.key").write_text("")
    key, keys_file = ensure_local_key(tmp_path)
    assert Keyring(keys_file).identify(f"Bearer {key}").tenant == "local"


def test_both_files_are_their_owners_alone(tmp_path: Path) -> None:
    ensure_local_key(tmp_path)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("local.key", "keys.yaml")}
    assert modes == {"local.key": 0o600, "keys.yaml": 0o600}
