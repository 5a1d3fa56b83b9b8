"""The HTTP contract of an engine replica, the same for the emulated engine and for vLLM.

The vLLM case runs a real replica in Ray Serve. It earns its minute: the emulated engine stands in
for vLLM in every other test, which is only worth something if both keep one contract.
"""

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.deployments.replica_hosts import CONTEXT_TOKENS, MODEL, SLOTS, Replica

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENGINES = ["emulated", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.ray])]


@pytest.fixture(scope="module", params=ENGINES)
def replica(request: pytest.FixtureRequest) -> Replica:
    if request.param == "emulated":
        return request.getfixturevalue("emulated_host").start(gpu="h100-8b")
    return request.getfixturevalue("vllm_replica")


@pytest.fixture(scope="module")
def client(replica: Replica) -> Iterator[httpx.Client]:
    with replica.client() as client:
        yield client


def chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8, **changes}


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, **changes}


def read_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which must end with [DONE]."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def gauge(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))


def wait_until(client: httpx.Client, name: str, value: float, *, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while (now := gauge(client, name)) != value:
        assert time.monotonic() < deadline_s, f"{name} is {now}, not {value}"
        time.sleep(0.05)


def assert_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == status
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert "param" in error
    return dict(error)


def test_a_chat_answer_has_text_a_finish_reason_and_usage_that_adds_up(
    client: httpx.Client, replica: Replica
) -> None:
    response = client.post(CHAT, json=chat())
    body = response.json()
    choice = body["choices"][0]
    assert response.status_code == 200
    assert response.headers["X-Tidegate-Engine"] == replica.engine
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_completion_answer_has_text_and_usage(client: httpx.Client) -> None:
    body = client.post(COMPLETIONS, json=completion()).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"]
    assert body["usage"]["completion_tokens"] == 8
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_chat_stream_has_a_role_deltas_a_finish_reason_usage_and_an_end(
    client: httpx.Client,
) -> None:
    body = chat(stream=True, stream_options={"include_usage": True}, ignore_eos=True)
    with client.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = read_events(response)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    *deltas, last = [event["choices"][0] for event in events[:-1]]
    assert "".join(delta["delta"].get("content") or "" for delta in [*deltas, last])
    assert all(delta["finish_reason"] is None for delta in deltas)
    assert last["finish_reason"] == "length"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 8


def test_a_stream_without_include_usage_carries_none(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        events = read_events(response)
    assert all(event.get("usage") is None for event in events)
    assert events[-1]["choices"][0]["finish_reason"] is not None


def test_a_completion_stream_has_text_deltas_and_an_end(client: httpx.Client) -> None:
    body = completion(stream=True, stream_options={"include_usage": True}, ignore_eos=True)
    with client.stream("POST", COMPLETIONS, json=body) as response:
        events = read_events(response)
    assert "".join(event["choices"][0]["text"] for event in events[:-1])
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 8


def test_streaming_changes_neither_text_nor_usage(client: httpx.Client) -> None:
    whole = client.post(CHAT, json=chat(seed=1)).json()
    body = chat(seed=1, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", CHAT, json=body) as response:
        *events, usage = read_events(response)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_stop_string_ends_the_answer_before_it(client: httpx.Client) -> None:
    text = client.post(COMPLETIONS, json=completion(max_tokens=12, seed=1, temperature=0)).json()[
        "choices"
    ][0]["text"]
    stop = text[len(text) // 2 :][:4]
    body = completion(max_tokens=12, seed=1, temperature=0, stop=[stop])
    choice = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == stop
    assert choice["text"] == text[: text.index(stop)]


def test_a_client_that_leaves_takes_its_stream_out_of_the_batch(client: httpx.Client) -> None:
    body = chat(stream=True, max_tokens=450, ignore_eos=True)
    with client.stream("POST", CHAT, json=body) as response:
        # httpx closes the response when an iterator over it is collected.
        lines = response.iter_lines()
        next(lines)
        assert gauge(client, "num_requests_running") == 1
    wait_until(client, "num_requests_running", 0)
    wait_until(client, "kv_cache_usage_perc", 0)


def test_a_client_that_leaves_a_whole_answer_takes_it_out_of_the_batch(
    replica: Replica, client: httpx.Client
) -> None:
    with replica.client() as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post(CHAT, json=chat(max_tokens=450, ignore_eos=True), timeout=0.4)
    wait_until(client, "num_requests_running", 0)


def test_no_more_than_the_slots_run_at_once_and_the_rest_is_answered_later(
    replica: Replica, client: httpx.Client
) -> None:
    answers: list[int] = []

    def ask() -> None:
        with replica.client() as own:
            body = chat(max_tokens=60, ignore_eos=True)
            answers.append(own.post(CHAT, json=body).json()["usage"]["completion_tokens"])

    threads = [threading.Thread(target=ask) for _ in range(3 * SLOTS)]
    for thread in threads:
        thread.start()
    running = []
    while any(thread.is_alive() for thread in threads):
        running.append(gauge(client, "num_requests_running"))
        time.sleep(0.05)
    assert answers == [60] * (3 * SLOTS)
    assert max(running) == SLOTS
    wait_until(client, "num_requests_running", 0)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{", {}),
        (b"", {}),
        (b"[]", {}),
        (b"\xff\xfe", {}),
        (b"{}", {}),
        (b"{}", {"Content-Type": "text/plain"}),
    ],
    ids=["cut", "empty", "list", "bytes", "no fields", "not json"],
)
def test_a_body_that_makes_no_sense_gets_400(
    client: httpx.Client, path: str, content: bytes, headers: dict[str, str]
) -> None:
    sent = {"Content-Type": "application/json", **headers}
    assert_error(client.post(path, content=content, headers=sent), 400)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": "hello"},
        {"messages": []},
        {"max_tokens": "many"},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 2},
        {"stream": "perhaps"},
        {"stop": 7},
        {"n": "one"},
        {"stream_options": {"include_usage": True}},
    ],
    ids=str,
)
def test_a_wrong_value_gets_400(client: httpx.Client, changes: dict[str, Any]) -> None:
    assert_error(client.post(CHAT, json=chat(**changes)), 400)


