"""Who asks: keys are looked up by their hash in a file that is read again whenever it changes.

The file holds SHA-256 hashes only; keys are long and random, so a slow hash would add nothing. A
change that can't be read keeps the last good keys: a typo must not lock everybody out or in.
"""

import hashlib
import logging
import os
import pwd
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ConfigError
from cluster.private_file import write_private
from deployments.refusals import NotAuthorisedError
from deployments.residency import DataClass

logger = logging.getLogger("ray.serve.tidegate.auth")

KEYS_FILE_VARIABLE = "TIDEGATE_KEYS_FILE"
_KEY_PREFIX = "tg-"
_CHECK_PERIOD_S = 1.0
_CREATE_COMMAND = "python -m deployments.auth create --tenant NAME"


class Tenant(BaseModel):
    """Whom a key belongs to and what it may do; `models` None means all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    data_class: DataClass
    may_burst: bool
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        """Whether this key may name `model`."""
        return self.models is None or model in self.models


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Tenant, ...]


class Keyring:
    """The keys of a file.

    Raises:
        ConfigError: on construction, if the file is missing, unreadable or open to others.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked_s = clock()
        self._stamp, self._tenants = _read(path)

    def identify(self, authorization: str | None) -> Tenant:
        """The tenant behind an `Authorization` header; NotAuthorisedError without one."""
        self._reload_if_changed()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hash_key(key.strip())
        found = None
        # Every entry is compared, so that the time taken tells nothing about which one matched.
        for tenant in self._tenants:
            if secrets.compare_digest(tenant.sha256, digest):
                found = tenant
        if found is None or scheme.lower() != "bearer":
            raise NotAuthorisedError(
                "A valid key must be given as `Authorization: Bearer <key>`; none was."
            )
        return found

    def _reload_if_changed(self) -> None:
        now_s = self._clock()
        if now_s - self._checked_s < _CHECK_PERIOD_S:
            return
        self._checked_s = now_s
        try:
            if _stamp(self._path) != self._stamp:
                self._stamp, self._tenants = _read(self._path)
                logger.info("Keys read again: %d", len(self._tenants))
        except (ConfigError, OSError) as exc:
            logger.error("The keys last read stay in force: %s", exc)  # noqa: TRY400 - one line


def keys_path(configured: str | None) -> Path:
    """Where the keys are: as configured, else $TIDEGATE_KEYS_FILE, else ~/.tidegate/keys.yaml."""
    chosen = configured or os.environ.get(KEYS_FILE_VARIABLE) or "~/.tidegate/keys.yaml"
    # A node of the embedded cluster has a HOME of its own, so `~` is the real user's.
    home = pwd.getpwuid(os.getuid()).pw_dir
    return Path(home, chosen[2:]) if chosen.startswith("~/") else Path(chosen)


def hash_key(key: str) -> str:
    """The hash under which a key is filed."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(
    path: Path,
    *,
    tenant: str,
    data_class: DataClass = DataClass.INTERNAL,
    may_burst: bool = True,
    models: frozenset[str] | None = None,
) -> str:
    """Return a new key after adding its hash to the file, made if it isn't there."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    entry = Tenant(
        sha256=hash_key(key),
        tenant=tenant,
        data_class=data_class,
        may_burst=may_burst,
        models=models,
    )
    entries = (*(_read(path)[1] if path.exists() else ()), entry)
    rows = [
        {
            **one.model_dump(mode="json", exclude={"models"}),
            "models": None if one.models is None else sorted(one.models),
        }
        for one in entries
    ]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, yaml.safe_dump({"keys": rows}, sort_keys=False))
    return key


def _read(path: Path) -> tuple[tuple[int, int, int], tuple[Tenant, ...]]:
    try:
        stamp = _stamp(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text()
    except OSError as exc:
        raise ConfigError(
            f"The keys file {path} must be readable; {exc.strerror}. "
            f"Create it with: {_CREATE_COMMAND} --file {path}"
        ) from exc
    if mode & 0o077:
        raise ConfigError(
            f"The keys file {path} must be its owner's alone; got mode {mode:o}. "
            f"Fix it with: chmod 600 {path}"
        )
    try:
        return stamp, _KeysFile.model_validate(yaml.safe_load(text)).keys
    except yaml.YAMLError as exc:
        raise ConfigError(f"The keys file {path} must be YAML; it can't be read.") from exc
    except ValidationError as exc:
        mistakes = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
            for error in exc.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"The keys file {path} holds mistakes: {mistakes}.") from exc


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def main() -> None:
    """`python -m deployments.auth create --tenant NAME`: make a key and print it once."""
    import argparse  # noqa: PLC0415 - for the command line only

    parser = argparse.ArgumentParser(prog="python -m deployments.auth", description=main.__doc__)
    parser.add_argument("verb", choices=["create"])
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--data-class", default="internal", choices=list(DataClass))
    parser.add_argument("--no-burst", action="store_true", help="owned sites only")
    parser.add_argument("--model", action="append", help="a model it may use; all by default")
    parser.add_argument("--file", default=None)
    chosen = parser.parse_args()
    key = create_key(
        keys_path(chosen.file),
        tenant=chosen.tenant,
        data_class=DataClass(chosen.data_class),
        may_burst=not chosen.no_burst,
        models=frozenset(chosen.model) if chosen.model else None,
    )
    print(key)  # noqa: T201 - the command's answer


if __name__ == "__main__":
    main()
