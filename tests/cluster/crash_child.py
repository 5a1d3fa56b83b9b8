"""Runs the provider in processes that end themselves at a chosen step; see test_crash_points.

    python -m tests.cluster.crash_child        orders as JSON lines on stdin, an answer to each

Imports take seconds, so this program imports once and does each order in a fork of itself. The
steps are counted by what is wrapped here (transactions of the ledger, requests to EC2), so the
code under test has no hook for it.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.httpsession import URLLib3Session
from botocore.loaders import create_loader
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster.backend_settings import AwsBackendSettings
from cluster.backends.aws import AwsBackend
from cluster.model import ClusterName, LaunchSpec, NodeId, NodeTypeName, SiteName
from cluster.provider import HybridNodeProvider
from cluster.store import Store
from tests.cluster.aws_rig import MARKETS, NODE_CONFIG, PORTS, QUICK

CRASHED = 86
SITE = SiteName("cloud")
TAGS = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: "cloud_gpu"}

_STEP_S_MAX = 30.0
_LOOKS_MAX = 12


class Steps:
    """Counts steps, and ends the process at one of them."""

    def __init__(self, log: Path, crash_at: int | None) -> None:
        self._log = log
        self._crash_at = crash_at
        self._count = 0
        self._lock = threading.Lock()
        self.is_counting = False

    def take(self, name: str) -> None:
        with self._lock:
            if not self.is_counting:
                return
            self._count += 1
            with self._log.open("a") as file:
                file.write(f"{name}\n")
            if self._count == self._crash_at:
                os._exit(CRASHED)

    def wrap_everything(self) -> None:
        """Count transactions and requests from now on."""
        transaction, send = Store.transaction, URLLib3Session.send
        take = self.take

        @contextmanager
        def counted_transaction(store: Store) -> Iterator[Any]:
            take("before a transaction")
            with transaction(store) as session:
                yield session
                take("before a commit")
            take("after a commit")

        def counted_send(http: Any, request: Any) -> Any:
            action = str(request.body).partition("Action=")[2].partition("&")[0]
            take(f"before {action}")
            answer = send(http, request)
            take(f"after {action}")
            return answer

        Store.transaction = counted_transaction  # type: ignore[method-assign]
        URLLib3Session.send = counted_send


@dataclass(frozen=True)
class World:
    """What an order is done in."""

    order: dict[str, Any]
    steps: Steps

    def open_backend(self) -> AwsBackend:
        return AwsBackend(
            AwsBackendSettings.model_validate(self.order["provider"]["sites"][SITE]["backend"]),
            site=SITE,
            cluster=ClusterName(self.order["cluster"]),
            state_dir=Path(self.order["folder"]),
            ports=PORTS,
            markets=MARKETS,
            limits=QUICK,
        )

    def open_provider(self) -> HybridNodeProvider:
        backends = {SITE: self.open_backend()}
        return HybridNodeProvider(
            self.order["provider"], self.order["cluster"], backends=backends, poll_s=3600.0
        )


def launch(world: World) -> None:
    """Launch one node and wait until it runs."""
    world.steps.is_counting = True
    launch_one(world.open_provider())


def launch_one(provider: HybridNodeProvider) -> None:
    look(provider)
    provider.create_node(NODE_CONFIG, TAGS, 1)
    look_until(provider, lambda: all(map(provider.is_running, provider.non_terminated_nodes({}))))


def terminate(world: World) -> None:
    """End a node that runs, and wait until it is closed."""
    provider = world.open_provider()
    launch_one(provider)
    world.steps.is_counting = True
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    look_until(provider, lambda: provider.nodes_for_teardown({}) == [])


def adopt(world: World) -> None:
    """Take back a node that EC2 has and the ledger doesn't."""
    spec = LaunchSpec(
        node_id=NodeId(f"lost-{world.order['cluster']}"),
        cluster=ClusterName(world.order["cluster"]),
        site=SITE,
        node_type=NodeTypeName("cloud_gpu"),
        is_head=False,
        tags=TAGS,
        node_config=NODE_CONFIG,
    )
    world.open_backend().launch(spec)
    world.steps.is_counting = True
    provider = world.open_provider()
    look_until(provider, lambda: any(map(provider.is_running, provider.non_terminated_nodes({}))))


def converge(world: World) -> None:
    """Do nothing but look, as a restarted autoscaler does, until every node is settled."""
    provider = world.open_provider()

    look(provider)
    look_until(provider, lambda: all(map(provider.is_running, provider.nodes_for_teardown({}))))


SCENARIOS: dict[str, Callable[[World], None]] = {
    "launch": launch,
    "terminate": terminate,
    "adopt": adopt,
    "converge": converge,
}


def look(provider: HybridNodeProvider) -> None:
    thread = provider._sites[SITE]
    thread.wait_for_look(begun_after_s=time.monotonic(), timeout_s=_STEP_S_MAX)


def look_until(provider: HybridNodeProvider, is_so: Callable[[], bool]) -> None:
    for _ in range(_LOOKS_MAX):
        look(provider)
        if is_so():
            return
    raise AssertionError(f"it never became so within {_LOOKS_MAX} looks")


def obey(order: dict[str, Any]) -> None:
    """Do one order; the process ends with it."""
    steps = Steps(Path(order["folder"]) / "steps", order["crash_at"])
    steps.wrap_everything()
    SCENARIOS[order["scenario"]](World(order, steps))


def main() -> None:
    import boto3  # noqa: PLC0415
    import botocore.session  # noqa: PLC0415 - patched here, before the first client

    shared = create_loader()
    botocore.session.create_loader = lambda *_: shared
    boto3.client("ec2", region_name="us-east-1")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 0
            try:
                obey(order)
            except BaseException:  # noqa: BLE001 - a fork must not go on reading orders
                traceback.print_exc()
                code = 1
            os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
