"""Against a stand-in that follows Grafana's published API; no Grafana server was at hand."""

import copy
import logging
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from infra.dashboards import HYBRID_UID, build_hybrid_dashboard
from infra.grafana import GrafanaAccess, GrafanaFailed, Pushed, find_access, push_dashboards
from tests.infra.grafana_stand_in import GrafanaStandIn, run_stand_in

CANARY = "glsa_canary-token-5f3a"
PROMETHEUS = "http://10.20.0.10:9090"


@pytest.fixture
def grafana() -> Iterator[GrafanaStandIn]:
    roles = {CANARY: "Admin", "editor-token": "Editor", "viewer-token": "Viewer"}
    with run_stand_in(GrafanaStandIn(roles)) as stand_in:
        yield stand_in


def push(
    grafana: GrafanaStandIn, *, token: str = CANARY, prometheus: str | None = PROMETHEUS
) -> list[Pushed]:
    return push_dashboards(
        GrafanaAccess(grafana.url, token), [build_hybrid_dashboard()], prometheus_url=prometheus
    )


def test_a_first_push_makes_folder_data_source_and_dashboard(grafana: GrafanaStandIn) -> None:
    pushed = push(grafana)
    assert [(one.what, one.change) for one in pushed] == [
        ("folder", "created"),
        ("datasource", "created"),
        ("dashboard", "created"),
    ]
    stored = grafana.dashboards[HYBRID_UID]
    assert (stored["version"], stored["folderUid"]) == (1, "tidegate")
    assert stored["panels"] == build_hybrid_dashboard()["panels"]
    assert pushed[-1].url == f"{grafana.url}/d/{HYBRID_UID}/a-title"


def test_a_second_push_writes_nothing_and_makes_no_version(grafana: GrafanaStandIn) -> None:
    push(grafana)
    grafana.requests.clear()
    assert {one.change for one in push(grafana)} == {"unchanged"}
    assert grafana.writes == []
    assert grafana.dashboards[HYBRID_UID]["version"] == 1


def test_what_was_changed_by_hand_becomes_a_new_version_of_ours(grafana: GrafanaStandIn) -> None:
    push(grafana)
    grafana.dashboards[HYBRID_UID]["panels"] = []
    grafana.requests.clear()
    assert [one.change for one in push(grafana)] == ["unchanged", "unchanged", "updated"]
    assert grafana.writes == ["POST /api/dashboards/db"]
    stored = grafana.dashboards[HYBRID_UID]
    assert stored["version"] == 2
    assert stored["panels"] == build_hybrid_dashboard()["panels"]


def test_a_dashboard_moved_to_another_folder_comes_back(grafana: GrafanaStandIn) -> None:
    push(grafana)
    grafana.dashboards[HYBRID_UID]["folderUid"] = "elsewhere"
    assert push(grafana)[-1].change == "updated"
    assert grafana.dashboards[HYBRID_UID]["folderUid"] == "tidegate"


def test_another_prometheus_changes_the_data_source_and_keeps_its_settings(
    grafana: GrafanaStandIn,
) -> None:
    push(grafana)
    grafana.datasources["tidegate-prometheus"]["jsonData"] = {"timeInterval": "10s"}
    other = push(grafana, prometheus="http://10.20.0.11:9090")
    assert [one.change for one in other] == ["unchanged", "updated", "unchanged"]
    stored = grafana.datasources["tidegate-prometheus"]
    assert stored["url"] == "http://10.20.0.11:9090"
    assert stored["jsonData"] == {"timeInterval": "10s"}


def test_without_a_prometheus_url_an_editor_may_push(grafana: GrafanaStandIn) -> None:
    pushed = push(grafana, token="editor-token", prometheus=None)
    assert [one.what for one in pushed] == ["folder", "dashboard"]
    assert not [one for one in grafana.requests if "datasources" in one]


