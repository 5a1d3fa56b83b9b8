"""The queue and the thread of one site: nothing slow about a site delays anybody else.

The thread does what was queued, in order, and looks at the site between that. What it does in one
step is in `cluster.site_worker`; here is only when.
"""

import queue
import threading
import time
from dataclasses import dataclass

from cluster.site_worker import SiteWorker, Task


@dataclass(frozen=True, slots=True)
class _Stop:
    """End the thread."""


class SiteThread:
    """Does one site's work. Thread-safe."""

    def __init__(self, worker: SiteWorker, *, poll_s: float) -> None:
        self.worker = worker
        self._poll_s = poll_s
        self._queue: queue.SimpleQueue[Task | _Stop | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"site-{worker.site}", daemon=True)
        # When the last look that succeeded began, by the monotonic clock.
        self._looked_s: float | None = None
        self._asked = self._done = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task; returns at once."""
        with self._changed:
            self._asked += 1
            self._queue.put(task)

    def stop(self, *, timeout_s: float) -> None:
        """Ask the thread to end after what is queued, and wait that long for it."""
        self._queue.put(_Stop())
        self._thread.join(timeout_s)

    @property
    def was_listed(self) -> bool:
        """Return whether the site has been listed since this thread began."""
        return self._looked_s is not None

    def wait_for_look(self, *, begun_after_s: float | None, timeout_s: float) -> bool:
        """Return whether a look at the site succeeds in time.

        Units: `begun_after_s` is by the monotonic clock; with None any look since the start will
        do, and with a time the thread is asked to look at once.
        """
        if begun_after_s is not None:
            self._queue.put(None)
        with self._changed:
            return self._changed.wait_for(lambda: self._has_looked(begun_after_s), timeout_s)

    def flush(self, *, timeout_s: float) -> bool:
        """Return whether all that was queued and every tag reached the site in time."""
        with self._changed:
            asked = self._asked
            return self._changed.wait_for(
                lambda: self._done >= asked and not self.worker.has_unsent_tags, timeout_s
            )

    def _has_looked(self, begun_after_s: float | None) -> bool:
        if self._looked_s is None:
            return False
        return begun_after_s is None or self._looked_s >= begun_after_s

    def _run(self) -> None:
        next_look_s = time.monotonic()
        while True:
            task = self._take(timeout_s=max(0.0, next_look_s - time.monotonic()))
            if isinstance(task, _Stop):
                self.worker.send_tags()
                return
            if task is not None:
                self.worker.perform(task)
            # Many tasks at once share one look, and a long queue can't put it off.
            if self._queue.empty() or time.monotonic() >= next_look_s:
                self._look()
                next_look_s = time.monotonic() + self._poll_s
            with self._changed:
                self._done += task is not None
                self._changed.notify_all()

    def _take(self, *, timeout_s: float) -> Task | _Stop | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _look(self) -> None:
        began_s = time.monotonic()
        if self.worker.look():
            self._looked_s = began_s
