"""The latest targets on the blackboard, read in the background and handed out without waiting.

Lives in Serve's controller, whose loop must never wait for the GCS: a thread reads, callers get
what it read last. Targets nobody can read and targets that don't exist are the same here: both mean
"keep what is".
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from deployments.signals import Blackboard, Targets

_READ_S = 0.5
_WARN_S = 30.0

_log = logging.getLogger("ray.serve")


class TargetReader:
    """Reads targets every `read_s` seconds from its first use until the process ends."""

    def __init__(
        self, open_board: Callable[[], Blackboard] = Blackboard.from_ray, *, read_s: float = _READ_S
    ) -> None:
        self._open_board = open_board
        self._read_s = read_s
        self._board: Blackboard | None = None
        self._latest: Targets | None = None
        self._warned_s: float | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def find_targets(self, app: str) -> Mapping[str, int]:
        """Return the last numbers known for an application's deployments; never blocks."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._read_for_ever, name="tidegate-targets", daemon=True
                )
                self._thread.start()
            latest = self._latest
        return latest.replicas.get(app, {}) if latest is not None else {}

    def read_once(self) -> None:
        """Look at the blackboard; on failure the last numbers stay."""
        try:
            if self._board is None:
                self._board = self._open_board()
            targets = self._board.get_targets()
        except Exception as exc:  # noqa: BLE001 - whatever the GCS client raises, the numbers stay
            self._warn(exc)
            return
        if targets is not None:
            with self._lock:
                self._latest = targets

    def _read_for_ever(self) -> None:
        while True:
            self.read_once()
            time.sleep(self._read_s)

    def _warn(self, exc: Exception) -> None:
        """Say that targets can't be read, now and then."""
        now_s = time.monotonic()
        if self._warned_s is None or now_s - self._warned_s > _WARN_S:
            self._warned_s = now_s
            _log.warning("targets can't be read, the last numbers are kept: %s", exc)


READER = TargetReader()
"""The one reader of this process."""