def test_a_title_given_to_our_folder_by_somebody_stays(grafana: GrafanaStandIn) -> None:
    push(grafana)
    grafana.folders["tidegate"]["title"] = "LLM platform"
    assert push(grafana)[0].name == "LLM platform"
    assert grafana.folders["tidegate"]["title"] == "LLM platform"


def test_a_wrong_token_is_said_with_the_way_to_a_new_one(grafana: GrafanaStandIn) -> None:
    with pytest.raises(GrafanaFailed, match=r"it answered 401.*Service accounts"):
        push(grafana, token="old")


def test_a_missing_right_names_the_role(grafana: GrafanaStandIn) -> None:
    with pytest.raises(GrafanaFailed, match=r"making the folder.*it answered 403.*role Editor"):
        push(grafana, token="viewer-token")
    with pytest.raises(GrafanaFailed, match=r"data source.*403.*without --prometheus-url"):
        push(grafana, token="editor-token")


def test_a_server_that_is_away_is_said_with_its_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(GrafanaFailed, match=rf"{url}.*can't be reached.*GRAFANA_URL"):
        push_dashboards(GrafanaAccess(url, CANARY), [], prometheus_url=None)


def test_an_address_that_is_not_grafana_s_is_told_apart(grafana: GrafanaStandIn) -> None:
    access = GrafanaAccess(grafana.url.removesuffix("/grafana"), CANARY)
    with pytest.raises(GrafanaFailed, match=r"404.*sub-path"):
        push_dashboards(access, [], prometheus_url=None)


def test_a_grafana_without_its_database_gets_nothing(grafana: GrafanaStandIn) -> None:
    grafana.database = "failing"
    with pytest.raises(GrafanaFailed, match="its database is 'failing'"):
        push(grafana)
    assert grafana.writes == []


def test_the_token_appears_in_no_log_error_or_value(
    grafana: GrafanaStandIn, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debug logs of every library included; the failing calls are those that print most."""
    caplog.set_level(logging.DEBUG)
    push(grafana)
    grafana.roles.clear()
    said = [repr(GrafanaAccess(grafana.url, CANARY))]
    for url in (grafana.url, "http://127.0.0.1:9"):
        try:
            push_dashboards(GrafanaAccess(url, CANARY), [], prometheus_url=None)
        except GrafanaFailed:
            said.append("".join(traceback.format_exception(*sys.exc_info())))
    assert len(said) == 3
    output = capsys.readouterr()
    assert CANARY not in "".join([*said, caplog.text, output.out, output.err])
    assert CANARY not in str(grafana.requests)


def test_the_token_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{CANARY}\n")
    url = {"GRAFANA_URL": "https://grafana.example.org/"}
    assert find_access({**url, "GRAFANA_TOKEN": CANARY}).token == CANARY
    access = find_access({**url, "GRAFANA_TOKEN_FILE": str(file)})
    assert (access.url, access.token) == ("https://grafana.example.org", CANARY)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "GRAFANA_URL must be Grafana's address; got ''"),
        ({"GRAFANA_URL": "grafana:3000"}, "Type: export GRAFANA_URL="),
        ({"GRAFANA_URL": "http://me:pw@grafana"}, "must hold no user.*got 'http://grafana'"),
        ({"GRAFANA_URL": "http://grafana"}, "both are empty.*Service accounts"),
        ({"GRAFANA_URL": "http://g", "GRAFANA_TOKEN_FILE": "/none"}, "/none: No such file"),
    ],
    ids=["no url", "no scheme", "password in url", "no token", "no file"],
)
def test_what_is_missing_is_said_with_what_to_type(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_access(environment)
    assert "pw" not in str(caught.value)


def test_pushing_does_not_change_what_is_pushed(grafana: GrafanaStandIn) -> None:
    wanted = build_hybrid_dashboard()
    before = copy.deepcopy(wanted)
    push_dashboards(GrafanaAccess(grafana.url, CANARY), [wanted], prometheus_url=None)
    assert wanted == before
