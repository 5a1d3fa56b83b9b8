"""The fault proxy does what it says; other tests rest on it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.aws_rig import REGION, ZONES, Ec2Rig, open_moto, open_rig


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with open_moto() as url:
        yield url


@pytest.fixture
def ec2(moto_url: str, tmp_path: Path) -> Iterator[Ec2Rig]:
    with open_rig(moto_url, tmp_path) as rig:
        yield rig


def open_client(ec2: Ec2Rig, *, read_s: float = 10.0) -> Any:
    config = Config(connect_timeout=3, read_timeout=read_s, retries={"total_max_attempts": 1})
    return boto3.client("ec2", region_name=REGION, endpoint_url=ec2.faults.url, config=config)


def run(client: Any, ec2: Ec2Rig, **changes: Any) -> dict[str, Any]:
    wanted = {
        "ImageId": ec2.image,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": "t-1",
        "InstanceType": "g6.2xlarge",
        "SubnetId": ec2.settings.subnets[ZONES[0]],
    }
    instance: dict[str, Any] = client.run_instances(**{**wanted, **changes})["Instances"][0]
    return instance


def list_ids(client: Any, **request: Any) -> list[str]:
    groups = client.describe_instances(**request)["Reservations"]
    return [one["InstanceId"] for group in groups for one in group["Instances"]]


def catch_code(call: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def test_a_token_gives_one_instance_and_other_parameters_with_it_are_refused(ec2: Ec2Rig) -> None:
    client = open_client(ec2)
    first = run(client, ec2)
    assert run(client, ec2)["InstanceId"] == first["InstanceId"]
    refused = catch_code(lambda: run(client, ec2, InstanceType="g5.2xlarge"))
    assert refused == "IdempotentParameterMismatch"
    assert run(client, ec2, ClientToken="t-2")["InstanceId"] != first["InstanceId"]
    assert len(ec2.list_ec2()) == 2


def test_a_repeated_token_shows_the_state_that_its_instance_is_in_by_now(ec2: Ec2Rig) -> None:
    client = open_client(ec2)
    first = run(client, ec2)
    client.terminate_instances(InstanceIds=[first["InstanceId"]])
    assert run(client, ec2)["State"] == {"Code": 48, "Name": "terminated"}


def test_a_lost_response_has_its_effect_and_a_repetition_gives_the_same_instance(
    ec2: Ec2Rig,
) -> None:
    client = open_client(ec2)
    ec2.faults.add("lose_response", action="RunInstances", times=1)
    with pytest.raises(BotoCoreError):
        run(client, ec2)
    (one,) = ec2.list_ec2()
    assert run(client, ec2)["InstanceId"] == one["InstanceId"]
    assert [call.done for call in ec2.faults.calls] == ["lose_response", "passed"]


def test_a_duplicate_arrives_twice_and_a_token_makes_it_one(ec2: Ec2Rig) -> None:
    ec2.faults.add("duplicate")
    run(open_client(ec2), ec2)
    assert len(ec2.list_ec2()) == 1


def test_an_offering_is_sold_out_by_type_zone_and_market_and_the_others_are_not(
    ec2: Ec2Rig,
) -> None:
    client = open_client(ec2)
    ec2.faults.add("sold_out", instance_type="g6.2xlarge", zone=ZONES[0], market="on_demand")
    assert catch_code(lambda: run(client, ec2)) == "InsufficientInstanceCapacity"
    run(client, ec2, ClientToken="t-2", SubnetId=ec2.settings.subnets[ZONES[1]])
    run(client, ec2, ClientToken="t-3", InstanceType="g5.2xlarge")
    run(client, ec2, ClientToken="t-4", InstanceMarketOptions={"MarketType": "spot"})
    assert len(ec2.list_ec2()) == 3


@pytest.mark.parametrize(
    ("kind", "code"),
    [("throttle", "RequestLimitExceeded"), ("expired", "RequestExpired"), ("error", "VcpuLimit")],
)
def test_refusals_carry_their_code_and_have_no_effect_and_end(
    ec2: Ec2Rig, kind: str, code: str
) -> None:
    client = open_client(ec2)
    details = {"code": code, "status": 400} if kind == "error" else {}
    ec2.faults.add(kind, times=2, **details)
    for _ in range(2):
        assert catch_code(lambda: run(client, ec2)) == code
    assert ec2.list_ec2() == []
    run(client, ec2)


def test_listings_can_be_partial_late_and_old(ec2: Ec2Rig) -> None:
    client = open_client(ec2)
    known = [run(client, ec2, ClientToken=f"t-{number}")["InstanceId"] for number in range(3)]
    number = ec2.faults.add("partial", keep=2)
    assert list_ids(client) == known[:2]
    ec2.faults.remove(number)
    number = ec2.faults.add("hide_new", seconds=3)
    fresh = run(client, ec2, ClientToken="t-new")["InstanceId"]
    assert fresh not in list_ids(client)
    assert catch_code(lambda: list_ids(client, InstanceIds=[fresh])) == "InvalidInstanceID.NotFound"
    time.sleep(3.1)
    assert fresh in list_ids(client)
    ec2.faults.add("stale", seconds=60)
    client.terminate_instances(InstanceIds=[fresh])
    (group,) = [
        one
        for one in client.describe_instances()["Reservations"]
        if one["Instances"][0]["InstanceId"] == fresh
    ]
    assert group["Instances"][0]["State"]["Name"] == "running"


def test_an_api_that_is_down_hung_or_slow_fails_as_a_network_does(ec2: Ec2Rig) -> None:
    client = open_client(ec2, read_s=0.7)
    for kind in ("down", "hang", "delay"):
        number = ec2.faults.add(kind, seconds=2)
        with pytest.raises(BotoCoreError):
            list_ids(client)
        ec2.faults.remove(number)
    assert list_ids(open_client(ec2)) == []


def test_another_process_switches_faults_and_reads_the_log_over_http(ec2: Ec2Rig) -> None:
    def ask(method: str, path: str, content: object = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        with urlopen(Request(f"{ec2.faults.url}{path}", data=body, method=method)) as answer:
            return json.load(answer)

    client = open_client(ec2)
    before_s = time.time()
    number = ask("POST", "/_faults", {"kind": "throttle", "times": 1})["id"]
    assert [one["left"] for one in ask("GET", "/_faults")] == [1]
    assert catch_code(lambda: list_ids(client)) == "RequestLimitExceeded"
    (call,) = ask("GET", "/_calls")
    assert (call["action"], call["done"]) == ("DescribeInstances", "throttle")
    assert before_s <= call["at_s"] <= time.time()
    ask("DELETE", f"/_faults?id={number}")
    assert ask("GET", "/_faults") == []


def test_a_fault_of_an_unknown_kind_is_refused(ec2: Ec2Rig) -> None:
    with pytest.raises(ValueError, match="kind must be one of down, hang"):
        ec2.faults.add("flood")
