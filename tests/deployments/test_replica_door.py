"""What only the door of a replica decides: residency by node, bounds, and staying closed."""

import http.client
import json
import socket
import threading
import urllib.parse

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments.replica_http import ReplicaIdentity, ReplicaServer
from tests.deployments.replica_hosts import MODEL, EmulatedHost, Replica

CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def rented(emulated_host: EmulatedHost) -> Replica:
    """A replica on a node that isn't owned."""
    return emulated_host.start(gpu="instant", is_owned=False)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/sleep", "/sleep?level=1", "/wake_up", "/is_sleeping"])
def test_nobody_puts_an_engine_to_sleep_through_its_door(
    emulated_host: EmulatedHost, method: str, path: str
) -> None:
    with emulated_host.start(gpu="instant").client() as client:
        assert client.request(method, path, json={}).status_code == 404


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_node_that_is_not_owned_refuses_restricted_data(rented: Replica, path: str) -> None:
    with rented.client(**{"X-Tidegate-Data-Class": "restricted"}) as client:
        response = client.post(path, json=BODY)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == 403
    assert response.headers["X-Tidegate-Engine"] == "emulated"


@pytest.mark.parametrize("data_class", ["public", "internal"])
def test_a_node_that_is_not_owned_answers_free_data(rented: Replica, data_class: str) -> None:
    with rented.client(**{"X-Tidegate-Data-Class": data_class}) as client:
        assert client.post(CHAT, json=BODY).status_code == 200


@pytest.mark.parametrize("stated", ["", "INTERNAL", "secret", "public,restricted"])
def test_a_class_that_is_not_known_counts_as_restricted(rented: Replica, stated: str) -> None:
    with rented.client(**{"X-Tidegate-Data-Class": stated}) as client:
        assert client.post(CHAT, json=BODY).status_code == 403


def test_a_class_that_is_missing_or_stated_twice_counts_as_restricted(rented: Replica) -> None:
    twice = [("X-Tidegate-Data-Class", "public"), ("X-Tidegate-Data-Class", "internal")]
    for stated in ([], twice):
        headers = [("Authorization", f"Bearer {rented.credential}"), *stated]
        response = httpx.post(f"{rented.url}{CHAT}", json=BODY, headers=headers)
        assert response.status_code == 403


def test_what_is_received_is_logged_by_class_and_id_and_never_by_content(
    rented: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-7f3a"
    caplog.set_level("INFO", logger="ray.serve.tidegate.replica")
    headers = {"X-Tidegate-Data-Class": "restricted", "X-Request-Id": "request-42"}
    with rented.client(**headers) as client:
        client.post(CHAT, json={**BODY, "messages": [{"role": "user", "content": canary}]})
    assert "class=restricted request_id='request-42' refused=True" in caplog.text
    assert canary not in caplog.text
    assert rented.credential not in caplog.text


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("Transfer-Encoding", "chunked"), 411),
        (("Content-Length", str(33 * 1024 * 1024)), 413),
    ],
    ids=["without a length", "too long"],
)
def test_a_body_is_refused_before_it_is_sent(
    rented: Replica, header: tuple[str, str], status: int
) -> None:
    address = urllib.parse.urlsplit(rented.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("Authorization", f"Bearer {rented.credential}")
    connection.putheader(*header)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_more_requests_than_the_replica_holds_are_sent_away_until_some_end(
    emulated_host: EmulatedHost,
) -> None:
    """One slot: 2 x 1 + 16 = 18 are held, the 19th is told to come back."""
    replica = emulated_host.start(gpu="slow", slots=1)
    statuses: list[int] = []
    begun = threading.Barrier(19)

    def hold() -> None:
        with replica.client() as own:
            begun.wait()
            try:
                statuses.append(own.post(CHAT, json=BODY, timeout=1.5).status_code)
            except httpx.ReadTimeout:
                statuses.append(0)

    threads = [threading.Thread(target=hold) for _ in range(19)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(503) == 1
    with replica.client() as client:
        assert client.post(CHAT, json={**BODY, "model": "other"}).status_code == 404


def test_an_answer_says_that_it_is_emulated_wherever_it_can(emulated_host: EmulatedHost) -> None:
    replica = emulated_host.start(gpu="instant")
    with replica.client() as client:
        response = client.post(CHAT, json=BODY)
        body = response.json()
        assert response.headers["X-Tidegate-Engine"] == "emulated"
        assert body["system_fingerprint"] == "emulated"
        assert body["choices"][0]["message"]["content"].startswith("[emulated]")
        assert client.get("/v1/models").json()["data"][0]["owned_by"] == "emulated"
        assert 'engine="emulated"' in client.get("/metrics").text
        with client.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("data: {")]
    assert all(json.loads(line[6:])["system_fingerprint"] == "emulated" for line in events)
    assert json.loads(events[1][6:])["choices"][0]["delta"]["content"].startswith("[emulated]")


async def test_no_part_of_an_answer_waits_for_the_acknowledgement_of_another() -> None:
    """Headers and body are written apart: without the option the second waits for 40 ms."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer nobody: the server isn't started."""

    identity = ReplicaIdentity("pool", "emulated", "site", is_owned=True, slots=1)
    server = ReplicaServer(app, identity=identity, host="127.0.0.1")
    with socket.create_connection(server._socket.getsockname()):
        accepted, _ = server._socket.accept()
    with accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await server.stop(grace_s=0)
