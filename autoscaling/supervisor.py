"""Keeps one autoscaler process running for as long as its Ray session lives.

    head start commands ──▶ monitor --supervise ──▶ supervisor ──▶ autoscaler
                             (returns at once)       (restarts it)   (Ray's monitor, brain)

The supervisor restarts the autoscaler when it ends, later each time it ends early, and ends it and
itself when the session is over: nobody listens at the GCS's address, or the session's folder is
another one's. If the supervisor is killed, the pipe it holds closes; the autoscaler then starts a
new supervisor and ends itself. A lock in the session's log folder keeps it to one of each. If both
are gone at once (the supervisor killed during the pause before a restart), `ray up` starts them.

Standard library only: it must outlive whatever breaks the autoscaler.
"""

import fcntl
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

_log = logging.getLogger(__name__)

_CHECK_S = 1.0
_CONNECT_S = 1.0
_SILENCE_S_MAX = 3.0
_GRACE_S = 3.0
_LOCK_WAIT_S = 15.0
_BACK_OFF_S_MIN = 1.0
_BACK_OFF_S_MAX = 30.0
_HEALTHY_S = 60.0
_LOCK_NAME = "autoscaler.lock"


@dataclass(frozen=True, slots=True)
class Session:
    """The Ray session to serve: its GCS and its log folder, which may lead through a link.

    `logs_dir` is where the folder was when the supervisor started; `logs_path` as it was named.
    """

    gcs_address: str
    logs_path: Path
    logs_dir: Path

    @classmethod
    def find(cls, *, gcs_address: str, logs_dir: str) -> "Session":
        """The session whose logs are in `logs_dir`, usually `.../session_latest/logs`."""
        path = Path(logs_dir)
        return cls(gcs_address, path, path.resolve())

    def is_current(self) -> bool:
        """Whether the folder still is the session's; a restarted head has another."""
        return self.logs_path.resolve() == self.logs_dir

    def answers(self) -> bool:
        """Whether somebody listens at the GCS's address."""
        host, _, port = self.gcs_address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
                return True
        except OSError:
            return False


class Supervisor:
    """Runs the autoscaler's command again and again until the session is over."""

    def __init__(self, session: Session, command: Sequence[str]) -> None:
        self._session = session
        self._command = list(command)
        self._is_ending = False
        self._answered_s = time.monotonic()
        self._back_off_s = _BACK_OFF_S_MIN

    def run(self) -> int:
        """Return 0 once the session is over or somebody asked to end, and nothing is left."""
        lock = _take_lock(self._session.logs_dir / _LOCK_NAME, keep_trying=self._goes_on)
        if lock is None:
            _log.info("another supervisor serves this session: nothing to do")
            return 0
        signal.signal(signal.SIGTERM, self._ask_to_end)
        signal.signal(signal.SIGINT, self._ask_to_end)
        with lock:
            while self._goes_on():
                self._run_once()
        return 0

    def _run_once(self) -> None:
        """Run the autoscaler until it ends or has to, then wait if it ended early."""
        began_s = time.monotonic()
        child = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        _log.info("autoscaler started, process %d", child.pid)
        try:
            while child.poll() is None and self._goes_on():
                _wait(child, _CHECK_S)
        finally:
            _end(child)
        if not self._goes_on():
            _log.info("the session is over: autoscaler %d ended", child.pid)
            return
        self._back_off(child, lived_s=time.monotonic() - began_s)

    def _back_off(self, child: subprocess.Popen[bytes], *, lived_s: float) -> None:
        """Wait before the next start: not at all after a long life, longer after each short one."""
        pause_s = 0.0 if lived_s > _HEALTHY_S else self._back_off_s
        _log.warning(
            "autoscaler %d ended with %s after %.0f s; next start in %.0f s",
            child.pid,
            child.returncode,
            lived_s,
            pause_s,
        )
        self._back_off_s = min(2 * pause_s, _BACK_OFF_S_MAX) or _BACK_OFF_S_MIN
        deadline_s = time.monotonic() + pause_s
        while time.monotonic() < deadline_s and self._goes_on():
            time.sleep(min(_CHECK_S, max(0.0, deadline_s - time.monotonic())))

    def _goes_on(self) -> bool:
        """Whether the session still lives; one missed answer of its GCS isn't its end."""
        if self._is_ending or not self._session.is_current():
            return False
        if self._session.answers():
            self._answered_s = time.monotonic()
        return time.monotonic() - self._answered_s < _SILENCE_S_MAX

    def _ask_to_end(self, _number: int, _frame: FrameType | None) -> None:
        self._is_ending = True


def start_detached(command: Sequence[str], *, log_path: Path) -> int:
    """Return the process id of a command started in a session of its own, its output in a file."""
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return child.pid


def watch_parent(on_gone: Callable[[], None]) -> None:
    """Call `on_gone` from a thread when the process that holds our standard input's pipe ends.

    Started by hand, without a pipe, there is nobody to watch.
    """
    if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        return

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        on_gone()

    threading.Thread(target=wait, name="watch-supervisor", daemon=True).start()


def _take_lock(path: Path, *, keep_trying: Callable[[], bool]) -> IO[bytes] | None:
    """Return the held lock, None if another holds it for longer than it takes one to end."""
    lock = path.open("ab")
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while time.monotonic() < deadline_s and keep_trying():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_CHECK_S)
        else:
            return lock
    lock.close()
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process: asked first, then killed. One that has ended already is only collected."""
    if child.poll() is None:
        child.terminate()
        if not _wait(child, _GRACE_S):
            child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _wait(child: subprocess.Popen[bytes], duration_s: float) -> bool:
    """Whether the process ended within that time; returns as soon as it does."""
    try:
        child.wait(duration_s)
    except subprocess.TimeoutExpired:
        return False
    return True
