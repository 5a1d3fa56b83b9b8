"""The one module that opens connections to replicas; each needs a permit for request and site.

A replica is only ever reached with a permit whose class, site and body agree with what is about to
be sent, and only if the replica itself says it stands on that site. Any disagreement is an error of
ours, not of the client, and nothing is sent.

Bytes go through as they come: no parsing, no re-encoding, no Ray call per token.
"""

import hashlib
import socket
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import aiohttp

from deployments.header_names import CLASS_HEADER, ENGINE_HEADER, REQUEST_ID_HEADER, SLOT_HEADER
from deployments.pools import ReplicaAddress
from deployments.refusals import RequestRefusedError
from deployments.residency import DataClass, Permit

_CONNECT_S_MAX = 3.0
# How long an engine may think; whether its machine is still there, the kernels find out below.
_SILENCE_S_MAX = 300.0
_PROBE_AFTER_S = 5
_PROBE_EVERY_S = 5
_PROBES_MAX = 3
_UNREACHABLE_S_MAX = _PROBE_AFTER_S + _PROBES_MAX * _PROBE_EVERY_S
# Shorter than the replica's, so that we never write into a connection it is about to close.
_KEEP_ALIVE_S = 30.0
_ANSWER_BYTES_MAX = 64 * 1024 * 1024


class ReplicaFailedError(Exception):
    """The replica could not be reached, or broke off; `detail` is for logs, not for clients."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class PermitError(RequestRefusedError):
    """Permit, replica and request don't agree: a mistake of ours, stopped before anything left."""

    status = 500
    default_code = "permit_mismatch"


class Exchange:
    """One request sent to one replica, and its answer; closing it aborts the generation."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.engine = response.headers.get(ENGINE_HEADER, "")

    async def read(self) -> bytes:
        """The whole body of the answer."""
        pieces = []
        bytes_read = 0
        async for piece in self.iterate():
            pieces.append(piece)
            bytes_read += len(piece)
            if bytes_read > _ANSWER_BYTES_MAX:
                raise ReplicaFailedError(f"the answer is longer than {_ANSWER_BYTES_MAX} bytes")
        return b"".join(pieces)

    async def iterate(self) -> AsyncIterator[bytes]:
        """The body as it arrives, in pieces of whatever size."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise ReplicaFailedError(f"{type(exc).__name__}: {exc}") from exc

    def close(self) -> None:
        """End the exchange at once; an unfinished answer costs its connection, a read one doesn't.

        Doesn't wait, so that it works while a task is being cancelled.
        """
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Upstream:
    """Connections to replicas, kept alive between requests; one object per gateway."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(
        self, permit: Permit, replica: ReplicaAddress, *, path: str, body: bytes, slot: str
    ) -> Exchange:
        """Send `body` and return once the replica has answered with a status.

        Raises:
            PermitError: permit, replica and body don't belong together; nothing was sent.
            ReplicaFailedError: no answer; the request may or may not have begun.
        """
        _check_permit(permit, replica, body)
        headers = {
            "Authorization": f"Bearer {replica.credential}",
            "Content-Type": "application/json",
            REQUEST_ID_HEADER: permit.request_id,
            CLASS_HEADER: permit.data_class.value,
            SLOT_HEADER: slot,
        }
        try:
            response = await self._open_session().post(
                replica.url + path, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise ReplicaFailedError(f"{type(exc).__name__}: {exc}") from exc
        return Exchange(response)

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        """The session, made in the event loop that first needs it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=_KEEP_ALIVE_S, socket_factory=_make_socket
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_S_MAX, sock_read=_SILENCE_S_MAX
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _make_socket(target: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that fails 20 s after the other machine or the line to it went away silently."""
    family, kind, protocol, *_ = target
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
        (socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
        (socket.TCP_KEEPCNT, _PROBES_MAX),
        # The same for what was sent and never acknowledged: no probes are sent meanwhile.
        (socket.TCP_USER_TIMEOUT, _UNREACHABLE_S_MAX * 1000),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _check_permit(permit: Permit, replica: ReplicaAddress, body: bytes) -> None:
    if not isinstance(permit, Permit):
        raise PermitError("A connection to a replica needs a permit.")
    if (permit.site, permit.is_owned) != (replica.site, replica.owned):
        raise PermitError("The replica stands on another site than the one permitted.")
    if permit.data_class is DataClass.RESTRICTED and not replica.owned:
        raise PermitError("Restricted data must stay on owned sites.")
    if hashlib.sha256(body).hexdigest() != permit.body_sha256:
        raise PermitError("The permit was granted for another body.")
