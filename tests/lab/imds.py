"""Instance metadata service, version 2, of one lab host, on the host's loopback.

Answers what `cluster.node_agent` and boto3 ask, and can announce that the instance will be taken
away. Nothing outside the host reaches it, as on EC2.
"""

import json
import secrets
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.lab.namespaces import in_network_of

PORT = 1338
ENDPOINT = f"http://127.0.0.1:{PORT}"
_META = "/latest/meta-data/"
_ACTION = f"{_META}spot/instance-action"
_TERMINATION = f"{_META}spot/termination-time"
_REBALANCE = f"{_META}events/recommendations/rebalance"


class Imds:
    """The service of one host. Pages are texts by path; a page that isn't there is a 404."""

    def __init__(self, host_pid: int, facts: Mapping[str, str]) -> None:
        self.pages = {f"{_META}{name}": text for name, text in facts.items()}
        self.tokens: set[str] = set()
        self.is_down = False
        self.asked: list[str] = []
        with in_network_of(host_pid):
            self._server = _Server(("127.0.0.1", PORT), _Handler)
        self._server.imds = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def announce_interruption(self, at_s: float, *, action: str = "terminate") -> None:
        """Say that the instance will be taken away at a wall time; again = the new time holds."""
        when = _write_time(at_s)
        self.pages[_ACTION] = json.dumps({"action": action, "time": when})
        self.pages[_TERMINATION] = when

    def recommend_rebalance(self, noticed_s: float) -> None:
        """Say that the instance is at a raised risk of being taken away, from a wall time on."""
        self.pages[_REBALANCE] = json.dumps({"noticeTime": _write_time(noticed_s)})

    def retract(self) -> None:
        """Take back what was announced."""
        for path in (_ACTION, _TERMINATION, _REBALANCE):
            self.pages.pop(path, None)

    def close(self) -> None:
        """Stop; the host's network can end after this."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    imds: Imds

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_PUT(self) -> None:
        if self._is_out():
            return
        wanted = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if self.path != "/latest/api/token" or not wanted:
            self._answer(HTTPStatus.BAD_REQUEST, "")
            return
        token = secrets.token_hex(16)
        self.server.imds.tokens.add(token)
        self._answer(HTTPStatus.OK, token)

    def do_GET(self) -> None:
        if self._is_out():
            return
        imds = self.server.imds
        imds.asked.append(self.path)
        if self.headers.get("X-aws-ec2-metadata-token") not in imds.tokens:
            self._answer(HTTPStatus.UNAUTHORIZED, "")
        elif self.path in imds.pages:
            self._answer(HTTPStatus.OK, imds.pages[self.path])
        else:
            self._answer(HTTPStatus.NOT_FOUND, "")

    def _is_out(self) -> bool:
        """Say nothing at all while down: the connection just ends."""
        self.close_connection = self.server.imds.is_down
        return self.server.imds.is_down

    def _answer(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep quiet: `asked` holds what a test wants to know."""


def _write_time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
