"""A stand-in for Grafana's HTTP API, as its published description has it; not Grafana.

Source: docs/sources/developers/http_api in grafana/grafana (folder, dashboard, data_source, other):
paths, methods, statuses and bodies of what `infra.grafana` uses, and roles as its permissions have
them: a Viewer reads, an Editor writes folders and dashboards, an Admin data sources.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]
PREFIX = "/grafana"
ROLES = ("Viewer", "Editor", "Admin")


@dataclass
class GrafanaStandIn:
    """What is stored, and what was asked."""

    roles: dict[str, str]
    database: str = "ok"
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasources: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def writes(self) -> list[str]:
        return [one for one in self.requests if not one.startswith("GET ")]

    def answer(self, method: str, path: str, body: Any, token: str | None) -> Answer:
        self.requests.append(f"{method} {path}")
        if path == "/api/health":
            return 200, {"commit": "0", "database": self.database, "version": "12.0.0"}
        refusal = self._refuse(token, needed=_needed_role(method, path))
        return refusal or self._route(method, path, body)

    def _refuse(self, token: str | None, *, needed: str) -> Answer | None:
        role = self.roles.get(token or "")
        if role is None:
            return 401, {"message": "Invalid API key"}
        if ROLES.index(role) < ROLES.index(needed):
            return 403, {"message": f"You'll need additional permissions: {needed}"}
        return None

    def _route(self, method: str, path: str, body: Any) -> Answer:
        parts = path.removeprefix("/api/").split("/")
        if parts[0] == "folders":
            return self._folders(method, parts[1:], body)
        if parts[0] == "datasources":
            return self._datasources(method, parts[1:], body)
        if parts[:2] == ["dashboards", "db"] and method == "POST":
            return self._save_dashboard(body)
        if parts[:2] == ["dashboards", "uid"] and method == "GET":
            return self._get_dashboard(parts[2])
        return 404, {"message": "Not found"}

    def _folders(self, method: str, rest: list[str], body: Any) -> Answer:
        if method == "GET" and rest:
            found = self.folders.get(rest[0])
            return (200, found) if found else (404, {"message": "folder not found"})
        if method == "POST" and not rest:
            if body["uid"] in self.folders:
                return 409, {"message": "a folder with the same uid already exists"}
            self.folders[body["uid"]] = {"id": len(self.folders) + 1, "version": 1, **body}
            return 200, self.folders[body["uid"]]
        return 404, {"message": "Not found"}

    def _datasources(self, method: str, rest: list[str], body: Any) -> Answer:
        if method == "POST" and not rest:
            if any(one["name"] == body["name"] for one in self.datasources.values()):
                return 409, {"message": "data source with the same name already exists"}
            stored = {"id": len(self.datasources) + 1, "version": 1, "jsonData": {}, **body}
            self.datasources[body["uid"]] = stored
            return 200, {"datasource": stored, "message": "Datasource added"}
        if len(rest) == 2 and rest[0] == "uid":
            stored = self.datasources.get(rest[1])
            if stored is None:
                return 404, {"message": "Data source not found"}
            if method == "PUT":
                stored |= {**body, "version": stored["version"] + 1}
                return 200, {"datasource": stored, "message": "Datasource updated"}
            return 200, stored
        return 404, {"message": "Not found"}

    def _save_dashboard(self, body: Any) -> Answer:
        wanted, folder = body["dashboard"], body.get("folderUid", "")
        if folder and folder not in self.folders:
            return 400, {"message": "folder not found"}
        stored = self.dashboards.get(wanted["uid"])
        if stored is not None and not body["overwrite"]:
            return 412, {"message": "already exists", "status": "name-exists"}
        version = stored["version"] + 1 if stored else 1
        number = stored["id"] if stored else len(self.dashboards) + 1
        kept = {**wanted, "id": number, "version": version}
        self.dashboards[wanted["uid"]] = {**kept, "folderUid": folder}
        path = self._path(wanted["uid"])
        return 200, {"id": number, "status": "success", "version": version, "url": path}

    def _get_dashboard(self, uid: str) -> Answer:
        stored = self.dashboards.get(uid)
        if stored is None:
            return 404, {"message": "Dashboard not found"}
        dashboard = {key: value for key, value in stored.items() if key != "folderUid"}
        meta = {"folderUid": stored["folderUid"], "url": self._path(uid), "isStarred": False}
        return 200, {"dashboard": dashboard, "meta": meta}

    def _path(self, uid: str) -> str:
        return f"{PREFIX}/d/{uid}/a-title"


def _needed_role(method: str, path: str) -> str:
    if path.startswith("/api/datasources"):
        return "Admin"
    return "Viewer" if method == "GET" else "Editor"


@contextmanager
def run_stand_in(stand_in: GrafanaStandIn) -> Iterator[GrafanaStandIn]:
    """Serve it on a loopback port, under a sub-path as behind a proxy."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            path = self.path.partition("?")[0]
            if not path.startswith(PREFIX):
                status, content = 404, {"message": "not Grafana"}
            else:
                status, content = stand_in.answer(
                    self.command,
                    path.removeprefix(PREFIX),
                    body,
                    token if scheme == "Bearer" else None,
                )
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815 - the base class names them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}{PREFIX}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