def test_an_unknown_model_gets_404(client: httpx.Client) -> None:
    error = assert_error(client.post(CHAT, json=chat(model="other")), 404)
    assert "other" in error["message"]


def test_more_than_the_context_holds_gets_400(client: httpx.Client) -> None:
    long = "tide gate " * CONTEXT_TOKENS
    messages = [{"role": "user", "content": long}]
    error = assert_error(client.post(CHAT, json=chat(messages=messages)), 400)
    assert str(CONTEXT_TOKENS) in error["message"]
    assert_error(client.post(COMPLETIONS, json=completion(prompt=long)), 400)
    assert_error(client.post(CHAT, json=chat(max_tokens=CONTEXT_TOKENS)), 400)


def test_the_engine_answers_after_every_refusal(client: httpx.Client) -> None:
    client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"})
    assert client.post(CHAT, json=chat()).status_code == 200


def test_models_health_and_metrics_are_served(client: httpx.Client) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card["id"] == MODEL
    assert card["max_model_len"] == CONTEXT_TOKENS
    assert client.get("/health").status_code == 200
    assert gauge(client, "num_requests_waiting") == 0


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", "Basic {}", "Bearer {}x", "bearer {}", "{}"],
    ids=["empty", "no token", "wrong", "basic", "longer", "lower case", "bare"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/docs"])
def test_nothing_is_answered_without_the_exact_credential(
    replica: Replica, authorization: str, path: str
) -> None:
    given = authorization.format(replica.credential)
    with replica.client(Authorization=given) as stranger:
        assert_error(stranger.get(path), 401)


def test_generating_needs_the_credential(replica: Replica) -> None:
    with httpx.Client(base_url=replica.url) as stranger:
        assert_error(stranger.post(CHAT, json=chat()), 401)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/pooling"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/v1/chat/completions/batch"),
        ("GET", "/docs"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
        ("GET", "/version"),
        ("GET", "/ping"),
        ("GET", "/load"),
        ("GET", "/"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/x"),
        ("GET", "/v1/./models"),
        ("GET", "/x/../v1/models"),
        ("GET", "/v1/%6dodels"),
        ("GET", "/v1%2Fmodels"),
        ("GET", "/v1/models;x"),
        ("GET", "/metrics/x"),
        ("GET", "/metricsx"),
        ("GET", CHAT),
        ("HEAD", "/v1/models"),
        ("OPTIONS", "/v1/models"),
        ("PUT", "/health"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
    ],
)
def test_what_is_not_listed_is_not_there(replica: Replica, method: str, path: str) -> None:
    """The path is sent as it stands; most HTTP clients would tidy it up."""
    address = urllib.parse.urlsplit(replica.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    headers = {"Authorization": f"Bearer {replica.credential}", "Content-Length": "0"}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 404
    assert method == "HEAD" or json.loads(body)["error"]["code"] == 404


def test_an_owned_node_answers_restricted_data(replica: Replica) -> None:
    with replica.client(**{"X-Tidegate-Data-Class": "restricted"}) as client:
        assert client.post(CHAT, json=chat()).status_code == 200
