"""A data centre and a cloud in the lab, and the hybrid cluster that an operator starts on them.

operator   `ray up`, `ray down`; has the key, AWS credentials, the cluster file and the wheel
head-1     the cluster's head; has AWS credentials, as an administrator would have put there
l40s-1/2   owned hosts
instances  whatever EC2 runs, booted by the hypervisor
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

import cluster
from cluster.processes import list_marked
from deployments.auth import create_key
from deployments.residency import DataClass
from infra.serve_api import ServeApi
from infra.stream_client import StreamClient
from tests.lab.ec2 import ACCESS_KEY, SECRET_KEY, Ec2
from tests.lab.ec2_faults import Ec2Faults
from tests.lab.host import LabHost
from tests.lab.hybrid_files import (
    KEYS_FILE,
    MODEL,
    ONPREM_HOSTS,
    build_cluster_file,
    build_serve_file,
)
from tests.lab.hypervisor import Hypervisor
from tests.lab.lab import SERVICES_ADDRESS, Lab
from tests.lab.namespaces import list_members
from tests.lab.wan import Wan

CLUSTER = "tidegate-hybrid"
CLUSTER_FILE = "hybrid.yaml"
_DASHBOARD = "http://127.0.0.1:8265"
_OPERATOR_ADDRESS = "10.77.0.5"
_FAULTS_PORT = 5000
_REPOSITORY = Path(cluster.__file__).parent.parent
_CREDENTIALS = (
    f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
)
_SSH_KEY = "~/.ssh/tidegate_ed25519"
_LOGS = "/tmp/ray/session_latest/logs ~/.tidegate /var/log/lab_sshd.log"
_NOT_LOGS = "--exclude=gcs --exclude=wheel --exclude=auth_token"
_UP_S_MAX = 240
_DOWN_S_MAX = 120
_DEPLOY_S_MAX = 180


class HybridLab:
    """The machines, before anything of the cluster runs on them."""

    def __init__(self, lab: Lab, ec2: Ec2, faults: Ec2Faults, hypervisor: Hypervisor) -> None:
        self.lab, self.ec2, self.faults, self.hypervisor = lab, ec2, faults, hypervisor
        self.wan = Wan(lab)
        self.key = ""
        self.is_running = False
        self.content = build_cluster_file(ec2.network, endpoint_url=faults.url)
        self.operator = self.add_operator("operator", _OPERATOR_ADDRESS)
        self.owned = {
            name: lab.add_host(name, site="onprem", address=address)
            for name, address in ONPREM_HOSTS.items()
        }
        self.head.write("~/.aws/credentials", _CREDENTIALS, mode=0o600)
        self._write_keys()

    @property
    def head(self) -> LabHost:
        """Return the machine the cluster's head runs on."""
        return self.owned["head-1"]

    @property
    def rented(self) -> list[LabHost]:
        """Return the machines of the instances that run."""
        return [machine.host for machine in self.hypervisor.machines.values()]

    def add_operator(self, name: str, address: str) -> LabHost:
        """Return a machine from which a person runs the cluster; nothing is cached there."""
        host = self.lab.add_host(name, site="onprem", address=address)
        host.write(_SSH_KEY, self.lab.private_key, mode=0o600)
        host.write("~/.aws/credentials", _CREDENTIALS, mode=0o600)
        host.write(f"~/{CLUSTER_FILE}", yaml.safe_dump(self.content, sort_keys=False))
        name_of_wheel, wheel = _build_wheel()
        target = host.locate(f"~/.tidegate/wheel/{name_of_wheel}")
        target.parent.mkdir(parents=True)
        target.write_bytes(wheel)
        # As on any machine of an operator, the package is installed, not the working tree.
        host.check("pip install -q --no-index --no-deps --force-reinstall ~/.tidegate/wheel/*.whl")
        return host

    def up(self) -> str:
        """Return what `ray up` said, once it succeeded."""
        self.is_running = True
        return self.operator.check(f"ray up -y {CLUSTER_FILE} 2>&1", timeout_s=_UP_S_MAX)

    def down(self, host: LabHost | None = None) -> str:
        """Return what `ray down` said, once it succeeded; on another machine if one is given."""
        command = f"ray down -y {CLUSTER_FILE} 2>&1"
        said = (host or self.operator).check(command, timeout_s=_DOWN_S_MAX)
        self.is_running = False
        return said

    def deploy(self, content: dict[str, Any] | None = None) -> None:
        """Deploy the applications through Serve's interface on the head, and wait for them."""
        content = content or build_serve_file()
        with self.head.in_network():
            api = ServeApi(_DASHBOARD, self.token_file)
            api.wait_ready(timeout_s=_DEPLOY_S_MAX)
            api.deploy(content)
            names = [application["name"] for application in content["applications"]]
            api.wait_running(names, timeout_s=_DEPLOY_S_MAX, on_progress=lambda _: None)

    def open_client(self) -> StreamClient:
        """Return a client of the gateway; its requests must be sent in the head's network."""
        return StreamClient("http://127.0.0.1:8000", self.key, MODEL)

    def kill_cluster_on(self, host: LabHost) -> None:
        """Kill every process of the cluster on one machine, at once and for good."""
        while here := sorted({*self.list_processes()} & {*list_members(host.pid)}):
            for pid in here:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that Ray counts as alive, with their labels."""
        with self.head.in_network():
            answer = httpx.get(
                f"{_DASHBOARD}/api/v0/nodes",
                params={"detail": "1"},
                headers={"Authorization": f"Bearer {self.token_file.read_text().strip()}"},
                timeout=20,
                trust_env=False,
            )
        answer.raise_for_status()
        nodes: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    @property
    def token_file(self) -> Path:
        """Return Ray's token, where the operator keeps it."""
        return self.operator.locate(f"~/.tidegate/{CLUSTER}/auth_token")

    def list_claims(self) -> list[str]:
        """Return the owned hosts that some cluster has."""
        return [
            name
            for name, host in self.owned.items()
            if host.is_up and host.locate("~/.tidegate/claim.json").exists()
        ]

    def list_processes(self) -> list[int]:
        """Return the processes of the cluster, on every machine."""
        return list_marked("TIDEGATE_CLUSTER", CLUSTER)

    def save_logs(self, folder: Path) -> None:
        """Copy what a person would look at after a failure; the lab's disks go with it."""
        folder.mkdir(parents=True, exist_ok=True)
        for host in (one for one in self.lab.hosts.values() if one.is_up):
            host.run(f"tar -czhf /tmp/logs.tgz {_NOT_LOGS} {_LOGS}")
            packed = host.locate("/tmp/logs.tgz")
            if packed.exists():
                shutil.copy(packed, folder / f"{host.name}.tgz")
        happened = [
            f"{one.at_s:.2f} {one.instance_id} {one.what}" for one in self.hypervisor.happened
        ]
        (folder / "hypervisor.txt").write_text("\n".join(happened))
        calls = [f"{call.at_s:.2f} {call.action} {call.done}" for call in self.faults.calls]
        (folder / "ec2_calls.txt").write_text("\n".join(calls))

    def _write_keys(self) -> None:
        """Give the gateway a key for our requests."""
        draft = self.lab.folder / "keys.yaml"
        self.key = create_key(draft, tenant="lab", data_class=DataClass.PUBLIC)
        self.head.write(KEYS_FILE, draft.read_text(), mode=0o600)


@contextmanager
def open_hybrid_lab(*, boot_s: float = 0.0) -> Iterator[HybridLab]:
    """Yield the machines, and end them all afterwards."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        ec2 = Ec2(lab)
        zone_of = {subnet: zone for zone, subnet in ec2.network.subnets.items()}
        with lab.in_network():
            faults = Ec2Faults(ec2.url, SERVICES_ADDRESS, _FAULTS_PORT, zone_of=zone_of)
            faults.start()
        stack.callback(faults.stop)
        hypervisor = stack.enter_context(Hypervisor(lab, ec2, boot_s=boot_s))
        yield HybridLab(lab, ec2, faults, hypervisor)


@functools.cache
def _build_wheel() -> tuple[str, bytes]:
    """Return the name and content of the project's wheel, as `make wheel` builds it."""
    with tempfile.TemporaryDirectory(prefix="tidegate-wheel-") as folder:
        options = ["-q", "--no-deps", "--no-build-isolation", "-w", folder]
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *options, str(_REPOSITORY)], check=True
        )
        (file,) = Path(folder).glob("*.whl")
        return file.name, file.read_bytes()
