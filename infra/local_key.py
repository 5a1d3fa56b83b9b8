"""This machine's own key: made once, kept beside the keys file, so that a restart keeps it."""

from pathlib import Path

from filelock import FileLock

from cluster.private_file import write_private
from deployments.auth import Keyring, create_key
from deployments.refusals import NotAuthorisedError
from deployments.residency import DataClass


def ensure_local_key(state_dir: Path) -> tuple[str, Path]:
    """Return the key and the gateway's keys file, both mode 600; safe against a second start.

    A key whose hash is missing from the file is replaced: the file is the authority.

    Raises:
        ConfigError: the keys file exists and can't be used; says why and what to type.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    key_file, keys_file = state_dir / "local.key", state_dir / "keys.yaml"
    with FileLock(state_dir / ".local-key.lock"):
        key = key_file.read_text().strip() if key_file.exists() else ""
        if not _is_known(key, keys_file):
            key = create_key(keys_file, tenant="local", data_class=DataClass.PUBLIC)
            write_private(key_file, key)
    return key, keys_file


def _is_known(key: str, keys_file: Path) -> bool:
    if not keys_file.exists():
        return False
    try:
        Keyring(keys_file).identify(f"Bearer {key}")
    except NotAuthorisedError:
        return False
    return True
