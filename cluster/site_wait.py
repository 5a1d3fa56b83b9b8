"""The wait for sites to answer, on an operator's machine: its ledger knows only what they say.

Without it, `ray down` from a machine that never saw the cluster would find no node and say that
all is gone. The autoscaler on the head never waits.
"""

import sys
import time
from collections.abc import Mapping

import click

from cluster.model import SiteName
from cluster.site_thread import SiteThread

ANSWER_S_MAX = 60.0
_QUIET_S = 2.0


def wait_for_looks(
    threads: Mapping[SiteName, SiteThread],
    *,
    begun_after_s: float | None = None,
    answer_s_max: float = ANSWER_S_MAX,
) -> None:
    """Return once every site was looked at; see `SiteThread.wait_for_look` for `begun_after_s`.

    Says on stderr what it waits for.

    Raises:
        ClickException: a site didn't answer in time; Ray's commands show it and exit 1.
    """
    deadline_s = time.monotonic() + answer_s_max
    quiet_s = min(_QUIET_S, answer_s_max)
    for site, thread in threads.items():
        if thread.wait_for_look(begun_after_s=begun_after_s, timeout_s=quiet_s):
            continue
        quiet_s = 0.0
        _say(f"waiting for site {site} to list its nodes, {answer_s_max:g} s at most ...")
        left_s = max(0.0, deadline_s - time.monotonic())
        if not thread.wait_for_look(begun_after_s=None, timeout_s=left_s):
            raise click.ClickException(_explain(site, thread, answer_s_max))


def _explain(site: SiteName, thread: SiteThread, answer_s_max: float) -> str:
    cause = thread.worker.error or "no answer at all"
    return (
        f"site {site} must list its nodes within {answer_s_max:g} s; got: {cause}. Until it does, "
        "nobody knows what runs there. Check it with `tidegate doctor CLUSTER_FILE`, then run "
        "this command again."
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
