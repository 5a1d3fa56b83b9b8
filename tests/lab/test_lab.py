"""The lab keeps its promises: hosts are machines, faults bite, nothing gets out or stays behind.

Earns its seconds: every other test here rests on this, and wrong faults make tests pass wrongly.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.ec2 import PORT, Ec2
from tests.lab.host import LabHost
from tests.lab.hypervisor import Hypervisor
from tests.lab.lab import AWS, ONPREM, SERVICES_ADDRESS, Lab
from tests.lab.namespaces import list_in_namespace, read_namespace
from tests.lab.wan import Wan

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=2 -o StrictHostKeyChecking=accept-new"
CLOUD = "10.77.64.200"


def wait_until(is_true: Callable[[], bool], *, timeout_s: float = 20) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(0.05)
    return is_true()


@pytest.fixture(scope="module")
def owned(lab: Lab) -> LabHost:
    host = lab.add_host("owned", site="onprem", address="10.77.0.20")
    host.write("~/.ssh/id_ed25519", lab.private_key, mode=0o600)
    return host


@pytest.fixture(scope="module")
def rented(lab: Lab) -> LabHost:
    return lab.add_host("rented", site="aws", address=CLOUD, env={"WHO": "a rented machine"})


@pytest.fixture
def wan(lab: Lab) -> Iterator[Wan]:
    line = Wan(lab)
    yield line
    line.heal()


def reaches(host: LabHost, address: str = CLOUD) -> bool:
    return host.run(f"timeout 1 bash -c '</dev/tcp/{address}/22'").returncode == 0


def test_hosts_reach_each_other_over_ssh(owned: LabHost, rented: LabHost) -> None:
    said = owned.check(f"{SSH} {CLOUD} 'hostname; echo $WHO; hostname -i; pwd'").splitlines()
    assert said == ["rented", "a rented machine", CLOUD, "/home/root"]


def test_a_host_sees_its_own_processes_only(owned: LabHost, rented: LabHost) -> None:
    assert "python" not in owned.check("ps -e -o comm")
    assert owned.check("cat /proc/1/comm").strip() == "bash"


def test_files_of_one_host_are_seen_on_no_other(owned: LabHost, rented: LabHost) -> None:
    """The disk of each is this machine's, copied on write: the virtual environment too."""
    package = "$(python -c 'import yaml; print(yaml.__path__[0])')"
    owned.check(f"echo changed >> {package}/__init__.py; touch /etc/mine /tmp/mine ~/mine")
    assert "changed" not in rented.check(f"cat {package}/__init__.py")
    assert rented.run("ls /etc/mine /tmp/mine ~/mine").stdout == ""
    assert not Path("/etc/mine").exists()
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import yaml; changed"], check=True, capture_output=True
        )


def test_nothing_leaves_the_lab(lab: Lab, owned: LabHost) -> None:
    """No card but bridges and the hosts' ends of cables, no route but the sites'."""
    cards = lab.run(["ip", "-brief", "link"]).splitlines()
    assert {card.split()[0].split("@")[0].rstrip("0123456789") for card in cards} <= {
        "lo",
        "br-onprem",
        "br-aws",
        "card",
    }
    assert {route.split()[0] for route in lab.run(["ip", "route"]).splitlines()} == {
        str(ONPREM.network),
        str(AWS.network),
    }
    assert "unreachable" in owned.run("bash -c '</dev/tcp/192.0.2.1/80'").stderr
    assert owned.run("getent hosts example.com").returncode != 0


def test_a_line_can_be_cut_one_way_and_healed(owned: LabHost, rented: LabHost, wan: Wan) -> None:
    assert reaches(owned)
    wan.cut(AWS, ONPREM)
    assert not reaches(owned)
    # What goes the other way still arrives: the cloud side hears, its answers are lost.
    before = read_count(rented, "InSegs")
    assert not reaches(owned)
    assert read_count(rented, "InSegs") > before
    wan.heal()
    assert reaches(owned)


def read_count(host: LabHost, name: str) -> int:
    """Return one of the kernel's TCP counters."""
    names, values = [
        line.split()[1:]
        for line in host.check("cat /proc/net/snmp").splitlines()
        if line.startswith("Tcp:")
    ]
    return int(values[names.index(name)])


def test_a_cut_leaves_hosts_of_one_site_together(lab: Lab, owned: LabHost, wan: Wan) -> None:
    lab.add_host("neighbour", site="onprem", address="10.77.0.21")
    wan.cut_both_ways(ONPREM, AWS)
    assert not reaches(owned)
    assert reaches(owned, "10.77.0.21")


def test_loss_slows_a_transfer_down_and_loses_none_of_it(
    owned: LabHost, rented: LabHost, wan: Wan
) -> None:
    before = read_count(rented, "RetransSegs")
    wan.lose(AWS, ONPREM, percent=10)
    assert owned.check(f"{SSH} {CLOUD} 'head -c 2000000 /dev/zero' | wc -c").strip() == "2000000"
    assert read_count(rented, "RetransSegs") > before


def test_a_rate_holds(owned: LabHost, rented: LabHost, wan: Wan) -> None:
    """2 MB at 8 Mbit/s take 2 s; a line without a rate takes milliseconds."""
    wan.limit_rate(ONPREM, mbit_per_s=8)
    began_s = time.monotonic()
    owned.check(f"{SSH} {CLOUD} 'head -c 2000000 /dev/urandom' >/dev/null")
    assert time.monotonic() - began_s > 1.5


