"""The gateway over real HTTP on loopback: from the client's bytes to the replica's and back."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from deployments.admission import QueueLimits
from deployments.auth import Keyring, create_key
from deployments.gateway import Gateway
from deployments.http_api import HttpApi
from deployments.metrics import GatewayMetrics
from deployments.model_desk import ModelDesk
from deployments.model_queue import ModelQueue
from deployments.residency import DataClass
from deployments.signals import ModelSignal, Served
from deployments.spec import ModelSpec, Objective
from deployments.upstream import Upstream
from tests.deployments.gateway_fakes import (
    FakePool,
    ScriptedReplica,
    make_pool_spec,
    serve_replica,
    until,
)

CHAT = "/v1/chat/completions"
BODY_BYTES_MAX = 4096


class World:
    """A gateway with an owned and a paid pool, and a client that holds a key."""

    def __init__(self, client: httpx.AsyncClient, gateway: Gateway, keys: dict[str, str]) -> None:
        self.client = client
        self.gateway = gateway
        self.keys = keys

    async def chat(self, *, key: str = "internal", **fields: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "secret words"}]} | fields
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        if "data_class" in body:
            headers["X-Data-Class"] = body.pop("data_class")
        return await self.client.post(CHAT, json=body, headers=headers)

    def figure(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def onprem() -> FakePool:
    return FakePool(make_pool_spec(site="onprem", owned=True))


@pytest.fixture
def cloud() -> FakePool:
    return FakePool(make_pool_spec(site="cloud", owned=False))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "keys.yaml"
    return {
        "path": str(path),
        "internal": create_key(path, tenant="lab"),
        "public": create_key(path, tenant="web", data_class=DataClass.PUBLIC),
        "home": create_key(path, tenant="home", may_burst=False),
        "other": create_key(path, tenant="other", models=frozenset({"another"})),
    }


@asynccontextmanager
async def serve_gateway(app: HttpApi) -> AsyncIterator[httpx.AsyncClient]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        await asyncio.wait({task}, timeout=2)
        server.force_exit = True
        await task


@pytest.fixture
async def world(
    onprem: FakePool, cloud: FakePool, keys: dict[str, str]
) -> AsyncIterator[Callable[..., Any]]:
    """Open a world with replicas that follow these scripts."""
    async with AsyncExitStack() as stack:

        async def open_world(
            *,
            owned: list[Any] | None = None,
            paid: list[Any] | None = None,
            wait_s_max: float = 0.3,
            over_a_socket: bool = False,
            ttft_s: float = 3.0,
        ) -> World:
            """Replicas are always real servers; the gateway is one where the client may leave."""
            for pool, apps in ((onprem, owned or []), (cloud, paid or [])):
                for index, app in enumerate(apps):
                    address = await stack.enter_async_context(serve_replica(app, pool.spec))
                    pool.add(f"{pool.spec.site}-{index}", address)
            limits = QueueLimits(waiting_max=4, wait_s_max=wait_s_max, look_again_after_s=0.01)
            spec = ModelSpec(
                name="m",
                context_tokens=2048,
                objective=Objective(ttft_s=ttft_s, tpot_s=0.2, usd_per_late_request=0.25),
                pools=(onprem.spec, cloud.spec),
            )
            upstream = await stack.enter_async_context(Upstream())
            gateway = Gateway(
                [ModelDesk(spec, ModelQueue([onprem, cloud], limits=limits))],
                keyring=Keyring(Path(keys["path"])),
                upstream=upstream,
                metrics=GatewayMetrics(),
            )
            stack.push_async_callback(gateway.close)
            app = HttpApi(gateway, body_bytes_max=BODY_BYTES_MAX)
            transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
            in_process = httpx.AsyncClient(transport=transport, base_url="http://gateway")
            client = await stack.enter_async_context(
                serve_gateway(app) if over_a_socket else in_process
            )
            return World(client, gateway, keys)

        yield open_world


def events(response: httpx.Response) -> list[str]:
    return [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]


async def test_an_answer_comes_back_with_usage_and_says_where_it_came_from(world: Any) -> None:
    opened = await world(owned=[ScriptedReplica()])
    response = await opened.chat()
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "hello you"
    assert response.json()["usage"]["total_tokens"] == 5
    assert "cached_tokens" not in response.text
    assert response.headers["x-tidegate-site"] == "onprem"
    assert response.headers["x-tidegate-replica"] == "onprem-0"
    assert response.headers["x-tidegate-data-class"] == "internal"
    assert response.headers["x-tidegate-reason"] == "owned-slot-free"
    assert response.headers["x-tidegate-engine"] == "emulated"
    assert len(response.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_carries_usage_exactly_when_asked(world: Any, *, asks: bool) -> None:
    opened = await world(owned=[ScriptedReplica()])
    options = {"stream_options": {"include_usage": True}} if asks else {}
    response = await opened.chat(stream=True, **options)
    found = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert found[-1] == "[DONE]"
    assert len(found) == (4 if asks else 3)
    assert any('"usage"' in event for event in found) is asks
    assert "cached_tokens" not in response.text
    labels = {"model": "m", "site": "onprem", "kind": "completion"}
    assert opened.figure("tidegate_tokens_total", **labels) == 2


async def test_the_replica_gets_our_serialisation_the_class_and_the_slot_but_no_key(
    world: Any,
) -> None:
    replica = ScriptedReplica()
    opened = await world(owned=[replica])
    await opened.chat(temperature=0, user="bob")
    seen = replica.seen[0]
    assert seen["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "secret words"}],
        "temperature": 0.0,
    }
    assert seen["headers"]["x-tidegate-data-class"] == "internal"
    assert seen["headers"]["x-tidegate-slot"] == "slot-onprem-0"
    assert opened.keys["internal"] not in str(seen["headers"])


async def test_text_completions_work_too(world: Any) -> None:
    replica = ScriptedReplica()
    opened = await world(owned=[replica])
    response = await opened.client.post(
        "/v1/completions",
        json={"model": "m", "prompt": "hi"},
        headers={"Authorization": f"Bearer {opened.keys['internal']}"},
    )
    assert response.status_code == 200
    assert replica.seen[0]["path"] == "/v1/completions"


async def test_models_are_listed_for_the_key_that_asks(world: Any) -> None:
    opened = await world()
    for key, names in (("internal", ["m"]), ("other", [])):
        headers = {"Authorization": f"Bearer {opened.keys[key]}"}
        listed = (await opened.client.get("/v1/models", headers=headers)).json()
        assert [one["id"] for one in listed["data"]] == names


CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no key": ({"headers": {}}, 401, "invalid_api_key"),
    "garbage key": ({"headers": {"Authorization": "Bearer x"}}, 401, "invalid_api_key"),
    "no JSON": ({"content": b"{oops"}, 400, "malformed_body"),
    "empty body": ({"content": b""}, 400, "malformed_body"),
    "duplicate key": ({"content": b'{"model":"m","model":"m"}'}, 400, "duplicate_key"),
    "too long": ({"content": b"x" * (BODY_BYTES_MAX + 1)}, 413, "body_too_large"),
    "unknown model": ({"fields": {"model": "gpt-9"}}, 404, "model_not_found"),
    "model of others": ({"fields": {}, "key": "other"}, 404, "model_not_found"),
    "wrong type": ({"fields": {"max_tokens": "5"}}, 422, "invalid_value"),
    "unknown field": ({"fields": {"temprature": 1}}, 422, "unknown_field"),
    "refused field": ({"fields": {"cache_salt": "x"}}, 422, "unsupported_field"),
    "missing field": ({"content": b'{"model":"m"}'}, 422, "missing_field"),
    "unknown class": ({"fields": {}, "class": "top-secret"}, 422, "unknown_class"),
    "two classes": (
        {"first": [("X-Data-Class", "restricted")], "class": "public"},
        422,
        "repeated_header",
    ),
    "two keys": ({"first": [("Authorization", "Bearer x")]}, 401, "invalid_api_key"),
    "unknown path": ({"path": "/v1/embeddings"}, 404, "unknown_path"),
    "docs": ({"path": "/docs", "method": "GET"}, 404, "unknown_path"),
    "double slash": ({"path": "//v1/chat/completions"}, 404, "unknown_path"),
    "upper case": ({"path": "/V1/chat/completions"}, 404, "unknown_path"),
    "encoded": ({"path": "/v1/chat%2Fcompletions"}, 404, "unknown_path"),
    "encoded letter": ({"path": "/v1/ch%61t/completions"}, 404, "unknown_path"),
    "wrong method": ({"method": "GET"}, 405, "method_not_allowed"),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_input_is_refused_in_openais_shape_and_nothing_reaches_a_replica(
    case: str, world: Any, onprem: FakePool
) -> None:
    opened = await world()
    onprem.add("onprem-0")
    given, status, code = CASES[case]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | given.get("fields", {})
    headers = given.get(
        "headers", {"Authorization": f"Bearer {opened.keys[given.get('key', 'internal')]}"}
    )
    if "class" in given:
        headers = headers | {"X-Data-Class": given["class"]}
    response = await opened.client.request(
        given.get("method", "POST"),
        given.get("path", CHAT),
        content=given.get("content", json.dumps(body).encode()),
        headers=[*given.get("first", ()), *headers.items()],
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert response.headers["x-request-id"]
    assert onprem.taken == {}


async def test_bad_input_leaves_the_service_as_it_was(world: Any) -> None:
    opened = await world(owned=[ScriptedReplica()])
    await opened.chat(temprature=1)
    assert (await opened.chat()).status_code == 200


async def test_a_body_without_a_length_is_bounded_too(world: Any) -> None:
    opened = await world(over_a_socket=True)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    headers = {"Authorization": f"Bearer {opened.keys['internal']}"}
    response = await opened.client.post(CHAT, content=pieces(), headers=headers)
    assert response.status_code == 413


async def test_health_and_metrics_are_open_and_hold_no_names_of_tenants(world: Any) -> None:
    opened = await world(owned=[ScriptedReplica()])
    await opened.chat()
    assert (await opened.client.get("/health")).json() == {"status": "ok"}
    figures = (await opened.client.get("/metrics")).text
    assert 'tidegate_requests_total{data_class="internal",model="m",outcome="answered"' in figures
    assert "lab" not in figures
    assert "secret" not in figures


async def test_the_header_tightens_the_class_and_never_loosens_it(world: Any) -> None:
    opened = await world(owned=[ScriptedReplica()])
    tightened = await opened.chat(key="public", data_class="restricted")
    assert tightened.headers["x-tidegate-data-class"] == "restricted"
    loosened = await opened.chat(key="internal", data_class="public")
    assert loosened.headers["x-tidegate-data-class"] == "internal"


@pytest.mark.parametrize("request_fields", [{"data_class": "restricted"}, {"key": "home"}])
async def test_what_must_stay_never_reaches_the_cloud_even_with_nothing_owned_running(
    world: Any, request_fields: dict[str, Any]
) -> None:
    paid = ScriptedReplica()
    opened = await world(paid=[paid])
    response = await opened.chat(**request_fields)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert paid.seen == []


async def test_a_restricted_request_is_not_retried_at_the_cloud(world: Any) -> None:
    paid = ScriptedReplica()
    opened = await world(owned=[ScriptedReplica("error")], paid=[paid])
    response = await opened.chat(data_class="restricted")
    assert response.status_code == 503
    assert paid.seen == []


async def test_a_busy_owned_site_means_429_with_a_hint_for_restricted(
    world: Any, onprem: FakePool
) -> None:
    opened = await world(owned=[ScriptedReplica("silent")], paid=[ScriptedReplica()])
    busy = [asyncio.create_task(opened.chat(data_class="restricted")) for _ in range(2)]
    await until(lambda: onprem.taken.get("onprem-0", 0) == 2)
    refused = await opened.chat(data_class="restricted")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-tidegate-data-class"] == "restricted"
    assert (await opened.chat()).headers["x-tidegate-site"] == "cloud"
    for task in busy:
        task.cancel()


@pytest.mark.parametrize("step", ["error", "close"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_replica_that_fails_before_its_first_byte_is_replaced_unnoticed(
    world: Any, step: str, *, stream: bool
) -> None:
    opened = await world(owned=[ScriptedReplica(step), ScriptedReplica()])
    responses = [await opened.chat(stream=stream) for _ in range(4)]
    assert [response.status_code for response in responses] == [200] * 4
    assert opened.figure("tidegate_retries_total", model="m") == 1


async def test_two_failures_are_the_end_and_say_so(world: Any) -> None:
    replicas = [ScriptedReplica("error"), ScriptedReplica("error"), ScriptedReplica()]
    opened = await world(owned=replicas)
    response = await opened.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "replica_failed"
    assert replicas[2].seen == []


async def test_a_request_the_engine_refuses_is_not_tried_elsewhere(world: Any) -> None:
    replicas = [ScriptedReplica("refuse"), ScriptedReplica("refuse")]
    opened = await world(owned=replicas)
    response = await opened.chat(max_tokens=9999)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "the context is 2048 tokens",
        "type": "invalid_request_error",
        "param": None,
        "code": "refused_by_engine",
    }
    assert len(replicas[0].seen) + len(replicas[1].seen) == 1


async def test_a_stream_that_breaks_ends_with_an_error_event(world: Any) -> None:
    replicas = [ScriptedReplica("cut"), ScriptedReplica("cut")]
    opened = await world(owned=replicas)
    found = events(await opened.chat(stream=True))
    assert json.loads(found[0])["choices"][0]["delta"]["content"] == "hello"
    assert json.loads(found[-1])["error"]["code"] == "stream_broken"
    assert len(replicas[0].seen) + len(replicas[1].seen) == 1
    labels = {"model": "m", "site": "onprem", "data_class": "internal", "outcome": "stream_broken"}
    assert opened.figure("tidegate_requests_total", **labels) == 1


async def test_a_client_that_leaves_ends_the_generation_and_frees_the_slot(
    world: Any, onprem: FakePool
) -> None:
    replica = ScriptedReplica("hang")
    opened = await world(owned=[replica], over_a_socket=True)
    headers = {"Authorization": f"Bearer {opened.keys['internal']}"}
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with opened.client.stream("POST", CHAT, json=body, headers=headers) as response:
        assert await anext(response.aiter_lines())
        assert onprem.taken["onprem-0"] == 1
    await until(lambda: replica.aborted.is_set() and not onprem.taken["onprem-0"])


async def test_the_first_event_of_a_stream_says_that_its_prompt_is_read(
    world: Any, onprem: FakePool
) -> None:
    """A replica with room for one prompt at a time gets the second while the first goes on."""
    onprem.spec = onprem.spec.model_copy(update={"reading_tokens_max": 1})
    opened = await world(owned=[ScriptedReplica("hang")], over_a_socket=True)
    headers = {"Authorization": f"Bearer {opened.keys['internal']}"}
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with opened.client.stream("POST", CHAT, json=body, headers=headers) as first:
        lines = first.aiter_lines()
        assert await anext(lines)
        async with opened.client.stream("POST", CHAT, json=body, headers=headers) as second:
            assert second.status_code == 200
            assert onprem.taken["onprem-0"] == 2


async def test_a_client_that_leaves_before_the_first_byte_ends_the_generation_too(
    world: Any, onprem: FakePool
) -> None:
    replica = ScriptedReplica("silent")
    opened = await world(owned=[replica], over_a_socket=True)
    task = asyncio.create_task(opened.chat())
    await until(lambda: bool(replica.seen))
    task.cancel()
    await until(lambda: replica.aborted.is_set() and not onprem.taken["onprem-0"])


async def test_no_prompt_and_no_key_is_logged(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    opened = await world(owned=[ScriptedReplica("error"), ScriptedReplica("cut")])
    await opened.chat(stream=True)
    await opened.chat(nonsense=1)
    assert "secret words" not in caplog.text
    assert opened.keys["internal"] not in caplog.text
    assert '"outcome": "stream_broken"' in caplog.text


async def test_signals_count_what_came_and_what_was_answered(world: Any) -> None:
    """Three answers of 3 + 2 tokens, one of them whole; a refused key and a bad body don't count.

    A stream tells when its first token came, so two of three have a TTFT, and one token after it.
    One token of each prompt was cached.
    """
    opened = await world(owned=[ScriptedReplica()])
    await opened.chat(stream=True)
    await opened.chat(stream=True, key="home")
    await opened.chat()
    await opened.chat(key="other")
    await opened.chat(nonsense=1)
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    assert (model.arrived, model.arrived_may_burst) == (3, 2)
    served = model.pools[0].served
    assert (served.requests, served.prompt_tokens, served.output_tokens) == (3, 9, 6)
    assert (served.first_tokens, served.decode_tokens) == (2, 2)
    assert served.cached_tokens == 3
    assert served.hold_s >= served.decode_s > 0
    assert served.ttft_s > 0
    assert model.pools[1].served == Served()


async def test_an_answer_that_broke_off_adds_no_lengths(world: Any) -> None:
    """Its first token came, and is counted; how long it would have been, nobody knows."""
    opened = await world(owned=[ScriptedReplica("cut")])
    await opened.chat(stream=True)
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    served = model.pools[0].served
    assert (model.arrived, served.requests, served.hold_s) == (1, 0, 0.0)
    assert served.first_tokens == 1


async def test_a_request_that_failed_over_counts_once_and_where_it_was_answered(world: Any) -> None:
    """The owned replica fails, the cloud's answers: one arrival, one answer, at the cloud."""
    opened = await world(owned=[ScriptedReplica("error")], paid=[ScriptedReplica()])
    await opened.chat()
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    assert model.arrived == 1
    assert [pool.served.requests for pool in model.pools] == [0, 1]


