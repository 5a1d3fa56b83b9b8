from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import (
    ClusterFile,
    load_cluster_file,
    parse_cluster_config,
    parse_provider_section,
    render_json_schema,
    with_ports,
)
from cluster.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
LOCAL_FILE = Path(__file__).parents[2] / "cluster" / "local.yaml"


def explain(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_cluster_config(content, file="bad.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", ["many_mistakes", "remote_mistakes"])
def test_every_mistake_of_a_file_is_reported_at_once_with_key_rule_value_and_fix(
    name: str,
) -> None:
    file = GOLDEN / f"{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        load_cluster_file(file)
    expected = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert str(caught.value).replace(str(file), f"{name}.yaml") + "\n" == expected


def test_a_valid_file_gives_node_types_with_site_price_and_counts(
    cluster_content: dict[str, Any],
) -> None:
    settings = parse_cluster_config(cluster_content)
    cloud = settings.node_types["cloud_gpu"]
    assert (cloud.site, cloud.market, cloud.usd_per_hour) == ("cloud", "on_demand", Decimal("1.5"))
    assert (cloud.min_nodes, cloud.max_nodes) == (0, 2)
    assert settings.node_types["head"].max_nodes == 0
    assert settings.sites["onprem"].owned
    assert settings.burst.kv_use_ratio_up == 0.85


def test_what_ray_adds_to_the_provider_section_for_itself_is_not_a_mistake(
    cluster_content: dict[str, Any],
) -> None:
    cluster_content["provider"]["_config_cache_path"] = "/somewhere"
    parse_cluster_config(cluster_content)
    assert parse_provider_section(cluster_content["provider"]).sites["cloud"].max_nodes == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        pytest.param(
            ("provider", "sites", "cloud", "max_node"),
            2,
            "  provider.sites.cloud.max_node must be a known key; got 'max_node'. "
            "Did you mean 'max_nodes'?",
            id="unknown key",
        ),
        pytest.param(
            ("provider", "node_types", "cloud_gpu", "usd_per_hour"),
            None,
            "  provider.node_types.cloud_gpu.usd_per_hour must be given at a site that isn't "
            "owned; got nothing. An unknown price is never free.",
            id="cloud without a price",
        ),
        pytest.param(
            ("provider", "node_types", "cloud_gpu", "usd_per_hour"),
            float("nan"),
            "  provider.node_types.cloud_gpu.usd_per_hour must be a finite number; got NaN. "
            "It is: price of one node for one hour; required unless owned.",
            id="price is not a number",
        ),
        pytest.param(
            ("available_node_types", "cloud_gpu", "labels", "site"),
            "onprem",
            "  available_node_types.cloud_gpu.labels.site must be 'cloud' as the provider section "
            "says; got 'onprem'. Write site: \"cloud\", or change the provider section.",
            id="label contradicts the provider section",
        ),
        pytest.param(
            ("provider", "limits", "usd_per_hour"),
            0,
            "  provider.limits.usd_per_hour must cover the nodes kept always (1.5 $/h); "
            "got 0 $/h. Raise it, or lower min_workers of the node types with a price.",
            id="limit below what is kept always",
        ),
    ],
)
def test_one_mistake_has_one_line(
    cluster_content: dict[str, Any], path: tuple[str, ...], value: object, message: str
) -> None:
    cluster_content["available_node_types"]["cloud_gpu"]["min_workers"] = 1
    here = cluster_content
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    assert explain(cluster_content) == f"bad.yaml has 1 mistake:\n{message}"


def test_process_sites_need_ports(cluster_content: dict[str, Any]) -> None:
    cluster_content["provider"]["sites"]["cloud"]["backend"] = {"kind": "process"}
    assert "provider.ports must be given: nodes of cloud share this machine" in explain(
        cluster_content
    )


def test_a_missing_file_and_a_syntax_error_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable file; got: No such file"):
        load_cluster_file(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"must be YAML; got a syntax error:\n.*\n.*line 1"):
        load_cluster_file(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold a mapping of settings; got list"):
        load_cluster_file(tmp_path / "list.yaml")


def test_the_shipped_local_file_is_valid_and_stays_so_on_other_ports() -> None:
    raw = yaml.safe_load(LOCAL_FILE.read_text(encoding="utf-8"))
    moved = with_ports(raw, 1000)
    first, second = parse_cluster_config(raw), parse_cluster_config(moved)
    assert first.ports is not None
    assert second.ports is not None
    assert second.ports.gcs == first.ports.gcs + 1000
    assert second.ports.nodes == first.ports.nodes + 1000
    assert first.cluster_name != second.cluster_name
    assert with_ports(raw, 0) == raw


def test_the_json_schema_covers_every_key_and_forbids_others() -> None:
    schema = render_json_schema()
    assert set(schema["properties"]) == set(ClusterFile.model_fields)
    assert schema["additionalProperties"] is False