def test_a_delay_holds_both_ways(owned: LabHost, rented: LabHost, wan: Wan) -> None:
    """Opening a connection takes one round trip: 2 x 0.2 s."""
    connect = f"time -p bash -c '</dev/tcp/{CLOUD}/22'"
    assert read_seconds(owned.run(connect).stderr) < 0.2
    wan.delay(ONPREM, AWS, delay_s=0.2)
    assert 0.4 <= read_seconds(owned.run(connect).stderr) < 1.0
    wan.heal()
    assert read_seconds(owned.run(connect).stderr) < 0.2


def read_seconds(said: str) -> float:
    return float(said.split()[said.split().index("real") + 1])


def test_a_frozen_host_is_silent_until_it_thaws(owned: LabHost, rented: LabHost) -> None:
    rented.freeze()
    assert owned.run(f"timeout 1 {SSH} {CLOUD} true").returncode != 0
    rented.thaw()
    assert owned.run(f"{SSH} {CLOUD} true").returncode == 0


def test_a_killed_host_leaves_no_process_namespace_or_card(lab: Lab, owned: LabHost) -> None:
    host = lab.add_host("victim", site="aws", address="10.77.64.201")
    namespaces = {kind: read_namespace(host.pid, kind) for kind in ("pid", "net", "mnt")}
    host.check("setsid sleep 1000 >/dev/null 2>&1 & echo")
    assert len(list_in_namespace(namespaces["pid"], "pid")) == 3
    cards = lab.run(["ip", "-brief", "link"]).count("card")
    lab.remove_host("victim")
    for kind, namespace in namespaces.items():
        assert list_in_namespace(namespace, kind) == []
    assert wait_until(lambda: lab.run(["ip", "-brief", "link"]).count("card") == cards - 1)
    assert not (lab.folder / "hosts" / "victim").exists()


def test_a_lab_ends_with_its_owner_however_that_ends() -> None:
    """The owner is killed, so it can't clean up: the kernel does."""
    script = (
        "from tests.lab.lab import Lab\n"
        "import time\n"
        "with Lab() as lab:\n"
        "    lab.add_host('a', site='onprem', address='10.77.0.9')\n"
        "    print(lab.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert owner.stdout is not None
    namespace = read_namespace(int(owner.stdout.readline()), "net")
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert wait_until(lambda: list_in_namespace(namespace, "net") == [])
    assert "tidegate-lab" not in Path("/proc/mounts").read_text()


def launch(ec2: Ec2, **arguments: object) -> str:
    answer = ec2.ask(
        "run_instances",
        ImageId=ec2.network.image,
        InstanceType="g6e.xlarge",
        SubnetId=ec2.network.subnets["us-east-1b"],
        MinCount=1,
        MaxCount=1,
        InstanceInitiatedShutdownBehavior="terminate",
        **arguments,
    )
    return str(answer["Instances"][0]["InstanceId"])


def test_an_instance_is_a_machine_from_launch_to_its_end(
    owned: LabHost, ec2: Ec2, hypervisor: Hypervisor
) -> None:
    instance_id = launch(ec2)
    assert wait_until(lambda: instance_id in hypervisor.machines)
    address = hypervisor.machines[instance_id].host.address
    assert address.startswith("10.77.80.")
    assert owned.run(f"{SSH} {address} true").returncode == 0
    ec2.ask("terminate_instances", InstanceIds=[instance_id])
    assert wait_until(lambda: instance_id not in hypervisor.machines)
    assert not reaches(owned, address)


def test_an_instance_that_turns_itself_off_is_terminated(ec2: Ec2, hypervisor: Hypervisor) -> None:
    instance_id = launch(ec2)
    assert wait_until(lambda: instance_id in hypervisor.machines)
    hypervisor.machines[instance_id].host.run("shutdown -h now")
    assert wait_until(lambda: instance_id not in ec2.list_paid())
    assert wait_until(lambda: instance_id not in hypervisor.machines)


def test_a_stopped_instance_gets_its_disk_back_when_started(
    ec2: Ec2, hypervisor: Hypervisor
) -> None:
    instance_id = launch(ec2)
    assert wait_until(lambda: instance_id in hypervisor.machines)
    hypervisor.machines[instance_id].host.check("touch ~/kept /tmp/lost")
    ec2.ask("stop_instances", InstanceIds=[instance_id])
    assert wait_until(lambda: instance_id not in hypervisor.machines)
    ec2.ask("start_instances", InstanceIds=[instance_id])
    assert wait_until(lambda: instance_id in hypervisor.machines)
    assert "kept" in hypervisor.machines[instance_id].host.run("ls ~/kept /tmp/lost").stdout
    assert "lost" not in hypervisor.machines[instance_id].host.run("ls ~/kept /tmp/lost").stdout


def test_an_instance_learns_of_its_interruption_from_its_metadata(
    ec2: Ec2, hypervisor: Hypervisor
) -> None:
    instance_id = launch(ec2)
    assert wait_until(lambda: instance_id in hypervisor.machines)
    machine = hypervisor.machines[instance_id]
    fetch = (
        'token=$(curl -s -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60"'
        " $AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/api/token);"
        ' curl -s -w " %{http_code}" -H "X-aws-ec2-metadata-token: $token"'
        " $AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/meta-data/"
    )
    assert machine.host.check(f"{fetch}instance-id") == f"{instance_id} 200"
    assert machine.host.check(f"{fetch}spot/instance-action") == " 404"
    machine.imds.announce_interruption(1_800_000_000)
    assert '"time": "2027-01-15T08:00:00Z"' in machine.host.check(f"{fetch}spot/instance-action")
    machine.imds.is_down = True
    assert machine.host.run(f"{fetch}spot/instance-action").returncode != 0


def test_the_api_is_reached_from_every_site(owned: LabHost, rented: LabHost, ec2: Ec2) -> None:
    for host in (owned, rented):
        assert host.run(f"bash -c '</dev/tcp/{SERVICES_ADDRESS}/{PORT}'").returncode == 0
