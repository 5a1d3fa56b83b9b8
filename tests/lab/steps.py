"""What every test of the hybrid cluster does: start it, open the cloud, look for what is left."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.hybrid import HybridLab
from tests.lab.hybrid_files import CLOUD
from tests.lab.load import Load
from tests.lab.waiting import wait_until

_log = logging.getLogger("lab")
JOIN_S_MAX = 240
BURST_S_MAX = 180
HOME_S_MAX = 150


def start(hybrid: HybridLab) -> None:
    """Bring the cluster up and its applications with it."""
    hybrid.up()
    _log.info("ray up is done")
    wait_until(
        lambda: count_nodes(hybrid, site="onprem") == 3,
        "head and two owned hosts join",
        timeout_s=JOIN_S_MAX,
        now=hybrid.list_nodes,
    )
    hybrid.deploy()
    _log.info("applications run")


def count_nodes(hybrid: HybridLab, **labels: str) -> int:
    """Return how many nodes with these labels Ray counts as alive."""
    return sum(labels.items() <= node["labels"].items() for node in hybrid.list_nodes())


@contextmanager
def open_burst(hybrid: HybridLab) -> Iterator[Load]:
    """Yield a load that the cloud helps with; afterwards all of its requests have ended."""
    with Load(hybrid, streams=12) as load:
        wait_until(
            lambda: CLOUD in load.sites,
            "a request is answered in the cloud",
            timeout_s=BURST_S_MAX,
            now=lambda: (load.sites, load.failed[:3], hybrid.ec2.list_paid()),
        )
        yield load


def wait_for_home(hybrid: HybridLab) -> None:
    """Block until nothing rented is left."""
    wait_until(
        lambda: not hybrid.ec2.list_paid(),
        "rented machines go home",
        timeout_s=HOME_S_MAX,
        now=hybrid.list_nodes,
    )


def assert_nothing_left(hybrid: HybridLab) -> None:
    """Insist that no instance, claim or process of the cluster is left."""
    assert hybrid.ec2.list_paid() == []
    assert hybrid.list_claims() == []
    assert hybrid.list_processes() == []


def assert_paid_once(hybrid: HybridLab) -> None:
    """Insist that no node of ours ever was two instances."""
    nodes = Counter(
        tag["Value"]
        for instance in hybrid.ec2.list_instances()
        for tag in instance.get("Tags", ())
        if tag["Key"] == "tidegate-node"
    )
    assert set(nodes.values()) == {1}, nodes
