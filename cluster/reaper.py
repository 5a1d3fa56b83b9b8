"""Ends the processes of a parent that died: `python -m cluster.reaper NAME VALUE`, stdin a pipe.

The pipe closes when its writer ends, however it ended; then everything marked is ended. A parent
that cleans up itself writes a byte first, and the reaper leaves without touching anything.
"""

import os
import signal
import sys

from cluster.processes import end_marked

_STAND_DOWN = b"k"


def main(arguments: list[str]) -> int:
    """Return 0 after the marked processes are gone, or after the parent said it did so itself."""
    name, value = arguments
    # A terminal's Ctrl-C goes to the parent, who may still need us if its own clean-up fails.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.read(sys.stdin.fileno(), 1) != _STAND_DOWN:
        end_marked(name, value, grace_s=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
