"""A plan shows what the autoscaler's own decision would do; a silent site is never guessed."""

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoscaling.guard import Held
from cluster.budget import SpendNow, budget_status
from cluster.config import ClusterSettings, load_cluster_file
from cluster.limits import money_limits
from cluster.model import (
    ClusterName,
    Cordon,
    Instance,
    InstanceState,
    LaunchSpec,
    NodeId,
    NodeTypeName,
    SiteName,
)
from infra.plan import ChangePlan, Observed, SiteLook, plan_changes
from infra.plan_view import describe_plan, render_plan

HYBRID = Path(__file__).parents[2] / "cluster" / "hybrid.yaml"
ONPREM, AWS = SiteName("onprem"), SiteName("aws-us-east-1")


@pytest.fixture
def settings() -> ClusterSettings:
    return load_cluster_file(HYBRID)


def build_instance(node_type: str, site: SiteName, number: int = 1, **changes: Any) -> Instance:
    spec = LaunchSpec(
        node_id=NodeId(f"{node_type}-{number}"),
        cluster=ClusterName("tidegate-hybrid"),
        site=site,
        node_type=NodeTypeName(node_type),
        is_head=node_type == "head",
    )
    return Instance(**{"spec": spec, "state": InstanceState.RUNNING, **changes})


def owned_nodes() -> list[Instance]:
    return [
        build_instance("head", ONPREM),
        build_instance("onprem_l40s", ONPREM, 1),
        build_instance("onprem_l40s", ONPREM, 2),
        build_instance("onprem_a100", ONPREM),
    ]


def plan(
    settings: ClusterSettings,
    *,
    onprem: Sequence[Instance] = (),
    aws: Sequence[Instance] = (),
    **observed: Any,
) -> ChangePlan:
    sites = {ONPREM: SiteLook(tuple(onprem)), AWS: SiteLook(tuple(aws))}
    return plan_changes(settings, Observed(**{"sites": sites, "nodes_max": 11, **observed}))


def list_changes(found: ChangePlan) -> list[tuple[str, str]]:
    return [(change.action, change.node_type) for change in found.changes]


def test_from_nothing_it_is_the_head_and_every_minimum(settings: ClusterSettings) -> None:
    found = plan(settings)
    assert list_changes(found) == [
        ("launch", "head"),
        ("launch", "onprem_a100"),
        ("launch", "onprem_l40s"),
        ("launch", "onprem_l40s"),
    ]
    assert (found.usd_per_hour_now, found.usd_per_hour_after) == (0, 0)


def test_a_cluster_as_it_should_be_changes_nothing(settings: ClusterSettings) -> None:
    assert plan(settings, onprem=owned_nodes()).changes == ()


def test_drained_dead_and_unlisted_nodes_go_and_the_money_says_so(
    settings: ClusterSettings,
) -> None:
    """1.46 + 2.24208 $/h now; the drained spot node goes: 2.24208 $/h after."""
    dead = build_instance("onprem_a100", ONPREM, state=InstanceState.STOPPED)
    gone = build_instance("onprem_l40s", ONPREM, 2, offering="l40s-9")
    found = plan(
        settings,
        onprem=[*owned_nodes()[:2], gone, dead],
        aws=[
            build_instance("aws_l40s_spot", AWS, cordon=Cordon.DRAINING),
            build_instance("aws_l40s", AWS),
        ],
    )
    released = [change.node for change in found.changes if change.action == "release"]
    assert released == ["onprem_l40s-2", "onprem_a100-1", "aws_l40s_spot-1"]
    assert found.usd_per_hour_now == Decimal("3.70208")
    assert found.usd_per_hour_after == Decimal("2.24208")
    assert "host l40s-9 left the cluster file" in [change.why for change in found.changes]


def test_a_site_that_cannot_be_asked_is_left_alone_and_its_cost_is_unknown(
    settings: ClusterSettings,
) -> None:
    found = plan_changes(
        settings,
        Observed(
            sites={ONPREM: SiteLook(tuple(owned_nodes())), AWS: SiteLook(error="no credentials")},
            nodes_max=11,
        ),
    )
    assert found.changes == ()
    assert not found.is_complete
    assert found.usd_per_hour_now is None
    assert "no credentials" in found.notes[0]


def test_limits_and_what_is_sold_out_are_refusals_with_their_reason(tmp_path: Path) -> None:
    """Two spot nodes wanted always; the type is held, so none is launched."""
    text = HYBRID.read_text().replace(
        "  aws_l40s_spot:\n    min_workers: 0", "  aws_l40s_spot:\n    min_workers: 2"
    )
    (tmp_path / "file.yaml").write_text(text)
    settings = load_cluster_file(tmp_path / "file.yaml")
    held = {NodeTypeName("aws_l40s_spot"): Held("sold_out", "is sold out everywhere")}
    found = plan(settings, onprem=owned_nodes(), held=held)
    assert found.changes == ()
    assert found.refusals == ("aws_l40s_spot is sold out everywhere",)

    spent = SpendNow(now_s=1_000_000.0, day_usd=Decimal(119), month_usd=Decimal(119))
    budget = budget_status(spent, money_limits(settings.limits))
    found = plan(settings, onprem=owned_nodes(), budget=budget)
    # 119 $ and two leases of 600 s at 1.46 $/h stay under 120 $: 119.487 $.
    assert list_changes(found) == [("launch", "aws_l40s_spot")] * 2
    spent = SpendNow(now_s=1_000_000.0, day_usd=Decimal(120), month_usd=Decimal(120))
    budget = budget_status(spent, money_limits(settings.limits))
    found = plan(settings, onprem=owned_nodes(), budget=budget)
    assert found.changes == ()
    assert "over the limit of 120.0 $/day" in found.refusals[0]


def test_the_report_is_the_same_as_table_and_as_data(settings: ClusterSettings) -> None:
    found = plan(settings, record={"reasons": ["all [owned] slots are taken"]})
    content = json.loads(json.dumps(describe_plan(settings, found)))
    assert content["usd_per_hour_delta"] == 0
    assert content["reasons"] == ["all [owned] slots are taken"]
    assert {change["site"] for change in content["changes"]} == {"onprem"}
    console = Console(width=120, file=None)
    with console.capture() as shown:
        console.print(render_plan(found))
    assert "the cluster has no head" in shown.get()
    assert "all [owned] slots are taken" in shown.get()
