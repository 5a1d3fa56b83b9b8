"""A metadata service on loopback that announces what a test tells it to; IMDSv2 only."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


class FakeImds:
    """What the service says. `date_s` is the time it says it is, None = it doesn't."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.status = 200
        self.tokens = 0
        self.asked: list[str] = []
        self.date_s: float | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return f"token-{self.tokens}"

    def announce(self, time: str, action: str = "terminate") -> None:
        self.answers[ACTION] = json.dumps({"action": action, "time": time})

    def advise(self) -> None:
        self.answers[REBALANCE] = json.dumps({"noticeTime": "2026-01-01T00:00:00Z"})


@contextmanager
def run_fake_imds() -> Iterator[FakeImds]:
    imds = FakeImds()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                return self.reply(400, "")
            imds.tokens += 1
            return self.reply(imds.status, imds.token)

        def do_GET(self) -> None:
            imds.asked.append(self.path)
            if self.headers.get("X-aws-ec2-metadata-token") != imds.token:
                return self.reply(401, "")
            if imds.status != 200:
                return self.reply(imds.status, "")
            body = imds.answers.get(self.path)
            return self.reply(404 if body is None else 200, body or "")

        def reply(self, status: int, body: str) -> None:
            self.send_response_only(status)
            if imds.date_s is not None:
                self.send_header("Date", formatdate(imds.date_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    imds.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield imds
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
