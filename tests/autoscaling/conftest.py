"""The cluster the autoscaling tests share: 4-GPU on-prem nodes, 1-GPU cloud nodes, both at zero."""

import copy
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from cluster.ledger import Intent, Ledger
from cluster.model import NodeId, NodeRecord, NodeTypeName, SiteName
from cluster.owner import open_owner
from cluster.processes import KEEP_MARKS_READABLE, MARK_CLUSTER, MARK_NODE, end_marked, list_marked
from deployments.signals import Blackboard

_ROOT = Path(__file__).parents[2]

# Examples are the same at every run, and a busy machine doesn't fail a law for its speed.
settings.register_profile("tidegate", max_examples=50, deadline=None, derandomize=True)
# For the second run of the same laws, in `test_autoscaling_purity`.
settings.register_profile("few-examples", max_examples=2, deadline=None, derandomize=True)
settings.load_profile("tidegate")

_STARTS_MAX = 3
_NODE = {"node_config": {}, "min_workers": 0}
_CONTENT: dict[str, Any] = {
    "cluster_name": "tidegate-test",
    "max_workers": 4,
    "idle_timeout_minutes": 5,
    "head_node_type": "head",
    "provider": {
        "type": "external",
        "module": "cluster.provider.HybridNodeProvider",
        "state_dir": "/nonexistent/tidegate",
        "sites": {
            "onprem": {"owned": True, "max_nodes": 3, "backend": {"kind": "fake"}},
            "cloud": {"owned": False, "max_nodes": 2, "backend": {"kind": "fake"}},
        },
        "node_types": {
            "head": {"site": "onprem", "market": "owned"},
            "onprem_gpu": {"site": "onprem", "market": "owned"},
            "cloud_gpu": {"site": "cloud", "market": "on_demand", "usd_per_hour": 1.5},
            "cloud_dear": {"site": "cloud", "market": "on_demand", "usd_per_hour": 90},
        },
        "limits": {"launches_per_tick": 3, "usd_per_hour": 4.0, "lease_s_min": 0},
    },
    "available_node_types": {
        "head": {
            "resources": {"CPU": 1},
            "node_config": {},
            "labels": {"site": "onprem", "market": "owned", "owned": "true"},
        },
        "onprem_gpu": {
            **_NODE,
            "max_workers": 2,
            "resources": {"CPU": 4, "GPU": 4},
            "labels": {"site": "onprem", "market": "owned", "owned": "true", "accelerator": "cpu"},
        },
        "cloud_gpu": {
            **_NODE,
            "max_workers": 2,
            "idle_timeout_s": 5,
            "resources": {"CPU": 4, "GPU": 1},
            "labels": {
                "site": "cloud",
                "market": "on_demand",
                "owned": "false",
                "accelerator": "cpu",
            },
        },
        "cloud_dear": {
            **_NODE,
            "max_workers": 2,
            "resources": {"CPU": 4, "GPU": 8, "dear": 1},
            "labels": {
                "site": "cloud",
                "market": "on_demand",
                "owned": "false",
                "accelerator": "cpu",
            },
        },
    },
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": ["true"],
    "worker_start_ray_commands": ["true"],
}


@pytest.fixture
def cluster_content() -> dict[str, Any]:
    """The content of a cluster file without mistakes; each test's own copy."""
    return copy.deepcopy(_CONTENT)


