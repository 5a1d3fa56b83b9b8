"""The head's own report, as one line of JSON: `python -m infra.head_report`, run on the head.

Ports of the control store are open between nodes, not to an operator's machine, and the ledger of
the autoscaler is a file of the head. So an operator's command asks over SSH, and this answers.
Changes nothing.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from autoscaling.settings_reader import read_in_force
from cluster.config import ProviderSettings, parse_provider_section
from cluster.errors import StateError
from cluster.ledger import Ledger
from cluster.model import ClusterName
from cluster.store_place import find_place
from deployments.signals import Blackboard, encode_signals
from infra.ledger_facts import describe_ledger

CONFIG_FILE = "~/ray_bootstrap_config.yaml"
"""Where Ray's launcher puts the cluster file on the head."""

_ANSWER_S_MAX = 5.0
_CONNECT_S_MAX = 2.0


def build_report(config_file: Path, *, address: str) -> dict[str, Any]:
    """Return decision record, signals and ledger; an entry of `errors` for what can't be had."""
    in_force = read_in_force(config_file)
    raw = in_force.content
    provider = parse_provider_section(raw["provider"])
    report: dict[str, Any] = {"decision": None, "signals": [], "ledger": {}, "errors": []}
    if in_force.problem is not None:
        report["errors"].append(in_force.problem)
    _add_board(report, provider, address=address)
    _add_ledger(report, provider, cluster=ClusterName(raw["cluster_name"]))
    return report


def _add_board(report: dict[str, Any], provider: ProviderSettings, *, address: str) -> None:
    from ray.exceptions import RayError  # noqa: PLC0415 - imports Ray

    port = provider.ports.gcs if provider.ports is not None else 0
    gcs = f"{address}:{port}"
    try:
        # Ray's client waits long where nobody listens.
        socket.create_connection((address, port), timeout=_CONNECT_S_MAX).close()
        board = Blackboard.from_address(gcs, timeout_s=_ANSWER_S_MAX)
        report["decision"] = board.get_decision()
        report["signals"] = [encode_signals(one).decode() for one in board.list_signals()]
    except (RayError, OSError, RuntimeError, ValueError) as error:
        report["errors"].append(f"the control store at {gcs} doesn't answer: {error}")


def _add_ledger(
    report: dict[str, Any], provider: ProviderSettings, *, cluster: ClusterName
) -> None:
    try:
        place = find_place(
            provider.store,
            state_dir=Path(provider.state_dir).expanduser(),
            cluster=cluster,
            environment=os.environ,
        )
        ledger = Ledger(place, reads_only=True)
    except StateError as error:
        report["errors"].append(str(error))
        return
    try:
        report["ledger"] = describe_ledger(ledger, provider.limits)
    finally:
        ledger.close()


def main() -> int:
    """Return the exit status; the report goes to stdout."""
    config_file = Path(CONFIG_FILE).expanduser()
    report = build_report(config_file, address=os.environ["TIDEGATE_NODE_IP"])
    sys.stdout.write(f"{json.dumps(report)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
