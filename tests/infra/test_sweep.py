"""The leak sweep finds what nobody knows, in every region, and is careful with everything else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.backends.aws_listing import Ec2Instance
from cluster.backends.aws_tags import TAG_SPEC, TAG_WARM, render_tags, to_ec2
from cluster.config import ClusterSettings, parse_cluster_config
from cluster.ledger import Ledger
from cluster.model import LaunchSpec, NodeId, NodePhase, NodeTypeName, SiteName
from infra.sweep import Known, decide_fates, sweep
from tests.cluster.aws_rig import REGION, Ec2Rig, build_aws_spec
from tests.infra.test_aws_policy import build_content

OTHER = "us-west-2"
KNOWN = Known(
    region_of={SiteName("cloud"): REGION},
    node_types={NodeTypeName("cloud_gpu")},
    node_ids={NodeId("n-known")},
    grace_s=600,
    ends_warm=False,
)


def build_found(
    spec: LaunchSpec | None = None, *, age_s: float = 3600, **tags: str | None
) -> Ec2Instance:
    """Return an instance as it is found at time 10,000 s; a tag None is removed."""
    changed = {**render_tags(spec or build_aws_spec()), **tags}
    return Ec2Instance(
        instance_id=f"i-{(spec or build_aws_spec()).node_id}-{age_s:g}",
        state="running",
        tags={name: text for name, text in changed.items() if text is not None},
        instance_type="g6.2xlarge",
        zone=f"{REGION}a",
        image="ami-1",
        address=None,
        launched_s=10_000 - age_s,
    )


def decide(*found: Ec2Instance, region: str = REGION, known: Known = KNOWN) -> list[str]:
    return [one.fate for one in decide_fates(found, region=region, known=known, now_s=10_000)]


@pytest.mark.parametrize(
    ("found", "fate"),
    [
        (build_found(), "adopt"),
        (build_found(build_aws_spec("n-known")), "keep"),
        (build_found(age_s=599), "keep"),
        (build_found(build_aws_spec(node_type=NodeTypeName("gone"))), "end"),
        (build_found(**{TAG_SPEC: "{"}), "end"),
        (build_found(**{"tidegate-site": "nowhere"}), "end"),
        (build_found(**{"tidegate-site": None}), "end"),
        (build_found(**{TAG_WARM: "cloud_gpu"}), "keep"),
        (build_found(**{TAG_WARM: "gone"}), "end"),
    ],
    ids=["unknown", "known", "young", "type", "spec", "site", "no site", "warm", "warm of a type"],
)
def test_what_becomes_of_an_instance_in_its_sites_region(found: Ec2Instance, fate: str) -> None:
    assert decide(found) == [fate]


def test_in_a_region_without_its_site_even_a_known_node_is_ended_but_not_a_young_one() -> None:
    known = build_aws_spec("n-known")
    assert decide(build_found(known), region=OTHER) == ["end"]
    assert decide(build_found(known, age_s=10), region=OTHER) == ["keep"]


def test_of_two_instances_of_a_node_the_younger_is_ended() -> None:
    spec = build_aws_spec("n-known")
    assert decide(build_found(spec, age_s=700), build_found(spec, age_s=900)) == ["keep", "end"]
    findings = decide_fates(
        [build_found(spec, age_s=700), build_found(spec, age_s=900)],
        region=REGION,
        known=KNOWN,
        now_s=10_000,
    )
    assert [one.age_s for one in findings] == [900, 700]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def settings(ec2: Ec2Rig, monkeypatch: pytest.MonkeyPatch) -> ClusterSettings:
    # For the region without a site, whose endpoint is AWS's own by default.
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", ec2.faults.url)
    content: dict[str, Any] = build_content(ec2, endpoint_url=ec2.faults.url, calls_per_s=100.0)
    return parse_cluster_config(content)


def start_elsewhere(ec2: Ec2Rig) -> Any:
    """Return a client of a region where nothing of ours should be, and something is."""
    client = boto3.client("ec2", region_name=OTHER, endpoint_url=ec2.moto_url)
    image = client.register_image(Name="base")["ImageId"]
    tags = [{"ResourceType": "instance", "Tags": to_ec2(render_tags(build_aws_spec("n-lost")))}]
    client.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tags)
    return client


def count_running(client: Any) -> int:
    groups = client.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["running"]}]
    )["Reservations"]
    return sum(len(group["Instances"]) for group in groups)


def test_a_dry_run_changes_nothing_and_a_real_one_adopts_here_and_ends_there(
    ec2: Ec2Rig, settings: ClusterSettings, ledger: Ledger
) -> None:
    ec2.open().launch(build_aws_spec("n-forgotten"))
    elsewhere = start_elsewhere(ec2)
    dry = sweep(settings, ledger, grace_s=0)
    assert {(one.region, one.fate) for one in dry.leaks} == {(REGION, "adopt"), (OTHER, "end")}
    assert (count_running(elsewhere), ledger.list_all()) == (1, [])

    done = sweep(settings, ledger, grace_s=0, applies=True)
    assert len(done.leaks) == 2
    assert count_running(elsewhere) == 0
    (record,) = ledger.list_open()
    assert (record.node_id, record.phase) == ("n-forgotten", NodePhase.LAUNCHED)
    assert record.usd_per_hour == settings.node_types[NodeTypeName("cloud_gpu")].usd_per_hour
    assert len(ec2.list_ec2()) == 1
    assert sweep(settings, ledger, grace_s=0, applies=True).leaks == []


def test_young_instances_are_left_alone(
    ec2: Ec2Rig, settings: ClusterSettings, ledger: Ledger
) -> None:
    ec2.open().launch(build_aws_spec())
    start_elsewhere(ec2)
    report = sweep(settings, ledger, applies=True)
    assert (len(report.findings), report.leaks) == (2, [])


def test_what_is_kept_stopped_is_ended_only_on_request(
    ec2: Ec2Rig, settings: ClusterSettings, ledger: Ledger
) -> None:
    spec = build_aws_spec(
        node_config={"instance_types": ["g6.2xlarge"], "warm_stopped_max": 1},
        tags={"ray-node-status": "up-to-date"},
    )
    backend = ec2.open()
    backend.launch(spec)
    backend.terminate([spec.node_id])
    assert sweep(settings, ledger, applies=True).leaks == []
    assert len(ec2.list_ec2("stopped")) == 1
    report = sweep(settings, ledger, applies=True, ends_warm=True)
    assert [one.fate for one in report.leaks] == ["end"]
    assert ec2.list_ec2("stopped", "running") == []


def test_a_region_that_fails_is_told_and_the_others_are_swept(
    ec2: Ec2Rig, settings: ClusterSettings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = start_elsewhere(ec2)
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", ec2.moto_url)
    ec2.faults.add("expired")
    report = sweep(settings, ledger, grace_s=0, applies=True)
    assert list(report.errors) == [REGION]
    assert report.errors[REGION].startswith("CredentialsError: ")
    assert count_running(elsewhere) == 0
    assert report.as_data()["errors"] == dict(report.errors)
