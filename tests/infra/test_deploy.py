"""A serve file is put into force or refused; a stand-in for Ray's dashboard hears what is sent."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import ClusterSettings, load_cluster_file, read_cluster_file
from cluster.errors import ConfigError
from infra.deploy import deploy_changed
from infra.serve_api import DeployFailed

ROOT = Path(__file__).parents[2]
SERVE_FILE = ROOT / "deployments" / "serve-emulated.yaml"
MODEL = "llama-3.1-8b-emulated"


class Dashboard:
    """Takes one configuration; its applications run, save those named in `failures`."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.failures: dict[str, str] = {}
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                dashboard.sent.append(json.loads(self.rfile.read(length)))
                dashboard.tokens.append(self.headers["Authorization"])
                self._answer(b"")

            def do_GET(self) -> None:
                self._answer(json.dumps({"applications": dashboard.describe()}).encode())

            def log_message(self, *_: object) -> None: ...

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def describe(self) -> dict[str, dict[str, str]]:
        names = [application["name"] for application in self.sent[-1]["applications"]]
        return {
            name: {"status": "DEPLOY_FAILED", "message": self.failures[name]}
            if name in self.failures
            else {"status": "RUNNING"}
            for name in names
        }


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    stand_in = Dashboard()
    thread = threading.Thread(target=stand_in.server.serve_forever, daemon=True)
    thread.start()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()
    thread.join()


@pytest.fixture
def settings(dashboard: Dashboard, tmp_path: Path) -> ClusterSettings:
    content = read_cluster_file(ROOT / "cluster" / "local.yaml")
    content["provider"]["state_dir"] = str(tmp_path / "state")
    content["provider"]["ports"]["dashboard"] = dashboard.server.server_address[1]
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    token_file = tmp_path / "state" / "tidegate-local" / "auth_token"
    token_file.parent.mkdir(parents=True)
    token_file.write_text("made-up-token\n")
    return load_cluster_file(file)


def change_slots(tmp_path: Path, slots: int) -> Path:
    content = yaml.safe_load(SERVE_FILE.read_text())
    content["applications"][0]["args"]["models"][0]["pools"][0]["slots"] = slots
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_changed_file_is_sent_with_the_clusters_token_port_and_keys(
    dashboard: Dashboard, settings: ClusterSettings, tmp_path: Path
) -> None:
    deployed = deploy_changed(change_slots(tmp_path, 6), settings, on_progress=lambda _: None)
    assert deployed.application_names[:2] == ["gateway", MODEL]
    (sent,) = dashboard.sent
    args = sent["applications"][0]["args"]
    assert args["models"][0]["pools"][0]["slots"] == 6
    assert args["keys_file"] == str(settings.state_dir / "keys.yaml")
    assert sent["http_options"]["port"] == 8000
    assert dashboard.tokens == ["Bearer made-up-token"]


def test_of_a_file_with_mistakes_nothing_is_sent(
    dashboard: Dashboard, settings: ClusterSettings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"slots: .*; got -3"):
        deploy_changed(change_slots(tmp_path, -3), settings, on_progress=lambda _: None)
    assert dashboard.sent == []


def test_what_serve_can_not_run_is_told_with_what_goes_on_and_what_to_do(
    dashboard: Dashboard, settings: ClusterSettings, tmp_path: Path
) -> None:
    dashboard.failures[MODEL] = "no such engine argument"
    with pytest.raises(DeployFailed, match=r"what ran before goes on.*no such engine argument"):
        deploy_changed(change_slots(tmp_path, 6), settings, on_progress=lambda _: None)
