"""Instances kept stopped: used first, never paid for twice, found again after a crash."""

from typing import Any

import pytest

from cluster.errors import BackendError
from cluster.model import InstanceState, LaunchSpec, NodeId, NodeTypeName
from tests.cluster.aws_rig import NODE_CONFIG, Ec2Rig, build_aws_spec

FIRST, SECOND = NodeId("n-1"), NodeId("n-2")
SET_UP = {"ray-node-status": "up-to-date"}


def build_warm_spec(node_id: str = "n-1", *, kept_max: int = 1, **changes: Any) -> LaunchSpec:
    config = {**NODE_CONFIG, "warm_stopped_max": kept_max}
    return build_aws_spec(node_id, **{"node_config": config, "tags": SET_UP, **changes})


def list_stopped(ec2: Ec2Rig) -> list[str]:
    return [one["InstanceId"] for one in ec2.list_ec2("stopping", "stopped")]


def test_a_node_that_goes_home_is_kept_stopped_and_started_again_as_the_next_one(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec("n-1", tags={**SET_UP, "ray-node-name": "old"}))
    (one,) = ec2.list_ec2()
    for _ in range(2):
        backend.terminate([FIRST])
    assert list_stopped(ec2) == [one["InstanceId"]]
    assert backend.list_instances() == []

    ec2.open().launch(build_warm_spec("n-2", tags={"ray-node-type": "worker"}))
    assert [each["InstanceId"] for each in ec2.list_ec2()] == [one["InstanceId"]]
    assert ec2.faults.count("RunInstances") == 1
    (instance,) = backend.list_instances()
    assert instance.spec == build_warm_spec("n-2", tags={"ray-node-type": "worker"})
    assert instance.state is InstanceState.RUNNING


def test_launching_the_same_spec_twice_starts_one_warm_instance(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    for node_id in ("n-1", "n-2"):
        backend.launch(build_warm_spec(node_id, kept_max=2))
    backend.terminate([FIRST, SECOND])
    assert len(list_stopped(ec2)) == 2
    for _ in range(2):
        backend.launch(build_warm_spec("n-3", kept_max=2))
    assert len(ec2.list_ec2()) == 1


def test_no_more_than_the_wanted_number_is_kept(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    for node_id in ("n-1", "n-2", "n-3"):
        backend.launch(build_warm_spec(node_id, kept_max=2))
    backend.terminate([FIRST])
    backend.terminate([SECOND, NodeId("n-3")])
    assert len(list_stopped(ec2)) == 2
    assert ec2.list_ec2() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"node_type": NodeTypeName("cloud_spot")},
        {"is_head": True},
        {"tags": {"ray-node-status": "setting-up"}},
        {"kept_max": 0},
    ],
    ids=["spot", "head", "never set up", "option off"],
)
def test_what_may_not_be_kept_is_ended(ec2: Ec2Rig, changes: dict[str, Any]) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec(**changes))
    backend.terminate([FIRST])
    assert (ec2.list_ec2(), list_stopped(ec2)) == ([], [])


def test_an_instance_of_another_image_is_ended_and_a_new_one_launched(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec())
    backend.terminate([FIRST])
    image = ec2.direct.register_image(Name="newer")["ImageId"]
    ec2.open(image=image).launch(build_warm_spec("n-2"))
    (one,) = ec2.list_ec2()
    assert one["ImageId"] == image
    assert list_stopped(ec2) == []


def test_a_warm_instance_that_its_zone_has_no_room_for_stays_warm_and_a_new_one_comes(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec())
    backend.terminate([FIRST])
    ec2.faults.add("error", action="StartInstances", code="InsufficientInstanceCapacity")
    backend.launch(build_warm_spec("n-2"))
    assert len(list_stopped(ec2)) == 1
    assert [one.spec.node_id for one in backend.list_instances()] == ["n-2"]


def test_a_crash_between_tag_and_stop_leaves_an_instance_that_a_later_look_stops(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec())
    ec2.faults.add("down", action="StopInstances")
    with pytest.raises(BackendError):
        backend.terminate([FIRST])
    assert len(ec2.list_ec2()) == 1
    ec2.faults.clear()
    restarted = ec2.open()
    for _ in range(3):
        assert restarted.list_instances() == []
    assert ec2.list_ec2() == []
    assert len(list_stopped(ec2)) == 1


def test_a_crash_between_tag_and_start_leaves_a_stopped_node_that_its_site_ends(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    backend.launch(build_warm_spec())
    backend.terminate([FIRST])
    ec2.faults.add("down", action="StartInstances")
    with pytest.raises(BackendError):
        backend.launch(build_warm_spec("n-2"))
    ec2.faults.clear()
    restarted = ec2.open()
    (instance,) = restarted.list_instances()
    assert (instance.spec.node_id, instance.state) == ("n-2", InstanceState.STOPPED)
    restarted.terminate([SECOND])
    assert (ec2.list_ec2(), list_stopped(ec2)) == ([], [])


def test_the_end_of_the_cluster_is_the_end_of_what_was_kept_and_of_keeping(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    for node_id in ("n-1", "n-2"):
        backend.launch(build_warm_spec(node_id, kept_max=2))
    backend.terminate([FIRST])
    assert len(list_stopped(ec2)) == 1
    leaving = ec2.open()
    leaving.end_warm_pool()
    leaving.terminate([SECOND])
    assert (ec2.list_ec2(), list_stopped(ec2)) == ([], [])
