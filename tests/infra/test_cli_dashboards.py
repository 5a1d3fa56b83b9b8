import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import cluster
from infra.cli_dashboards import app
from infra.dashboards import HYBRID_UID
from tests.infra.grafana_stand_in import GrafanaStandIn, run_stand_in

HYBRID = str(Path(cluster.__file__).parent / "hybrid.yaml")


def test_a_configuration_names_the_cluster_s_own_token_file() -> None:
    done = CliRunner().invoke(app, ["prometheus", HYBRID, "--rules", "r.yml", "--head", "10.1.1.1"])
    assert done.exit_code == 0, done.output
    content = yaml.safe_load(done.stdout)
    assert content["rule_files"] == ["r.yml"]
    (discovery,) = content["scrape_configs"][0]["http_sd_configs"]
    assert discovery["url"].startswith("http://10.1.1.1:8265/")
    token = discovery["authorization"]["credentials_file"]
    assert token == str(Path("~/.tidegate/tidegate-hybrid/auth_token").expanduser())


def test_the_length_of_a_burst_worth_telling_is_an_option() -> None:
    done = CliRunner().invoke(app, ["rules", "--burst-minutes", "7"])
    rules = {rule["alert"]: rule for rule in yaml.safe_load(done.stdout)["groups"][0]["rules"]}
    assert rules["TidegateBurstTooLong"]["for"] == "420s"


def test_the_dashboard_can_be_had_as_a_file() -> None:
    done = CliRunner().invoke(app, ["json"])
    assert json.loads(done.stdout)["uid"] == HYBRID_UID


def test_push_reports_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_stand_in(GrafanaStandIn({"a-token": "Editor"})) as grafana:
        monkeypatch.setenv("GRAFANA_URL", grafana.url)
        monkeypatch.setenv("GRAFANA_TOKEN", "a-token")
        first, second = (CliRunner().invoke(app, ["push"]) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert "created" in first.stdout
    assert "created" not in second.stdout
    assert "a-token" not in first.output
