"""The cluster file, read again when it changes; the last good content counts."""

import logging
import os
import threading
from pathlib import Path

from cluster.config import ClusterSettings, load_cluster_file
from cluster.errors import ConfigError
from cluster.store_place import Place, find_place

_log = logging.getLogger(__name__)

Stamp = tuple[int, int]
"""Change time and size of a file; zeros while there is none."""


class SettingsReader:
    """Settings of one cluster file. Thread-safe.

    Raises:
        ConfigError: the file holds mistakes when it is first read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = read_stamp(path)
        self._settings = load_cluster_file(path)
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """Why the file as it is now isn't used, None if it is."""
        return self._error

    def read(self) -> ClusterSettings:
        """Return the settings. A file that has become invalid is reported once and not used."""
        with self._lock:
            stamp = read_stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._settings

    def _read_again(self) -> None:
        try:
            self._settings = load_cluster_file(self._path)
        except ConfigError as exc:
            self._error = f"the cluster file can't be used, the former one stays in force: {exc}"
            _log.error("%s", self._error)
        else:
            self._error = None
            _log.info("settings read again from %s", self._path)


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
