"""Progress on stderr: a spinner where a person watches, one line per step where a log is kept."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


class Step:
    """A step under way; `say` tells what it is doing now."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started_s = time.monotonic()
        self._said = ""
        self._status = console.status(escape(title)) if console.is_terminal else None

    def say(self, text: str) -> None:
        """Show what the step does now; repeated words are printed once."""
        if self._status is not None:
            self._status.update(escape(f"{self._title} ({self.elapsed_s:.0f} s): {text}"))
        elif text != self._said:
            console.print(f"  {self._title}: {text}", markup=False)
        self._said = text

    @property
    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._started_s

    def start(self) -> None:
        """Begin to show the step."""
        if self._status is not None:
            self._status.start()

    def stop(self, *, succeeded: bool) -> None:
        """Replace the spinner by one line that stays."""
        if self._status is not None:
            self._status.stop()
        mark = "[green]done[/]" if succeeded else "[red]stopped[/]"
        console.print(f"{mark} {escape(self._title)} ({self.elapsed_s:.1f} s)")


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show `title` as under way until the block ends, then as done or stopped."""
    current = Step(title)
    current.start()
    try:
        yield current
    except BaseException:
        current.stop(succeeded=False)
        raise
    current.stop(succeeded=True)
