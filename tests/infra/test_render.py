"""Rendering shows every default, is itself a valid file, and hides what should not be there."""

import copy
from pathlib import Path

import pytest
import yaml

from cluster.config import parse_cluster_config, read_cluster_file
from infra.render import HIDDEN, hide_secrets, render_cluster_file

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("name", ["local.yaml", "hybrid.yaml"])
def test_what_is_rendered_means_the_same_as_the_file(name: str) -> None:
    raw = read_cluster_file(CLUSTER / name)
    rendered = yaml.safe_load(yaml.safe_dump(render_cluster_file(raw)))
    assert parse_cluster_config(rendered) == parse_cluster_config(raw)


def test_defaults_that_the_file_leaves_out_are_shown() -> None:
    rendered = render_cluster_file(read_cluster_file(CLUSTER / "hybrid.yaml"))
    types = rendered["available_node_types"]
    assert types["aws_l40s_x4"]["node_config"]["warm_stopped_max"] == 0
    assert rendered["provider"]["sites"]["onprem"]["backend"]["ssh"]["connect_s_max"] == 10.0
    assert rendered["provider"]["node_types"]["aws_l40s"]["usd_per_hour"] == 2.24208


def test_secrets_that_stand_in_a_file_by_mistake_are_not_shown() -> None:
    raw = copy.deepcopy(read_cluster_file(CLUSTER / "hybrid.yaml"))
    env = raw["provider"]["sites"]["aws-us-east-1"]["backend"]["env"]
    env |= {"HF_TOKEN": "canary-1", "AWS_SECRET_ACCESS_KEY": "canary-2", "RAY_AUTH_MODE": "token"}
    raw["setup_commands"].append(
        "export MY_PASSWORD='canary-3'; ray start --redis-password canary-4"
    )
    raw["setup_commands"].append("pip install https://me:canary-5@index.example/simple/x.whl")
    raw["head_setup_commands"].append("echo AKIAABCDEFGHIJKLMNOP")
    text = yaml.safe_dump(render_cluster_file(raw))
    assert "canary" not in text
    assert "AKIA" not in text
    assert text.count(HIDDEN) == 6
    assert "RAY_AUTH_MODE: token" in text


def test_a_name_that_leads_to_a_secret_is_no_secret() -> None:
    for text in (
        "export TIDEGATE_TOKEN=$HOME/.tidegate/auth_token",
        "chmod 600 ~/.tidegate/auth_token",
        "ray start --redis-password=$REDIS_PASSWORD",
    ):
        assert hide_secrets(text) == text
