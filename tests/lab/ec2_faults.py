"""An HTTP proxy before a moto server that makes EC2 as bad as it can be, on request.

moto answers at once, always, and ignores ClientToken. Real EC2 throttles, sells out, loses
answers, lists late, and gives one instance per token. What is switched on is a list of `Fault`s;
tests hold the object, other processes use the control URL:

    POST   /_faults   {"kind": "throttle", "action": "RunInstances", "times": 3}   -> {"id": 1}
    DELETE /_faults   (all), /_faults?id=1 (one)       GET /_faults     what is switched on
    GET    /_calls    what was asked, with times and what was done about it

As a program: python -m tests.lab.ec2_faults UPSTREAM_URL HOST PORT [SUBNET=ZONE ...]

Faults stand in the order of `KINDS`; the first that ends the request ends it.
"""

import dataclasses
import hashlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from xml.etree import ElementTree as ET

from tests.lab.ec2_answers import Answer, find, list_instance_ids, render, render_error, without

KINDS = (
    "down",  # the connection is closed without an answer; nothing happens upstream
    "hang",  # no answer for `seconds`, then the connection is closed
    "delay",  # an answer `seconds` later
    "error",  # `code` at once, HTTP `status`
    "throttle",  # RequestLimitExceeded
    "expired",  # RequestExpired: our credentials are no longer good
    "sold_out",  # `code` (InsufficientInstanceCapacity) for a type, zone and market; "" is any
    "duplicate",  # the request arrives twice
    "lose_response",  # it is done upstream, the answer never arrives
    "partial",  # a listing holds only the first `keep` instances
    "hide_new",  # a listing lacks instances younger than `seconds`
    "stale",  # a listing is repeated as it was, for `seconds`
)
_CODES = {
    "throttle": ("RequestLimitExceeded", 503),
    "expired": ("RequestExpired", 400),
    "sold_out": ("InsufficientInstanceCapacity", 500),
}
_UPSTREAM_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `action` "" is every action, `times` None is until removed."""

    kind: str
    action: str = ""
    times: int | None = None
    code: str = ""
    status: int = 0
    instance_type: str = ""
    zone: str = ""
    market: str = ""
    seconds: float = 0.0
    keep: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """One EC2 request, read."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    params: Mapping[str, str]

    @property
    def action(self) -> str:
        return self.params.get("Action", "")

    @property
    def market(self) -> str:
        market = self.params.get("InstanceMarketOptions.MarketType", "")
        return "spot" if market == "spot" else "on_demand"


@dataclass(slots=True)
class Call:
    """One request that arrived. `at_s` is wall time; `done` says what was done about it."""

    at_s: float
    action: str
    params: dict[str, str]
    done: str = "passed"


@dataclass(slots=True)
class _Active:
    number: int
    fault: Fault
    left: int | None


class _ConnectionCut(Exception):
    """The caller gets no answer."""


@dataclass(slots=True)
class _Token:
    digest: str
    answer: Answer
    instance_id: str


