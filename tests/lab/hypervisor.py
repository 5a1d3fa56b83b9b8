"""What stands behind EC2's API: boots a lab host for every running instance, and ends it.

Instances are told apart by id, so one that is stopped and started again gets its disk back. A host
that turned itself off is told to the API, as `InstanceInitiatedShutdownBehavior=terminate` does.
"""

import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, Self

from tests.lab.ec2 import Ec2
from tests.lab.host import LabHost
from tests.lab.imds import ENDPOINT, Imds
from tests.lab.lab import Lab

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Happening:
    """Something the hypervisor did, for failure messages. `at_s` is wall time."""

    at_s: float
    instance_id: str
    what: str


@dataclass(slots=True)
class Machine:
    """The machine behind one instance."""

    host: LabHost
    imds: Imds


class Hypervisor:
    """Keeps the hosts of the cloud site as the API says. Leave the context to stop."""

    def __init__(self, lab: Lab, ec2: Ec2, *, site: str = "aws", boot_s: float = 0.0) -> None:
        self._lab = lab
        self._ec2 = ec2
        self._site = site
        self._boot_s = boot_s
        self._due_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hypervisor", daemon=True)
        self.machines: dict[str, Machine] = {}
        self.happened: list[Happening] = []
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=30)
        for instance_id in list(self.machines):
            self._end(instance_id, why="the lab ends", keeps_disk=False)
        assert self.errors == [], "\n".join(self.errors)

    def crash(self, instance_id: str) -> None:
        """End an instance's machine without notice, as a hardware fault or a late notice does."""
        self._ec2.ask("terminate_instances", InstanceIds=[instance_id])

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S):
            try:
                self._step()
            except Exception:  # noqa: BLE001 - a thread's error must reach the test
                self.errors.append(traceback.format_exc())

    def _step(self) -> None:
        listed = {found["InstanceId"]: found for found in self._ec2.list_instances()}
        for instance_id, machine in list(self.machines.items()):
            state = listed.get(instance_id, {}).get("State", {}).get("Name", "terminated")
            if state not in ("pending", "running"):
                self._end(instance_id, why=state, keeps_disk=state.startswith("stop"))
            elif not machine.host.is_up:
                self._report_off(instance_id, listed[instance_id])
        for instance_id, found in listed.items():
            if found["State"]["Name"] == "running" and instance_id not in self.machines:
                self._boot_when_due(instance_id, found)

    def _boot_when_due(self, instance_id: str, found: dict[str, Any]) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s.setdefault(instance_id, now_s + self._boot_s):
            return
        host = self._lab.add_host(
            f"ip-{found['PrivateIpAddress'].replace('.', '-')}-{instance_id[-6:]}",
            site=self._site,
            address=found["PrivateIpAddress"],
            env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": ENDPOINT},
        )
        self.machines[instance_id] = Machine(host, Imds(host.pid, _describe(found)))
        self._note(instance_id, f"booted at {host.address}")

    def _report_off(self, instance_id: str, found: dict[str, Any]) -> None:
        """Tell the API what it would have seen itself: the machine is off."""
        self._note(instance_id, "turned itself off")
        # Only launches that ask for it end; others stop. moto keeps what was asked.
        asked = self._ec2.ask(
            "describe_instance_attribute",
            InstanceId=instance_id,
            Attribute="instanceInitiatedShutdownBehavior",
        )
        behaviour = asked.get("InstanceInitiatedShutdownBehavior", {}).get("Value", "stop")
        call = "terminate_instances" if behaviour == "terminate" else "stop_instances"
        self._ec2.ask(call, InstanceIds=[found["InstanceId"]])

    def _end(self, instance_id: str, *, why: str, keeps_disk: bool) -> None:
        machine = self.machines[instance_id]
        machine.imds.close()
        self._lab.remove_host(machine.host.name, keeps_disk=keeps_disk)
        self._due_s.pop(instance_id, None)
        del self.machines[instance_id]
        self._note(instance_id, f"ended: {why}")

    def _note(self, instance_id: str, what: str) -> None:
        self.happened.append(Happening(time.time(), instance_id, what))


def _describe(found: dict[str, Any]) -> dict[str, str]:
    """Return what the instance may know of itself."""
    return {
        "instance-id": found["InstanceId"],
        "instance-type": found["InstanceType"],
        "instance-life-cycle": found.get("InstanceLifecycle", "on-demand"),
        "local-ipv4": found["PrivateIpAddress"],
        "placement/availability-zone": found["Placement"]["AvailabilityZone"],
    }