async def test_what_was_refused_for_want_of_a_slot_is_late(world: Any) -> None:
    """Two slots hang, three more are refused after 0.3 s: two of those might have gone anywhere."""
    opened = await world(owned=[ScriptedReplica("silent")])
    hanging = [asyncio.create_task(opened.chat()) for _ in range(2)]
    await until(
        lambda: opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0].arrived == 2
    )
    refused = [opened.chat(), opened.chat(), opened.chat(key="home")]
    assert {answer.status_code for answer in await asyncio.gather(*refused)} == {429}
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    assert (model.arrived, model.late, model.refused_may_burst) == (5, 3, 2)
    for call in hanging:
        call.cancel()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "sent whole"])
async def test_an_answer_begun_after_the_promise_is_late(world: Any, *, stream: bool) -> None:
    """Nothing is begun within a nanosecond; of what the engine refuses, nothing was promised."""
    opened = await world(owned=[ScriptedReplica("answer", "refuse")], ttft_s=1e-9)
    await opened.chat(stream=stream)
    await opened.chat(stream=stream)
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    assert (model.arrived, model.late, model.refused_may_burst) == (2, 1, 0)


async def test_signals_carry_the_objective_and_the_row_of_speed(world: Any) -> None:
    """What the serve file says; an emulated pool is as fast as its row."""
    opened = await world()
    model = opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]
    objective = (model.ttft_s_max, model.tpot_s_max, model.usd_per_late_request)
    assert objective == (3.0, 0.2, 0.25)
    assert [pool.gpu_row for pool in model.pools] == ["demo", "demo"]


async def test_signals_tell_what_runs_and_what_waits(world: Any, onprem: FakePool) -> None:
    opened = await world(owned=[ScriptedReplica("silent")], wait_s_max=5.0)
    calls = [asyncio.create_task(opened.chat(key="home")) for _ in range(2)]
    calls += [
        asyncio.create_task(opened.chat()),
        asyncio.create_task(opened.chat(data_class="restricted")),
    ]

    def signal() -> ModelSignal:
        return opened.gateway.observe_signals(gateway="g", now_s=1.0).models[0]  # type: ignore[no-any-return]

    await until(lambda: signal().waiting_internal + signal().waiting_restricted == 2)
    model = signal()
    assert model.waiting_may_burst <= 1
    assert (model.pools[0].replicas_running, model.pools[0].streams_running) == (1, 2)
    assert (model.pools[1].replicas_running, model.pools[1].owned) == (0, False)
    for call in calls:
        call.cancel()
