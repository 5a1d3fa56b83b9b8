"""A notice on a node of a real Ray cluster: replacement first, streams in full, then the node ends.

Earns its seconds (one head, three nodes) because every step is another program's: our agent reads a
metadata service, Ray drains, Serve migrates, the raylet ends by itself. The autoscaler isn't
needed: capacity for the replacement is there. The application is `pools_app.py`.
"""

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.node_agent import has_raylet
from cluster.processes import MARK_NODE
from deployments.signals import Blackboard, Targets
from tests.autoscaling.conftest import _CONTENT, LiveHead
from tests.cluster.fake_imds import FakeImds, run_fake_imds

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STREAM_S = 12


@pytest.fixture
def head() -> Iterator[LiveHead]:
    with (
        tempfile.TemporaryDirectory(prefix="tgn", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = LiveHead(Path(folder), copy.deepcopy(_CONTENT))
        try:
            made.start()
            made.connect()
            serve.start(proxy_location="Disabled")
            yield made
            serve.shutdown()
        finally:
            made.stop()


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    with run_fake_imds() as service:
        yield service


def join(head: LiveHead, site: str) -> str:
    """The name of a new node with one GPU, marked as nodes of rented machines are."""
    name = f"{site}-{time.monotonic_ns()}"
    marks = {MARK_NODE: name, "RAY_CLOUD_INSTANCE_ID": name}
    head.join(site, gpus=1, environment=marks)
    return name


def start_agent(head: LiveHead, node: str, imds: FakeImds) -> "subprocess.Popen[bytes]":
    environment = head.environment | {
        MARK_NODE: node,
        "PATH": "/usr/bin:/bin",
        "TIDEGATE_NODE_IP": "127.0.0.1",
        "RAY_HEAD_IP": "127.0.0.1",
        "TIDEGATE_PORT_GCS": str(head.port),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.endpoint,
    }
    return subprocess.Popen([sys.executable, "-m", "cluster.node_agent"], env=environment)


def deploy(head: LiveHead) -> None:
    application = {
        "name": "m",
        "route_prefix": None,
        "import_path": "pools_app:build",
        "args": {"version": 1},
        "autoscaling_policy": {"policy_function": "autoscaling.serve_scaler:apply_targets"},
    }
    schema = {"proxy_location": "Disabled", "applications": [application]}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(schema), _blocking=False)
    targets = Targets(time.time(), {"m": {"onprem": 1, "cloud": 1}})
    Blackboard.from_address(head.address).put_targets(targets)


def states() -> dict[str, int]:
    application = serve.status().applications.get("m")
    deployment = application.deployments.get("cloud") if application is not None else None
    return dict(deployment.replica_states) if deployment is not None else {}


def test_a_notice_starts_the_replacement_first_and_cuts_no_stream(
    head: LiveHead, imds: FakeImds, wait: Callable[..., Any]
) -> None:
    """Four streams of 12 s are open when the site announces the end of their node in 120 s."""
    join(head, "onprem")
    leaving = join(head, "cloud")
    deploy(head)
    wait(lambda: states().get("RUNNING") == 1, timeout_s=120, why="the cloud replica")
    join(head, "cloud")
    handle = serve.get_deployment_handle("cloud", "m").options(stream=True)
    streams = [iter(handle.count.remote(STREAM_S)) for _ in range(4)]
    assert [next(stream) for stream in streams] == [0] * 4

    agent = start_agent(head, leaving, imds)
    in_two_minutes = time.gmtime(time.time() + 120)
    imds.announce(time.strftime("%Y-%m-%dT%H:%M:%SZ", in_two_minutes))
    seen: list[dict[str, int]] = []

    def is_replaced() -> bool:
        found = states()
        if not seen or seen[-1] != found:
            seen.append(found)
        return found.get("STOPPING", 0) == 1 and found.get("RUNNING", 0) == 1

    wait(is_replaced, timeout_s=100, why="a running replacement beside the stopping replica")
    assert any(found.get("PENDING_MIGRATION") for found in seen)
    assert all(found.get("RUNNING", 0) + found.get("PENDING_MIGRATION", 0) for found in seen)
    assert [len(list(stream)) for stream in streams] == [STREAM_S - 1] * 4
    (notice,) = Blackboard.from_address(head.address).list_notices()
    assert (notice.node, notice.kind) == (leaving, "interruption")
    wait(lambda: not has_raylet(leaving), timeout_s=60, why="the end of the drained node")
    assert agent.poll() is None, "the agent stays until its node is gone or out of touch"
    agent.terminate()
    agent.wait(10)
