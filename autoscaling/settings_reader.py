"""The cluster file, read again when it changes; the last good content counts, also after a restart.

    present file good ──▶ in force, and kept in the copy beside it
    present file bad  ──▶ the former one stays in force; a new process takes it from the copy

Ray and we read the same content here, so that they never follow two different files.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.config import ClusterSettings, parse_cluster_config, read_cluster_file
from cluster.errors import ConfigError
from cluster.store_place import Place, find_place

_log = logging.getLogger(__name__)

_COPY_SUFFIX = ".last-good"
_LEAD = "the cluster file can't be used, the former one stays in force"

Stamp = tuple[int, int]
"""Change time and size of a file; zeros while there is none."""

Check = Callable[[Mapping[str, Any]], None]
"""Raises ConfigError for content that somebody else can't use."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The content that counts, and what it says. `problem` says why the present file doesn't."""

    content: Mapping[str, Any]
    settings: ClusterSettings
    problem: str | None = None


class SettingsReader:
    """Settings of one cluster file, its last good content kept beside it. Thread-safe.

    Raises:
        ConfigError: the file holds mistakes when it is first read, and there is no copy of a
            former one.
    """

    def __init__(self, path: Path, *, check: Check = lambda _: None) -> None:
        self._path = path
        self._check = check
        self._lock = threading.Lock()
        self._stamp = read_stamp(path)
        self._copy_problem: str | None = None
        self._in_force = read_in_force(path, check=check)
        if self._in_force.problem is None:
            self._keep()
        else:
            _log.error("%s", self._in_force.problem)

    @property
    def error(self) -> str | None:
        """What a person must mend, in words; None if nothing."""
        return self._in_force.problem or self._copy_problem

    def read(self) -> ClusterSettings:
        """Return the settings. A file that has become invalid is reported once and not used."""
        return self._read().settings

    def read_content(self) -> Mapping[str, Any]:
        """Return what the settings were read from: the same object until a good file replaces it.

        Not to be changed by the caller.
        """
        return self._read().content

    def _read(self) -> InForce:
        with self._lock:
            stamp = read_stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._in_force

    def _read_again(self) -> None:
        former = self._in_force
        try:
            self._in_force = _load(self._path, self._check)
        except ConfigError as exc:
            self._in_force = InForce(former.content, former.settings, f"{_LEAD}: {exc}")
            _log.error("%s", self._in_force.problem)
        else:
            self._keep()
            _log.info("settings read again from %s", self._path)

    def _keep(self) -> None:
        """Keep what is in force for the next process; one that can't be kept counts all the same.

        Ours is not the only process that keeps it, hence a new file that replaces the former.
        """
        try:
            _replace(find_copy(self._path), yaml.safe_dump(dict(self._in_force.content)))
        except OSError as exc:
            self._copy_problem = f"the cluster file can't be kept for a restart: {exc}"
            _log.exception("%s", self._copy_problem)
        else:
            self._copy_problem = None


def read_in_force(path: Path, *, check: Check = lambda _: None) -> InForce:
    """Return the present file's content, or the copy of the last good one if it can't be used.

    Raises:
        ConfigError: the file can't be used, and there is no copy of this cluster's that can.
    """
    try:
        return _load(path, check)
    except ConfigError as exc:
        copy = find_copy(path)
        if not copy.exists():
            raise
        try:
            kept = _load(copy, check)
        except ConfigError as also:
            raise ConfigError(f"{exc}\nThe copy of the last good one is no better: {also}") from exc
        if _name_cluster(path) not in (None, kept.settings.cluster_name):
            # What another cluster left on this machine.
            raise
        return InForce(kept.content, kept.settings, f"{_LEAD}, as kept in {copy}: {exc}")


def find_outdated(began_with: ClusterSettings, now: ClusterSettings) -> tuple[str, ...]:
    """Return the sections of `provider` that a node provider built earlier doesn't know yet.

    Ray builds the provider once in a process, from the file as it was then.
    """
    before, after = _list_provider_sections(began_with), _list_provider_sections(now)
    return tuple(name for name in before if before[name] != after[name])


def find_copy(path: Path) -> Path:
    """Return where the last good content of a cluster file is kept, readable by its owner only."""
    return path.with_name(path.name + _COPY_SUFFIX)


def find_ledger(settings: ClusterSettings) -> Place:
    """Return where the cluster's ledger is.

    Raises:
        StateError: it is to be in PostgreSQL, and the URL isn't in the environment.
    """
    return find_place(
        settings.store,
        state_dir=settings.state_dir,
        cluster=settings.cluster_name,
        environment=os.environ,
    )


def read_stamp(path: Path) -> Stamp:
    """Return what changes when the file is written or replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _load(path: Path, check: Check) -> InForce:
    content = read_cluster_file(path)
    settings = parse_cluster_config(content, file=str(path))
    check(content)
    return InForce(content, settings)


def _name_cluster(path: Path) -> object:
    """Return the name in a file that can't be used otherwise, None if there is none to be read."""
    try:
        return read_cluster_file(path).get("cluster_name")
    except ConfigError:
        return None


def _replace(path: Path, text: str) -> None:
    """Write a file of mode 600 in one step: whoever reads it finds the former or the new one."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise


def _list_provider_sections(settings: ClusterSettings) -> dict[str, object]:
    offers = {
        name: (one.site, one.market, one.usd_per_hour) for name, one in settings.node_types.items()
    }
    return {
        "sites": settings.sites,
        "node_types": offers,
        "limits": settings.limits,
        "ports": settings.ports,
        "store": settings.store,
    }
