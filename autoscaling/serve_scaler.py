"""Serve's door to the brain: an application-level policy that repeats the brain's numbers.

Decides nothing. Serve calls `apply_targets` about ten times a second in its controller, where an
exception would stop the scaling of every application after this one: so it never raises, never
waits, and with nothing to say it says nothing, which keeps the numbers as they are.

Serve pickles this module by value, so it holds no state; `autoscaling.target_reader` does, imported
by name in the controller. One of the three files that use Ray's private interface (Ray 2.60).
"""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger("ray.serve")


def apply_targets(contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
    """Return the deployments whose number must change, with the number; no state.

    A deployment left out keeps its number. One that is where it should be must be left out: Serve
    answers "one replica" on its own for any deployment without running replicas that has requests
    left, such as one that just went to zero and still drains its streams.
    """
    changes: dict[Any, int] = {}
    try:
        from autoscaling.target_reader import READER  # noqa: PLC0415 - by name, not by value

        for deployment, context in contexts.items():
            wanted = READER.find_targets(deployment.app_name).get(deployment.name)
            if wanted is not None and wanted != context.target_num_replicas:
                changes[deployment] = wanted
    except Exception:  # noqa: BLE001 - see the module: raising stops other applications
        _log.exception("targets can't be applied, the numbers are kept")
        return {}, {}
    return changes, {}