@dataclass
class Ec2Faults:
    """The proxy. `zone_of` maps subnet ids to zones, for faults that name a zone."""

    upstream_url: str
    host: str = "127.0.0.1"
    port: int = 0
    zone_of: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._run_lock = threading.Lock()
        self._active: list[_Active] = []
        self._next_number = 1
        self._tokens: dict[str, _Token] = {}
        self._born_s: dict[str, float] = {}
        self._listings: dict[str, tuple[float, Answer]] = {}
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(
            (self.host, self.port), type("Handler", (_Handler,), {"faults": self})
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._server.server_address[1]}"

    def start(self) -> "Ec2Faults":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, kind: str, **details: Any) -> int:
        """Switch a fault on; returns its number."""
        fault = Fault(kind, **details)
        with self._lock:
            number = self._next_number
            self._next_number += 1
            self._active.append(_Active(number, fault, fault.times))
        return number

    def remove(self, number: int) -> None:
        with self._lock:
            self._active = [one for one in self._active if one.number != number]

    def clear(self) -> None:
        """Switch every fault off. Tokens and the log stay."""
        with self._lock:
            self._active = []
            self._listings = {}

    def list_faults(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {"id": one.number, "left": one.left, **dataclasses.asdict(one.fault)}
                for one in self._active
            ]

    def count(self, action: str, **params: str) -> int:
        """Return how many requests with these parameters arrived, whatever became of them."""
        with self._lock:
            return sum(
                call.action == action
                and all(call.params.get(name) == text for name, text in params.items())
                for call in self.calls
            )

    def answer(self, request: Request) -> Answer:
        """Return what the caller gets; raises _ConnectionCut when that is nothing."""
        call = Call(time.time(), request.action, dict(request.params))
        with self._lock:
            self.calls.append(call)
        taken = {kind: fault for kind in KINDS if (fault := self._take(kind, request))}
        if taken:
            call.done = ", ".join(taken)
        refusal = self._fail_before(taken)
        if refusal is not None:
            return refusal
        if fault := taken.get("stale"):
            held = self._repeat_listing(request, fault.seconds)
            if held is not None:
                return held
        for _ in range(2 if "duplicate" in taken else 1):
            answer = self._pass_on(request)
        if "lose_response" in taken:
            raise _ConnectionCut
        if request.action == "DescribeInstances" and answer.status == 200:
            answer = self._distort(request, answer, taken)
        return answer

    def _take(self, kind: str, request: Request) -> Fault | None:
        with self._lock:
            for one in self._active:
                if one.fault.kind == kind and one.left != 0 and self._applies(one.fault, request):
                    if one.left is not None:
                        one.left -= 1
                    return one.fault
        return None

    def _applies(self, fault: Fault, request: Request) -> bool:
        if fault.kind in {"partial", "hide_new", "stale"}:
            return request.action == "DescribeInstances"
        if fault.kind == "sold_out":
            zone = self.zone_of.get(request.params.get("SubnetId", ""), "")
            started = request.action == "RunInstances"
            return (
                started
                and fault.instance_type in {"", request.params.get("InstanceType")}
                and fault.zone in {"", zone}
                and fault.market in {"", request.market}
            )
        return fault.action in {"", request.action}

    def _fail_before(self, taken: Mapping[str, Fault]) -> Answer | None:
        """Return the refusal that a request gets before it reaches moto, if it gets one."""
        if "down" in taken:
            raise _ConnectionCut
        if fault := taken.get("hang"):
            self._stopped.wait(fault.seconds or 3600)
            raise _ConnectionCut
        if fault := taken.get("delay"):
            self._stopped.wait(fault.seconds)
        for kind in ("error", "throttle", "expired", "sold_out"):
            if fault := taken.get(kind):
                code, status = _CODES.get(kind, ("InternalError", 500))
                return render_error(fault.code or code, fault.status or status)
        return None

    def _pass_on(self, request: Request) -> Answer:
        token = request.params.get("ClientToken")
        if request.action != "RunInstances" or not token:
            return self._ask_upstream(request)
        # boto3 puts a random token into calls without one, so every launch comes through here.
        with self._run_lock:
            digest = hashlib.sha256(repr(sorted(request.params.items())).encode()).hexdigest()
            held = self._tokens.get(token)
            if held is None:
                return self._start(request, token, digest)
            if held.digest != digest:
                return render_error("IdempotentParameterMismatch", 400)
            return self._replay(request, held)

    def _start(self, request: Request, token: str, digest: str) -> Answer:
        answer = self._ask_upstream(request)
        if answer.status == 200:
            (instance_id,) = list_instance_ids(answer.body)
            self._tokens[token] = _Token(digest, answer, instance_id)
            self._born_s[instance_id] = time.time()
        return answer

    def _replay(self, request: Request, held: _Token) -> Answer:
        """Return the first answer with the state that the instance is in by now."""
        params = {
            "Action": "DescribeInstances",
            "Version": request.params.get("Version", "2016-11-15"),
            "InstanceId.1": held.instance_id,
        }
        body = urlencode(params).encode()
        now = self._ask_upstream(Request(request.path, request.headers, body, params))
        state = find(ET.fromstring(now.body), "instanceState")
        root = ET.fromstring(held.answer.body)
        old = find(root, "instanceState")
        if old is not None and state is not None:
            for child, fresh in zip(list(old), list(state), strict=True):
                child.text = fresh.text
        return Answer(200, render(root))

    def _repeat_listing(self, request: Request, seconds: float) -> Answer | None:
        with self._lock:
            key = repr(sorted(request.params.items()))
            held = self._listings.get(key)
            if held is not None and time.time() - held[0] < seconds:
                return held[1]
        return None

    def _distort(self, request: Request, answer: Answer, taken: Mapping[str, Fault]) -> Answer:
        hidden: set[str] = set()
        ids = list_instance_ids(answer.body)
        if fault := taken.get("hide_new"):
            young_s = time.time() - fault.seconds
            hidden |= {one for one in ids if self._born_s.get(one, 0.0) > young_s}
        if fault := taken.get("partial"):
            hidden |= set(ids[fault.keep :])
        if hidden and any(name.startswith("InstanceId.") for name in request.params):
            return render_error("InvalidInstanceID.NotFound", 400)
        if hidden:
            answer = Answer(200, without(answer.body, hidden))
        with self._lock:
            # Kept for a later "stale": this is what an out-of-date replica would still say.
            self._listings[repr(sorted(request.params.items()))] = (time.time(), answer)
        return answer

    def _ask_upstream(self, request: Request) -> Answer:
        upstream = urlsplit(self.upstream_url)
        connection = http.client.HTTPConnection(
            upstream.hostname or "", upstream.port, timeout=_UPSTREAM_S_MAX
        )
        headers = {**request.headers, "Content-Length": str(len(request.body))}
        try:
            connection.request("POST", request.path, request.body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    """Hands requests to `faults`: EC2's, and those to the control URL."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; together with delayed acknowledgements that costs 40 ms.
    disable_nagle_algorithm = True
    faults: Ec2Faults

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path == "/_faults":
            details = json.loads(body)
            self._send_json({"id": self.faults.add(details.pop("kind"), **details)})
            return
        params = dict(parse_qsl(body.decode(), keep_blank_values=True))
        try:
            self._send(self.faults.answer(Request(self.path, dict(self.headers), body, params)))
        except (_ConnectionCut, OSError):
            self.close_connection = True

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/_calls":
            self._send_json([dataclasses.asdict(call) for call in list(self.faults.calls)])
        else:
            self._send_json(self.faults.list_faults())

    def do_DELETE(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        if "id" in query:
            self.faults.remove(int(query["id"]))
        else:
            self.faults.clear()
        self._send_json({})

    def _send(self, answer: Answer, content_type: str = "text/xml") -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _send_json(self, content: object) -> None:
        self._send(Answer(200, json.dumps(content).encode()), "application/json")

    def log_message(self, *_: object) -> None:
        """Say nothing: `calls` is the log."""


def main() -> None:
    """Run the proxy until it is interrupted: UPSTREAM_URL HOST PORT [SUBNET=ZONE ...]."""
    upstream_url, host, port, *zones = sys.argv[1:]
    zone_of = dict(pair.split("=", 1) for pair in zones)
    faults = Ec2Faults(upstream_url, host=host, port=int(port), zone_of=zone_of).start()
    sys.stdout.write(f"{faults.url}\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    finally:
        faults.stop()


if __name__ == "__main__":
    main()
