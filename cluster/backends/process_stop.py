"""`ray stop` on a process node: ends the node's processes, less the shell that asked for it."""

import os
import sys

from cluster.processes import MARK_NODE, end_marked, list_ancestors


def main() -> int:
    """Return 0 once no process of this node is left but the caller and its ancestors."""
    ended = end_marked(MARK_NODE, os.environ[MARK_NODE], spare=list_ancestors())
    sys.stdout.write(f"Stopped {len(ended)} processes of node {os.environ[MARK_NODE]}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
