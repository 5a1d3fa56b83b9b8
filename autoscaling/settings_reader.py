"""The cluster file, read again when it changes; the last good content counts."""

import logging
import threading
from pathlib import Path

from cluster.config import ClusterSettings, load_cluster_file
from cluster.errors import ConfigError

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
            _log.error("the former settings stay in force: %s", exc)
        else:
            _log.info("settings read again from %s", self._path)


def read_stamp(path: Path) -> Stamp:
    """Return what changes when the file is written or replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
