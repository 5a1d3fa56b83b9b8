"""Status: the head is asked over real SSH, and what it says is shown whole."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from autoscaling.settings_reader import SettingsReader
from cluster.config import (
    load_cluster_file,
    parse_cluster_config,
    read_cluster_file,
    with_ports,
)
from cluster.ledger import Intent, Ledger
from cluster.model import NodeId, NodeTypeName, SiteName, SoldOut
from infra.head_link import find_head_host
from infra.observe import ClusterSilent, ClusterView
from infra.status import Status, read_status
from infra.status_view import describe_status, render_status
from tests.cluster.sshd_hosts import (
    SshdHost,
    build_ssh_settings,
    open_hosts,
    remove_ssh_folder,
    skip_without_sshd,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[SshdHost]:
    skip_without_sshd()
    with open_hosts(tmp_path, 1) as (host,):
        yield host
    remove_ssh_folder(tmp_path / "state" / "tidegate-hybrid")


def build_raw(head: SshdHost, state_dir: str) -> dict[str, Any]:
    """Return the shipped file with its head at the test's SSH server."""
    raw = read_cluster_file(ROOT / "cluster" / "hybrid.yaml")
    ssh = build_ssh_settings([head]).ssh
    raw["provider"]["state_dir"] = state_dir
    for site in raw["provider"]["sites"].values():
        site["backend"]["ssh"] |= {"user": ssh.user, "private_key": ssh.private_key}
    raw["auth"]["ssh_private_key"] = ssh.private_key
    hosts = raw["provider"]["sites"]["onprem"]["backend"]["hosts"]
    hosts["head-1"] |= {"address": head.address, "port": head.port}
    # Nobody listens there: the control store of this head is away.
    raw["provider"]["ports"]["gcs"] = 36377
    return raw


def fill_head(head: SshdHost, raw: dict[str, Any]) -> None:
    """Make the host what the launcher makes of a head: environment, cluster file, ledger."""
    folder = head.home / ".tidegate"
    folder.mkdir(exist_ok=True)
    python = Path(sys.executable).parent
    (folder / "env.sh").write_text(
        f"export PATH={shlex.quote(str(python))}:$PATH PYTHONPATH={shlex.quote(str(ROOT))} "
        f"TIDEGATE_NODE_IP={head.address}\n"
    )
    text = yaml.safe_dump({**raw, "provider": {**raw["provider"], "state_dir": "~/.tidegate"}})
    (head.home / "ray_bootstrap_config.yaml").write_text(text)
    ledger = Ledger(folder / "tidegate-hybrid" / "ledger.db")
    site = SiteName("aws-us-east-1")
    intent = Intent(
        node_id=NodeId("aws_l40s-1"),
        site=site,
        node_type=NodeTypeName("aws_l40s"),
        is_head=False,
        usd_per_hour=parse_cluster_config(raw).node_types[NodeTypeName("aws_l40s")].usd_per_hour,
        tags={},
        node_config={},
    )
    ledger.open_intents([intent], owner="test", check=lambda _books: None)
    until_s = time.time() + 100
    ledger.replace_sold_out(
        site, [SoldOut(site, "g6e.xlarge", "us-east-1a", "spot", "InsufficientCapacity", until_s)]
    )
    ledger.hold_type(site, NodeTypeName("aws_l40s_spot"), until_s, "sold out in every zone")
    ledger.close()


def show(status: Status) -> str:
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render_status(status))
    return shown.get()


def test_limits_spend_and_what_is_sold_out_come_from_the_heads_own_ledger(
    head: SshdHost, tmp_path: Path
) -> None:
    raw = build_raw(head, str(tmp_path / "state"))
    fill_head(head, raw)
    status = read_status(tmp_path / "unread.yaml", parse_cluster_config(raw))
    content = json.loads(json.dumps(describe_status(status)))
    by_limit = {use["limit"]: use for use in content["ledger"]["budget"]}
    assert by_limit["usd_per_hour"]["used_usd"] == "2.24208"
    assert by_limit["usd_per_month"]["limit_usd"] == "1500.0"
    assert "36377 doesn't answer" in content["errors"][0]
    shown = show(status)
    assert "g6e.xlarge" in shown
    assert "aws_l40s_spot at aws-us-east-1: sold out in every zone" in shown
    assert "spent today $0.0" in shown


