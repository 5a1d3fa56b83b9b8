"""Connections to replicas: none without a permit for this body, class and site."""

import ast
import hashlib
import socket
from pathlib import Path

import pytest

import deployments
from deployments.residency import Clearance, DataClass, Permit, grant_permit
from deployments.upstream import PermitError, ReplicaFailedError, Upstream
from tests.deployments.gateway_fakes import (
    ScriptedReplica,
    make_address,
    make_pool_spec,
    serve_replica,
)

ONPREM = make_pool_spec(site="onprem", owned=True)
CLOUD = make_pool_spec(site="cloud", owned=False)
BODY = b'{"model":"m"}'
PATH = "/v1/completions"


def permit(*, site: str = "onprem", owned: bool = True, body: bytes = BODY) -> Permit:
    digest = hashlib.sha256(body).hexdigest()
    return grant_permit(
        Clearance("r", DataClass.INTERNAL, may_burst=True, body_sha256=digest),
        site=site,
        is_owned=owned,
    )


async def send(given: Permit, spec: object = ONPREM, body: bytes = BODY) -> None:
    replica = ScriptedReplica()
    async with serve_replica(replica, spec) as address, Upstream() as upstream:  # type: ignore[arg-type]
        try:
            exchange = await upstream.send(given, address, path=PATH, body=body, slot="s")
            await exchange.read()
            exchange.close()
        except PermitError:
            assert replica.seen == []
            raise
    assert len(replica.seen) == 1


async def test_a_permit_opens_the_site_it_names() -> None:
    await send(permit())
    await send(permit(site="cloud", owned=False), CLOUD)


@pytest.mark.parametrize(
    ("given", "spec", "body"),
    [
        (permit(), CLOUD, BODY),
        (permit(site="cloud", owned=False), ONPREM, BODY),
        (permit(site="cloud"), CLOUD, BODY),
        (permit(site="elsewhere"), ONPREM, BODY),
        (permit(), ONPREM, BODY + b" "),
        (None, ONPREM, BODY),
        ("permit", CLOUD, BODY),
    ],
    ids=["cloud", "onprem", "not owned", "other site", "other body", "none", "no permit"],
)
async def test_anything_else_is_stopped_before_a_byte_leaves(
    given: Permit, spec: object, body: bytes
) -> None:
    with pytest.raises(PermitError):
        await send(given, spec, body)


async def test_a_replica_that_does_not_listen_has_failed() -> None:
    async with Upstream() as upstream:
        with pytest.raises(ReplicaFailedError):
            await upstream.send(permit(), make_address(ONPREM), path=PATH, body=BODY, slot="s")


async def test_a_machine_that_goes_away_silently_is_noticed_within_20_seconds() -> None:
    """Neither side sends anything while an engine thinks, so the kernel has to ask."""
    body = b'{"model":"m","stream":true}'
    replica = ScriptedReplica("hang")
    async with serve_replica(replica, ONPREM) as address, Upstream() as upstream:
        given = permit(body=body)
        exchange = await upstream.send(given, address, path=PATH, body=body, slot="s")
        connection = exchange._response.connection
        assert connection is not None
        assert connection.transport is not None
        link = connection.transport.get_extra_info("socket")
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle_s, every_s, probes, unread_ms = (
            link.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        )
        assert idle_s + probes * every_s == unread_ms / 1000 == 20
        exchange.close()


def test_no_other_module_of_the_gateway_can_open_a_connection() -> None:
    """Replicas themselves only listen, so the rule holds for the whole folder."""
    clients = {"aiohttp", "httpx", "requests", "urllib.request", "urllib3", "http.client"}
    found = {
        path.name: sorted(clients & _imports(path))
        for path in Path(deployments.__path__[0]).glob("*.py")
    }
    assert {name: modules for name, modules in found.items() if modules} == {
        "upstream.py": ["aiohttp"]
    }


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names
