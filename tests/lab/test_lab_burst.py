"""The hybrid cluster under load: machines join, the cloud opens, serves and goes home.

Earns its minutes: launcher, SSH, EC2's API, Ray, Serve, gateway and autoscaler meet nowhere else.
The commands are those of cluster/hybrid.yaml; only times and sizes are smaller.
"""

import pytest

from tests.lab.ec2 import SECRET_KEY
from tests.lab.host import LabHost
from tests.lab.hybrid import HybridLab
from tests.lab.hybrid_files import CLOUD
from tests.lab.steps import count_nodes, open_burst, wait_for_home

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(540)]


def test_load_opens_the_cloud_and_its_end_closes_it(running: HybridLab) -> None:
    """4 owned slots and 12 streams: the cloud is opened, serves, and goes home by itself."""
    with open_burst(running) as load:
        rented = [
            node["labels"] for node in running.list_nodes() if node["labels"].get("site") == CLOUD
        ]
    assert load.failed == []
    assert {(labels["market"], labels["owned"]) for labels in rented} == {("spot", "false")}
    wait_for_home(running)
    assert count_nodes(running, site="onprem") == 3
    # One launch for each instance that ran: nothing was paid for twice.
    assert running.faults.count("RunInstances") == len(running.ec2.list_instances())


def test_secrets_stay_where_they_were_put(running: HybridLab) -> None:
    """The canary is the AWS secret; the SSH key is for operator and head only."""
    for host in running.lab.hosts.values():
        assert find_text(host, SECRET_KEY) <= {"/home/root/.aws/credentials"}, host.name
    # The first lines are the same in every key, the last but two is secret.
    key_line = running.lab.private_key.splitlines()[-3]
    for name in ("l40s-1", "l40s-2"):
        assert find_text(running.owned[name], key_line) == set()


def find_text(host: LabHost, text: str) -> set[str]:
    """Return the files that hold a text, command lines and environments of processes included."""
    host.write("/needle", text)
    places = "/home /tmp /var/log /run /etc/ssh /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    return set(host.run(f"grep -rsalF -f /needle {places}").stdout.splitlines())