@dataclass
class LiveHead:
    """A real Ray head without Ray's own monitor, on ports and in a folder of its own.

    Its worker nodes are of the fake backend: they are launched and never join. Everything it
    starts is marked, so nothing of it is left behind.
    """

    folder: Path
    content: dict[str, Any]
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: f"tidegate-test-{secrets.token_hex(4)}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def logs(self) -> Path:
        return self.folder / "ray" / "session_latest" / "logs"

    @property
    def config_file(self) -> Path:
        return self.folder / "cluster.yaml"

    def start(self) -> None:
        self.content["provider"]["state_dir"] = str(self.folder / "state")
        self.config_file.write_text(yaml.safe_dump(self.content))
        self.environment |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": "head-0",
            "RAY_NODE_TYPE_NAME": "head",
            "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S": "0",
            "RAY_OVERRIDE_LABELS": '{"site": "onprem", "market": "owned", "owned": "true"}',
            "AUTOSCALER_METRIC_PORT": str(_find_free_port()),
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{Path(__file__).parent}",
            MARK_CLUSTER: self.mark,
            **KEEP_MARKS_READABLE,
        }
        self._remember_head()
        for _ in range(_STARTS_MAX - 1):
            # Ray gives its node half a minute and no option; a busy machine may need another try.
            try:
                return self._start_head()
            except AssertionError:
                end_marked(MARK_CLUSTER, self.mark, grace_s=1)
        return self._start_head()

    def _start_head(self) -> None:
        self.port = _find_free_port()
        self.run(
            *("ray", "start", "--head", "--no-monitor", "--num-cpus=1", "--num-gpus=0"),
            *(f"--port={self.port}", "--node-ip-address=127.0.0.1"),
            *(f"--temp-dir={self.folder / 'ray'}", "--include-dashboard=false"),
            *("--min-worker-port=0", "--max-worker-port=0"),
            *(f"--ray-client-server-port={_find_free_port()}",),
            *(f"--dashboard-agent-listen-port={_find_free_port()}",),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
        )

    def join(self, site: str, *, gpus: int, environment: dict[str, str] | None = None) -> None:
        """Add a real node of a site, which the autoscaler doesn't manage."""
        node = {
            MARK_NODE: f"{self.mark}-{secrets.token_hex(4)}",
            "RAY_OVERRIDE_LABELS": json.dumps({"site": site}),
            "RAY_CLOUD_INSTANCE_ID": "",
            "RAY_NODE_TYPE_NAME": "",
            **(environment or {}),
        }
        for _ in range(_STARTS_MAX - 1):
            # As with the head: a busy machine may need another try.
            try:
                return self._join(node, gpus=gpus)
            except AssertionError:
                end_marked(MARK_NODE, node[MARK_NODE], grace_s=1)
        return self._join(node, gpus=gpus)

    def _join(self, node: dict[str, str], *, gpus: int) -> None:
        self.run(
            *("ray", "start", f"--address={self.address}", "--num-cpus=1", f"--num-gpus={gpus}"),
            *("--min-worker-port=0", "--max-worker-port=0"),
            *(f"--dashboard-agent-listen-port={_find_free_port()}",),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
            environment=node,
        )

    def start_autoscaler(self) -> None:
        """The head start command of the cluster file."""
        self.run(
            *(sys.executable, "-m", "autoscaling.monitor", "--supervise"),
            *("--gcs-address", self.address, "--autoscaling-config", str(self.config_file)),
            *("--logs-dir", str(self.logs), "--update-interval-s", "1"),
        )

    def start_second_autoscaler(self) -> "subprocess.Popen[bytes]":
        """Another autoscaler process for the same ledger, which nobody supervises."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "autoscaling.monitor"),
                *("--gcs-address", self.address, "--autoscaling-config", str(self.config_file)),
                *("--logs-dir", str(self.logs), "--update-interval-s", "1"),
            ],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """The output of a command with the cluster's environment; it must succeed."""
        program = _ROOT / ".venv" / "bin" / command[0]
        found = subprocess.run(
            [str(program) if program.exists() else command[0], *command[1:]],
            env=os.environ | self.environment | (environment or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    def launched(self) -> list[NodeRecord]:
        """Every worker node ever launched, oldest first."""
        return [node for node in self._ledger().list_all() if not node.is_head]

    def decision(self) -> dict[str, Any]:
        """The decision record on the blackboard; empty before the first."""
        return Blackboard.from_address(self.address).get_decision() or {}

    def status(self) -> str:
        return self.run("ray", "status", "--address", self.address)

    def log(self) -> str:
        return (self.logs / "monitor.log").read_text()

    def supervisor_pid(self) -> int | None:
        return next(iter(self.processes("autoscaling.monitor --stay")), None)

    def autoscaler_pid(self) -> int | None:
        return next(iter(self.processes("autoscaling.monitor --gcs-address")), None)

    def processes(self, text: str) -> list[int]:
        """Our processes whose command line holds a text."""
        return [pid for pid in list_marked(MARK_CLUSTER, self.mark) if text in _command_line(pid)]

    def connect(self) -> None:
        """Make this process a driver of the cluster."""
        import ray  # noqa: PLC0415 - tests of decisions share this file and run without Ray

        ray.init(address=self.address, log_to_driver=False)

    def stop(self) -> None:
        """Leave the cluster before it goes: Ray ends a driver that can't find its GCS."""
        import ray  # noqa: PLC0415 - as above

        ray.shutdown()
        end_marked(MARK_CLUSTER, self.mark, grace_s=3)

    def _ledger(self) -> Ledger:
        return Ledger(self.folder / "state" / self.content["cluster_name"] / "ledger.db")

    def _remember_head(self) -> None:
        """The record `ray up` makes of the head; this process owns it, so nobody judges it gone."""
        head = Intent(
            node_id=NodeId("head-0"),
            site=SiteName("onprem"),
            node_type=NodeTypeName("head"),
            is_head=True,
            usd_per_hour=Decimal(0),
            tags={"ray-node-type": "head", "ray-user-node-type": "head"},
            node_config={},
        )
        self._ledger().open_intents([head], owner=open_owner(), check=lambda _: None)


@pytest.fixture(scope="module")
def live_head() -> Iterator[LiveHead]:
    """A running head with our autoscaler, its driver connected; nothing of it is left afterwards.

    Its folder has a short name, because Ray's sockets are in it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tga", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = LiveHead(Path(folder), copy.deepcopy(_CONTENT))
        try:
            head.start()
            head.start_autoscaler()
            head.connect()
            yield head
        finally:
            head.stop()


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    return wait_for


def wait_for(what: Callable[[], Any], *, timeout_s: float, why: str) -> Any:
    """What the function returns as soon as it is true."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s} s: {why}")


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
