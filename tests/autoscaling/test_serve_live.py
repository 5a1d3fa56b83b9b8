"""The brain's numbers in a real Serve: what a deploy launches, 0 to 1 to 0, and a redeploy.

Earns its seconds (one head, two nodes, one application) because Serve's controller runs our policy
from pickled bytes, changes what it says, and forgets its state at each deploy: nothing of that is
public interface. The application is `pools_app.py`.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deployments.signals import Blackboard, Targets

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Pools:
    """The deployed application, as Serve reports it."""

    def __init__(self, head: Any, wait: Callable[..., Any]) -> None:
        self.head = head
        self._wait = wait
        self._board = Blackboard.from_address(head.address)

    def deploy(self, *, version: int) -> None:
        application = {
            "name": "m",
            "route_prefix": None,
            "import_path": "pools_app:build",
            "args": {"version": version},
            "autoscaling_policy": {"policy_function": "autoscaling.serve_scaler:apply_targets"},
        }
        schema = {"proxy_location": "Disabled", "applications": [application]}
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(schema), _blocking=False)

    def set(self, **replicas: int) -> None:
        self._board.put_targets(Targets(time.time(), {"m": replicas}))

    def count(self, pool: str, state: str = "RUNNING") -> int:
        application = serve.status().applications.get("m")
        deployment = application.deployments.get(pool) if application is not None else None
        return deployment.replica_states.get(state, 0) if deployment is not None else 0

    def versions(self) -> list[str]:
        handle = serve.get_deployment_handle("cloud", "m")
        return sorted(handle.version.remote().result() for _ in range(8))

    def wait_until(self, is_so: Callable[[], bool], why: str) -> None:
        self._wait(is_so, timeout_s=120, why=why)

    def watch(self, look: Callable[[], Any], *, seconds: float) -> list[Any]:
        """What was seen, without repetitions."""
        seen: list[Any] = []
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            found = look()
            if not seen or seen[-1] != found:
                seen.append(found)
            time.sleep(0.2)
        return seen


@pytest.fixture(scope="module")
def pools(live_head: Any, wait: Callable[..., Any]) -> Iterator[Pools]:
    serve.start(proxy_location="Disabled")
    found = Pools(live_head, wait)
    found.deploy(version=1)
    yield found
    serve.shutdown()


def test_a_deploy_launches_an_on_prem_node_and_no_cloud_node(pools: Pools) -> None:
    """The on-prem pool begins at 1, the cloud pool at 0; nothing has set a target yet."""
    pools.wait_until(lambda: bool(pools.head.launched()), "the on-prem pool's node")
    types = pools.watch(lambda: {n.node_type for n in pools.head.launched()}, seconds=5)
    assert types == [{"onprem_gpu"}]


def test_a_cloud_pool_goes_to_one_and_back_to_zero_while_its_streams_end(pools: Pools) -> None:
    """Serve would start the draining pool again if it were told the number it has already."""
    pools.head.join("onprem", gpus=1)
    pools.head.join("cloud", gpus=2)
    pools.wait_until(lambda: pools.count("onprem") == 1, "the on-prem replica")
    assert pools.count("cloud") == 0
    pools.set(onprem=1, cloud=1)
    pools.wait_until(lambda: pools.count("cloud") == 1, "the cloud replica")

    handle = serve.get_deployment_handle("cloud", "m").options(stream=True)
    streams = [iter(handle.count.remote(15)) for _ in range(4)]
    assert [next(stream) for stream in streams] == [0] * 4
    pools.set(onprem=1, cloud=0)
    pools.wait_until(lambda: pools.count("cloud") == 0, "the end of routing to it")
    assert pools.count("cloud", "STOPPING") == 1
    starting = pools.watch(lambda: pools.count("cloud", "STARTING"), seconds=6)
    assert starting == [0], "it stays at zero while it drains"
    assert [len(list(stream)) for stream in streams] == [14] * 4, "every stream ended in full"
    pools.wait_until(lambda: pools.count("cloud", "STOPPING") == 0, "the end of the replica")


def test_a_redeploy_keeps_the_brains_numbers(pools: Pools) -> None:
    """Serve forgets a policy's state at each deploy; the numbers are on the blackboard."""
    pools.set(onprem=1, cloud=2)
    pools.wait_until(lambda: pools.count("cloud") == 2, "two cloud replicas")
    pools.deploy(version=2)
    pools.wait_until(
        lambda: pools.versions() == ["2"] * 8 and pools.count("cloud") == 2,
        "two replicas of the new version",
    )


def test_a_redeploy_at_zero_starts_no_cloud_replica(pools: Pools) -> None:
    pools.set(onprem=1, cloud=0)
    pools.wait_until(lambda: pools.count("cloud") == 0, "no cloud replica")
    pools.deploy(version=3)
    starting = pools.watch(lambda: pools.count("cloud", "STARTING"), seconds=8)
    assert starting == [0]


def test_a_killed_controller_goes_on_with_the_same_numbers(pools: Pools) -> None:
    pools.set(onprem=1, cloud=1)
    pools.wait_until(lambda: pools.count("cloud") == 1, "one cloud replica")
    (controller,) = pools.head.processes("ServeController")
    os.kill(controller, 9)
    pools.wait_until(
        lambda: pools.head.processes("ServeController") not in ([], [controller]),
        "a new controller",
    )
    pools.set(onprem=1, cloud=0)
    pools.wait_until(lambda: pools.count("cloud") == 0, "its obedience")
