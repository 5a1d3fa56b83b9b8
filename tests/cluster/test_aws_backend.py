"""The aws backend against moto behind the fault proxy: one instance per node, come what may."""

import threading
import time
from dataclasses import replace

import pytest

from cluster.backends.aws_tags import TAG_SPEC
from cluster.errors import BackendError, CredentialsError, NoCapacityError
from cluster.model import Cordon, InstanceState, NodeId, NodeTypeName
from tests.cluster.aws_rig import QUICK, ZONES, Ec2Rig, build_aws_spec

NODE = NodeId("n-1")
# Listings are believed as late as in production.
PATIENT = replace(QUICK, settle_s=60)
# Gives an answer up soon, for faults that delay it.
HASTY = replace(QUICK, read_s=0.7, tries_max=8)


def test_a_launch_asks_once_with_token_tags_and_everything_a_node_must_have(ec2: Ec2Rig) -> None:
    ec2.open().launch(build_aws_spec())
    (call,) = [one.params for one in ec2.faults.calls if one.action == "RunInstances"]
    assert (call["MinCount"], call["MaxCount"]) == ("1", "1")
    assert len(call["ClientToken"]) == 64
    assert call["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert call["MetadataOptions.HttpTokens"] == "required"
    assert call["SubnetId"] == ec2.settings.subnets[ZONES[0]]
    (image,) = ec2.direct.describe_images(ImageIds=[ec2.image])["Images"]
    assert call["BlockDeviceMapping.1.DeviceName"] == image["RootDeviceName"]
    assert call["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert {call[f"TagSpecification.{n}.ResourceType"] for n in (1, 2)} == {"instance", "volume"}
    (one,) = ec2.list_ec2()
    tags = ec2.tags_of(one["InstanceId"])
    assert (tags["tidegate-cluster"], tags["tidegate-site"]) == ("test", "cloud")
    assert (tags["tidegate-node"], tags["ray-node-type"]) == ("n-1", "worker")
    assert not [name for name in call if name.startswith("InstanceMarketOptions")]


def test_a_spot_node_is_asked_for_once_and_ends_when_it_is_taken_away(ec2: Ec2Rig) -> None:
    ec2.open().launch(build_aws_spec(node_type=NodeTypeName("cloud_spot")))
    (call,) = [one.params for one in ec2.faults.calls if one.action == "RunInstances"]
    assert call["InstanceMarketOptions.MarketType"] == "spot"
    assert call["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert call["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "lose_response"},
        {"kind": "duplicate"},
        {"kind": "throttle"},
        {"kind": "error", "status": 500, "code": "InternalError"},
        {"kind": "down"},
        {"kind": "hang", "seconds": 2},
        {"kind": "delay", "seconds": 1},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_launch_gives_one_instance_though_the_first_call_goes_wrong(
    ec2: Ec2Rig, fault: dict[str, object]
) -> None:
    ec2.faults.add(**{"action": "RunInstances", "times": 1, **fault})
    backend = ec2.open(limits=HASTY if "seconds" in fault else QUICK)
    backend.launch(build_aws_spec())
    assert len(ec2.list_ec2()) == 1
    assert [one.spec.node_id for one in backend.list_instances()] == ["n-1"]


def test_answers_that_never_come_are_an_error_in_bounded_time_and_no_other_candidate(
    ec2: Ec2Rig,
) -> None:
    """Whether an instance runs is unknown, so another offering could be paid for twice."""
    ec2.faults.add("lose_response", action="RunInstances")
    backend = ec2.open()
    with pytest.raises(BackendError, match=r"must answer run_instances; got, 4 times") as caught:
        backend.launch(build_aws_spec())
    assert not isinstance(caught.value, NoCapacityError)
    assert ec2.faults.count("RunInstances") == 4
    assert ec2.faults.count("RunInstances", InstanceType="g6.2xlarge") == 4
    assert len(ec2.list_ec2()) == 1
    ec2.faults.clear()
    backend.terminate([NODE])
    assert ec2.list_ec2() == []


def test_a_sold_out_first_choice_gives_the_next_candidate_in_the_same_launch(ec2: Ec2Rig) -> None:
    ec2.faults.add("sold_out", zone=ZONES[0], instance_type="g6.2xlarge")
    backend = ec2.open()
    backend.launch(build_aws_spec())
    (one,) = backend.list_instances()
    assert one.offering == f"g6.2xlarge in {ZONES[1]}"
    assert [(row.instance_type, row.zone) for row in backend.sold_out] == [("g6.2xlarge", ZONES[0])]


def test_a_sold_out_offering_is_asked_for_once_per_cache_time_over_launches_and_processes(
    ec2: Ec2Rig,
) -> None:
    """Two types in two zones: four calls for three launches, then none in a second process."""
    ec2.faults.add("sold_out")
    backend = ec2.open()
    for number in range(3):
        with pytest.raises(NoCapacityError, match="InsufficientInstanceCapacity") as caught:
            backend.launch(build_aws_spec(f"n-{number}"))
        assert 170 < caught.value.retry_s <= 180
    assert ec2.faults.count("RunInstances") == 4
    later = ec2.open()
    later.recall_sold_out(backend.sold_out)
    with pytest.raises(NoCapacityError):
        later.launch(build_aws_spec())
    assert ec2.faults.count("RunInstances") == 4
    assert ec2.list_ec2() == []


def test_a_sold_out_offering_is_asked_for_again_when_its_time_is_over(ec2: Ec2Rig) -> None:
    ec2.faults.add("sold_out", times=4)
    backend = ec2.open(sold_out_s=0.3)
    with pytest.raises(NoCapacityError):
        backend.launch(build_aws_spec())
    time.sleep(0.4)
    backend.launch(build_aws_spec())
    assert len(ec2.list_ec2()) == 1


@pytest.mark.parametrize(
    ("code", "node_type", "asked"),
    [
        ("VcpuLimitExceeded", "cloud_gpu", 2),
        ("MaxSpotInstanceCountExceeded", "cloud_spot", 1),
        ("InsufficientFreeAddressesInSubnet", "cloud_gpu", 2),
        ("UnfulfillableCapacity", "cloud_spot", 4),
    ],
)
def test_a_quota_is_met_once_for_all_that_it_rules_out(
    ec2: Ec2Rig, code: str, node_type: str, asked: int
) -> None:
    """Of four candidates: per type 2 calls, per market 1, per zone 2, per offering 4."""
    ec2.faults.add("sold_out", code=code, status=400)
    with pytest.raises(NoCapacityError, match=code):
        ec2.open().launch(build_aws_spec(node_type=NodeTypeName(node_type)))
    assert ec2.faults.count("RunInstances") == asked


def test_a_mistake_in_the_settings_is_an_error_and_no_lack_of_capacity(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    with pytest.raises(BackendError, match=r"node_config of cloud_gpu .* instance_types"):
        backend.launch(build_aws_spec(node_config={}))
    with pytest.raises(BackendError, match=r"zones must have a subnet .* mars"):
        backend.launch(build_aws_spec(node_config={"instance_types": ["a"], "zones": ["mars"]}))
    ec2.faults.add("error", action="RunInstances", code="UnauthorizedOperation", status=403)
    with pytest.raises(BackendError, match=r"UnauthorizedOperation.*aws_policy\.json") as caught:
        backend.launch(build_aws_spec())
    assert not isinstance(caught.value, NoCapacityError)


def test_expired_credentials_are_told_as_such_and_new_ones_need_no_restart(
    ec2: Ec2Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    expired = ec2.faults.add("expired")
    for ask in (backend.list_instances, lambda: backend.terminate([NODE])):
        with pytest.raises(CredentialsError, match=r"RequestExpired.*Renew them"):
            ask()
    # Once per question: what is refused isn't asked again.
    assert sum(call.done == "expired" for call in ec2.faults.calls) == 2
    ec2.faults.remove(expired)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIARENEWEDRENEWED00")
    assert len(backend.list_instances()) == 1


def test_missing_credentials_are_told_with_what_to_do(
    ec2: Ec2Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(CredentialsError, match="aws sts get-caller-identity"):
        ec2.open().list_instances()
    assert ec2.faults.calls == []


@pytest.mark.parametrize(("keep", "silent"), [(0, 3), (1, 1)], ids=["empty", "partial"])
def test_a_listing_that_lacks_instances_by_mistake_loses_none(
    ec2: Ec2Rig, keep: int, silent: int
) -> None:
    """With one kept of each answer, the listing tells of one and the question by id of another."""
    backend = ec2.open(limits=PATIENT)
    for number in range(3):
        backend.launch(build_aws_spec(f"n-{number}"))
    assert len(backend.list_instances()) == 3
    ec2.faults.add("partial", keep=keep)
    for _ in range(5):
        instances = backend.list_instances()
        assert {one.spec.node_id for one in instances} == {"n-0", "n-1", "n-2"}
        assert sum(one.is_silent for one in instances) == silent
    ec2.faults.clear()
    assert not any(one.is_silent for one in backend.list_instances())


def test_the_first_listing_of_a_process_survives_one_empty_answer(ec2: Ec2Rig) -> None:
    ec2.open().launch(build_aws_spec())
    ec2.faults.add("partial", keep=0, times=1)
    assert len(ec2.open().list_instances()) == 1


def test_a_listing_that_fails_is_an_error_never_a_part_of_the_answer(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    for fault in ({"kind": "throttle"}, {"kind": "down"}, {"kind": "error"}):
        number = ec2.faults.add(**fault)
        with pytest.raises(BackendError, match="describe_instances"):
            backend.list_instances()
        ec2.faults.remove(number)


def test_a_node_just_launched_is_listed_though_ec2_does_not_show_it_yet(ec2: Ec2Rig) -> None:
    """Its own process knows it at once and can end it; another one within `settle_s`."""
    backend = ec2.open(limits=PATIENT)
    ec2.faults.add("hide_new", seconds=60)
    backend.launch(build_aws_spec())
    (one,) = backend.list_instances()
    assert (one.spec.node_id, one.is_silent) == ("n-1", True)
    assert ec2.open().list_instances() == []
    backend.terminate([NODE])
    assert ec2.list_ec2() == []
    assert backend.list_instances() == []


def test_an_old_listing_does_not_bring_an_ended_node_back(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    backend.list_instances()
    ec2.faults.add("stale", seconds=60)
    backend.terminate([NODE])
    assert backend.list_instances() == []


def test_all_pages_of_a_listing_are_read(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend._instances._page_size = 5
    for number in range(7):
        backend.launch(build_aws_spec(f"n-{number}"))
    before = ec2.faults.count("DescribeInstances")
    assert len(ec2.open().list_instances()) == 7
    assert len(backend.list_instances()) == 7
    assert ec2.faults.count("DescribeInstances") > before + 2 + 1


def test_an_instance_whose_tags_cannot_be_read_is_told_and_hides_no_other(
    ec2: Ec2Rig, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec("n-good"))
    backend.launch(build_aws_spec("n-bad"))
    (bad,) = [
        one["InstanceId"]
        for one in ec2.list_ec2()
        if ec2.tags_of(one["InstanceId"])["tidegate-node"] == "n-bad"
    ]
    ec2.direct.delete_tags(Resources=[bad], Tags=[{"Key": TAG_SPEC}])
    for _ in range(3):
        assert [one.spec.node_id for one in backend.list_instances()] == ["n-good"]
    (stray,) = backend.strays
    assert (stray.instance_id, TAG_SPEC in stray.why) == (bad, True)
    assert sum(bad in line for line in caplog.messages) == 1
    assert len(ec2.list_ec2()) == 2


def test_of_two_instances_of_one_node_the_older_is_the_node_and_the_other_a_stray(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    (one,) = ec2.list_ec2()
    copied = ec2.direct.run_instances(ImageId=ec2.image, MinCount=1, MaxCount=1)["Instances"][0]
    ec2.direct.create_tags(Resources=[copied["InstanceId"]], Tags=one["Tags"])
    assert len(backend.list_instances()) == 1
    assert len(backend.strays) == 1
    backend.terminate([NODE])
    assert ec2.list_ec2() == []


def test_one_instance_that_cannot_be_ended_keeps_no_other_running(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    for node_id in ("n-1", "n-2", "n-3"):
        backend.launch(build_aws_spec(node_id))
    (held,) = [
        one["InstanceId"]
        for one in ec2.list_ec2()
        if ec2.tags_of(one["InstanceId"])["tidegate-node"] == "n-2"
    ]
    ec2.direct.modify_instance_attribute(InstanceId=held, DisableApiTermination={"Value": True})
    with pytest.raises(BackendError, match=held):
        backend.terminate([NodeId("n-1"), NodeId("n-2"), NodeId("n-3")])
    assert [one["InstanceId"] for one in ec2.list_ec2()] == [held]
    assert [one.spec.node_id for one in backend.list_instances()] == ["n-2"]


def test_an_instance_that_was_switched_off_is_listed_as_stopped(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    (one,) = ec2.list_ec2()
    ec2.direct.stop_instances(InstanceIds=[one["InstanceId"]])
    (instance,) = backend.list_instances()
    assert instance.state is InstanceState.STOPPED


def test_an_instance_that_ended_itself_is_gone(ec2: Ec2Rig) -> None:
    backend = ec2.open(limits=PATIENT)
    backend.launch(build_aws_spec())
    backend.list_instances()
    (one,) = ec2.list_ec2()
    ec2.direct.terminate_instances(InstanceIds=[one["InstanceId"]])
    assert backend.list_instances() == []


def test_what_other_sites_and_clusters_run_is_neither_listed_nor_ended(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    elsewhere = ec2.open(site="elsewhere")
    assert elsewhere.list_instances() == []
    elsewhere.terminate([NODE])
    assert len(backend.list_instances()) == 1


def test_a_cordon_set_by_one_process_is_seen_by_another(ec2: Ec2Rig) -> None:
    backend = ec2.open()
    backend.launch(build_aws_spec())
    ec2.open().set_tags(NODE, {"tidegate-cordon": "draining"})
    (one,) = backend.list_instances()
    assert one.cordon is Cordon.DRAINING
    assert one.spec.tags["ray-node-type"] == "worker"


def test_the_time_of_the_last_listing_is_known_and_stands_still_while_ec2_fails(
    ec2: Ec2Rig,
) -> None:
    backend = ec2.open()
    assert backend.listed_s is None
    backend.list_instances()
    listed_s = backend.listed_s
    assert listed_s is not None
    ec2.faults.add("down")
    with pytest.raises(BackendError):
        backend.list_instances()
    assert backend.listed_s == listed_s


def test_credentials_stand_in_no_tag_argument_log_or_error(
    ec2: Ec2Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    backend = ec2.open()
    backend.launch(build_aws_spec())
    said = []
    for fault in ("down", "expired", "throttle", "error"):
        number = ec2.faults.add(fault)
        with pytest.raises(BackendError) as caught:
            backend.list_instances()
        said.append(repr(caught.value))
        ec2.faults.remove(number)
    (one,) = ec2.list_ec2()
    told = [*said, *caplog.messages, repr(one), repr([call.params for call in ec2.faults.calls])]
    assert len(told) > 5
    assert not [text for text in told if "canary" in text.lower()]


def test_runners_find_a_node_that_another_process_launched(ec2: Ec2Rig) -> None:
    ec2.open().launch(build_aws_spec())
    reader = ec2.open()
    target = reader._locate(NODE)
    assert target is not None
    assert target.login.startswith("ubuntu@10.9.")
    environment = reader._build_environment(NODE, target.address)
    assert environment["TIDEGATE_NODE"] == "n-1"
    assert environment["TIDEGATE_LOST_HEAD_S_MAX"] == "300"
    assert reader._locate(NodeId("never-was")) is None


def test_calls_from_many_threads_keep_to_the_rate(ec2: Ec2Rig) -> None:
    """At 20 calls/s with a burst of 40, 50 calls need at least half a second."""
    backend = ec2.open(calls_per_s=20.0, limits=QUICK)
    began_s = time.monotonic()
    threads = [
        threading.Thread(target=lambda: [backend._locate(NODE) for _ in range(10)])
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began_s >= 0.5