def test_the_last_changes_are_told_with_their_time_and_reason() -> None:
    """Five minutes past noon UTC; a second later the reasons are about holding."""
    why = "m/cloud: 0 to 1 replicas: burst +1: 84 queued = 41 s of work, cold start 95 s"
    decision = {"changes": [{"at_s": 1_799_928_300.0, "why": why}], "reasons": ["m: held"]}
    shown = show(Status(ClusterView(frozenset(), decision)))
    assert f"12:05:00 UTC {why}" in shown


def test_shadow_mode_is_told_in_words_and_in_json() -> None:
    """What the decision record says of it is shown whole, beside the reasons."""
    shadow = {
        "says": ["m: would run 2 aws-l40s-spot since 12:05 UTC, $3.72/h, $1.02 so far"],
        "models": {"m": {"usd": 1.02}},
    }
    decision = {"burst": "closed", "mode": "shadow", "shadow": shadow, "reasons": ["m: held"]}
    status = Status(ClusterView(frozenset(), decision))
    shown = show(status)
    assert "shadow: decided as always, nothing is asked of sites that aren't owned" in shown
    assert "shadow  m: would run 2 aws-l40s-spot since 12:05 UTC, $3.72/h, $1.02 so far" in shown
    assert "because m: held" in shown
    assert describe_status(status)["decision"]["shadow"]["models"] == {"m": {"usd": 1.02}}
    acting = Status(ClusterView(frozenset(), {"mode": "act", "shadow": None}))
    assert "shadow" not in show(acting)


def test_a_bad_cluster_file_on_the_head_hides_nothing_and_is_said(
    head: SshdHost, tmp_path: Path
) -> None:
    raw = build_raw(head, str(tmp_path / "state"))
    fill_head(head, raw)
    file = head.home / "ray_bootstrap_config.yaml"
    SettingsReader(file)
    file.write_text("cluster_name: [truncated")
    status = read_status(tmp_path / "unread.yaml", parse_cluster_config(raw))
    assert status.ledger["budget"][0]["used_usd"] == "2.24208"
    assert "the former one stays in force, as kept in" in show(status)


def test_a_cordoned_node_and_one_with_a_notice_are_marked() -> None:
    nodes = [
        {"id": "a", "type": "t", "site": "s", "state": "RAY_RUNNING", "cordon": "draining"},
        {"id": "b", "type": "t", "site": "s", "state": "RAY_RUNNING", "noticed": True},
    ]
    decision = {"nodes": nodes, "is_leader": False}
    shown = show(Status(ClusterView(cloud_sites=frozenset(), decision=decision)))
    assert "RAY_RUNNING, draining" in shown
    assert "RAY_RUNNING, leaving soon" in shown
    assert "another autoscaler holds the lease" in shown


@pytest.fixture
def local_file(tmp_path: Path) -> Path:
    """The embedded cluster's file, its state in a folder of its own; nobody runs it."""
    raw = with_ports(read_cluster_file(ROOT / "cluster" / "local.yaml"), 19000)
    raw["provider"]["state_dir"] = str(tmp_path / "state")
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def test_a_cluster_that_was_never_started_is_said_to_be_down(local_file: Path) -> None:
    with pytest.raises(ClusterSilent, match=r"must run to have a status.* tidegate serve"):
        read_status(local_file, load_cluster_file(local_file))
    assert not (local_file.parent / "state").exists()


def test_a_head_that_is_silent_is_said_to_be_and_the_ledger_is_shown(local_file: Path) -> None:
    """An empty table without a word would look like a cluster at rest."""
    settings = load_cluster_file(local_file)
    ledger = Ledger(settings.state_dir / settings.cluster_name / "ledger.db")
    head = Intent(
        node_id=NodeId("head-1"),
        site=SiteName("onprem"),
        node_type=NodeTypeName("head"),
        is_head=True,
        usd_per_hour=Decimal(0),
        tags={},
        node_config={},
    )
    ledger.open_intents([head], owner="test", check=lambda _books: None)
    ledger.mark_running(head.node_id, address="127.0.1.1")
    ledger.close()
    status = read_status(local_file, settings)
    assert status.ledger["budget"][0]["limit"] == "usd_per_hour"
    assert status.errors[0].startswith("the control store at 127.0.1.1:25399 doesn't answer")


def test_a_head_on_this_machine_is_not_asked_over_ssh() -> None:
    settings = parse_cluster_config(read_cluster_file(ROOT / "cluster" / "local.yaml"))
    assert find_head_host(settings) is None
