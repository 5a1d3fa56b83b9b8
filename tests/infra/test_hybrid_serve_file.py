"""The two files of a hybrid cluster, shipped side by side, speak of the same machines."""

from pathlib import Path

import yaml

from cluster.config import load_cluster_file
from deployments.app import GatewayArgs

ROOT = Path(__file__).parents[2]
SETTINGS = load_cluster_file(ROOT / "cluster" / "hybrid.yaml")
CONTENT = yaml.safe_load((ROOT / "deployments" / "serve-hybrid.yaml").read_text())
GATEWAY = GatewayArgs.model_validate(CONTENT["applications"][0]["args"])


def test_every_pool_has_a_node_type_that_can_hold_one_of_its_replicas() -> None:
    for pool in GATEWAY.models[0].pools:
        fitting = [
            offer
            for offer in SETTINGS.node_types.values()
            if (offer.site, offer.market, offer.labels.get("accelerator"))
            == (pool.site, pool.market, pool.accelerator)
            and offer.resources["GPU"] >= pool.gpus_per_replica
        ]
        assert fitting, pool.name
        assert all((offer.labels["owned"] == "true") is pool.owned for offer in fitting)


def test_clients_find_the_entry_where_the_cluster_file_says() -> None:
    assert SETTINGS.ports is not None
    assert CONTENT["http_options"]["port"] == SETTINGS.ports.serve


def test_one_gateway_at_least_stands_away_from_the_head() -> None:
    """Two gateways, one on a node at most: the head can have one of them."""
    assert not GATEWAY.is_on_head
    assert GATEWAY.replicas == 2
    assert CONTENT["http_options"]["host"] == "0.0.0.0"
