"""The one place where a request's steps are seen in order.

    who → class → limits → queue → route → stream → settle → audit

Every way in (HTTP, Python handle) makes a `Call` and gets an `Answer` or a `RequestRefusedError`.
Prompts and answers pass through and are never logged.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deployments.auth import Keyring, Tenant
from deployments.header_names import (
    CLASS_HEADER,
    ENGINE_HEADER,
    REASON_HEADER,
    REPLICA_HEADER,
    SITE_HEADER,
)
from deployments.metrics import NOWHERE, GatewayMetrics
from deployments.model_desk import ModelDesk
from deployments.model_queue import HeldSlot
from deployments.refusals import (
    BrokenStreamError,
    EngineRefusedError,
    NotAllowedError,
    RequestRefusedError,
    UnavailableError,
    UnknownThingError,
)
from deployments.residency import (
    Clearance,
    DataClass,
    decide_class,
    filter_allowed,
    grant_permit,
    parse_data_class,
)
from deployments.served_tally import Settled
from deployments.signals import GatewaySignals
from deployments.spec import ModelSpec
from deployments.sse import BrokenEventError, EventRelay, render_event
from deployments.upstream import Exchange, ReplicaFailedError, Upstream
from deployments.usage import Usage, hide_reuse, read_usage
from deployments.wire import CompletionBase, render_request

# Serve configures handlers for its own logger and that one's children only.
logger = logging.getLogger("ray.serve.tidegate.gateway")
audit = logging.getLogger("ray.serve.tidegate.audit")

_TRIES_MAX = 2
_ENGINE_MESSAGE_CHARS_MAX = 500
_ENGINE_REFUSALS = (400, 404, 413, 422)
_RETRY_AFTER_FAILURE_S = 2
_OK = 200
# An estimate, for routing only: the gateway has no tokenizer. English text has about four.
_BYTES_PER_TOKEN = 4

# No slot in time, or no replica that answered.
_UNSERVED = (429, 503)


class Call(Protocol):
    """One request on its way in; what it says of itself may raise RequestRefusedError."""

    request_id: str

    @property
    def authorization(self) -> str | None:
        """Who asks, as `Bearer <key>`."""
        ...

    @property
    def stated_class(self) -> str | None:
        """The data class the client states, if it does."""
        ...

    async def read(self) -> CompletionBase:
        """The request itself; read only once it is known who asks. Raises RequestRefusedError."""
        ...


@dataclass
class Record:
    """What is known of one request so far; becomes its figures and its audit line."""

    request_id: str
    started_s: float = field(default_factory=time.monotonic)
    tenant: str | None = None
    data_class: DataClass | None = None
    model: str | None = None
    slot: HeldSlot | None = None
    engine: str = ""
    tries: int = 0
    has_arrived: bool = False
    may_burst: bool = False
    is_stream: bool = False
    waited_s: float | None = None
    first_byte_s: float | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def headers(self) -> dict[str, str]:
        """What the client is told beside the answer."""
        headers = {}
        if self.data_class is not None:
            headers[CLASS_HEADER] = self.data_class.value
        if self.slot is not None:
            headers[SITE_HEADER] = self.slot.address.site
            headers[REPLICA_HEADER] = self.slot.replica_id
            headers[REASON_HEADER] = self.slot.reason
        if self.engine:
            headers[ENGINE_HEADER] = self.engine
        return headers


class Answer:
    """One answer: `body`, or pieces of a stream. `close` must be called, whatever happened."""

    def __init__(self, gateway: "Gateway", record: Record, begun: "_Begun") -> None:
        self._gateway = gateway
        self._record = record
        self._begun = begun
        self._outcome = "cancelled"
        self._is_closed = False
        self.headers = record.headers
        self.is_stream = begun.relay is not None
        self.body = begun.first
        if not self.is_stream:
            self._outcome = "answered"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The stream's events; a replica that fails on the way is told to the client as an event.

        A stream never just stops: it ends with `[DONE]` or with an error.
        """
        begun = self._begun
        if begun.relay is None:
            raise RuntimeError("This answer is not a stream.")
        try:
            yield begun.first
            async for piece in begun.rest:
                events = begun.relay.feed(piece)
                if events:
                    yield events
            if not begun.relay.is_done:
                raise ReplicaFailedError("the stream ended without its end mark")  # noqa: TRY301
            self._outcome = "stream_broken" if begun.relay.has_failed else "answered"
        except (ReplicaFailedError, BrokenEventError) as exc:
            self._outcome = "stream_broken"
            self._gateway.report_failure(self._record, exc)
            yield render_event(BrokenStreamError("The replica failed; ask again.").to_body())

    def close(self) -> None:
        """End the exchange (aborting what is unfinished), give the slot back, settle. Idempotent.

        Doesn't wait, so that nothing can interrupt it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._begun.exchange.close()
        self._begun.slot.release()
        relay = self._begun.relay
        if relay is not None:
            self._record.usage = relay.usage
        self._gateway.settle(self._record, self._outcome)


@dataclass(slots=True)
class _Begun:
    """An exchange that has yielded its first bytes: from here on nothing is tried again."""

    slot: HeldSlot
    exchange: Exchange
    first: bytes
    relay: EventRelay | None
    rest: AsyncIterator[bytes]


class Gateway:
    """One gateway replica's work, without HTTP or Ray around it."""

    def __init__(
        self,
        desks: Sequence[ModelDesk],
        *,
        keyring: Keyring,
        upstream: Upstream,
        metrics: GatewayMetrics,
    ) -> None:
        self.metrics = metrics
        self._desks = {desk.spec.name: desk for desk in desks}
        self._keyring = keyring
        self._upstream = upstream

    async def answer(self, call: Call) -> Answer:
        """The answer to one call, begun: its first bytes are there. The caller closes it.

        Raises:
            RequestRefusedError: as its class says; the refusal is already counted and audited.
        """
        record = Record(call.request_id)
        try:
            tenant = self._keyring.identify(call.authorization)
            record.tenant = tenant.tenant
            record.data_class = decide_class(tenant.data_class, _stated(call.stated_class))
            request = await call.read()
            desk = self._find_desk(tenant, request.model)
            record.model = desk.spec.name
            begun = await self._begin(desk, tenant, request, record)
        except RequestRefusedError as exc:
            self.settle(record, exc.code, status=exc.status)
            exc.headers = record.headers
            raise
        except asyncio.CancelledError:
            self.settle(record, "cancelled")
            raise
        return Answer(self, record, begun)

    def list_models(self, authorization: str | None) -> dict[str, Any]:
        """The models this key may use, in OpenAI's form."""
        tenant = self._keyring.identify(authorization)
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": "tidegate"}
                for name in sorted(self._desks)
                if tenant.may_use(name)
            ],
        }

    def report_failure(self, record: Record, exc: Exception) -> None:
        """Note that the record's replica failed; it is offered to nobody for a while."""
        slot = record.slot
        if slot is None or record.model is None:
            return
        logger.warning(
            "Replica %s at %s failed request %s: %s",
            slot.replica_id,
            slot.address.site,
            record.request_id,
            exc,
        )
        self._desks[record.model].queue.suspect(slot.replica_id)

    def settle(self, record: Record, outcome: str, *, status: int = 200) -> None:
        """Count a finished request and write its audit line."""
        total_s = time.monotonic() - record.started_s
        self._note_settled(record, status=status, total_s=total_s)
        model = record.model or NOWHERE
        site = record.slot.address.site if record.slot else NOWHERE
        data_class = record.data_class.value if record.data_class else NOWHERE
        self.metrics.requests.labels(model, site, data_class, outcome).inc()
        usage = record.usage
        self.metrics.tokens.labels(model, site, "prompt").inc(usage.prompt_tokens or 0)
        self.metrics.tokens.labels(model, site, "completion").inc(usage.completion_tokens or 0)
        line = {
            "request_id": record.request_id,
            "tenant": record.tenant,
            "model": record.model,
            "data_class": data_class,
            "site": site,
            "replica": record.slot.replica_id if record.slot else None,
            "reason": record.slot.reason if record.slot else None,
            "outcome": outcome,
            "status": status,
            "tries": record.tries,
            "waited_s": _rounded(record.waited_s),
            "first_byte_s": _rounded(record.first_byte_s),
            "total_s": _rounded(total_s),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        audit.info("%s", json.dumps(line))

    def observe_signals(self, *, gateway: str, now_s: float) -> GatewaySignals:
        """What the autoscaler may know of this gateway; updates its own gauges on the way."""
        models = tuple(desk.observe(self.metrics) for desk in self._desks.values())
        return GatewaySignals(gateway, now_s, models)

    def stop_routing(self, closing: Mapping[str, Sequence[str]]) -> None:
        """Route nothing more to these pools, by application: they are on their way to zero."""
        for desk in self._desks.values():
            desk.queue.stop_routing(frozenset(closing.get(desk.spec.name, ())))

    async def close(self) -> None:
        """End every stream and connection."""
        for desk in self._desks.values():
            await desk.queue.close()
        await self._upstream.close()

    def _find_desk(self, tenant: Tenant, model: str) -> ModelDesk:
        desk = self._desks.get(model)
        if desk is None or not tenant.may_use(model):
            raise UnknownThingError(
                "model must be one of those GET /v1/models lists for this key.",
                "model",
                "model_not_found",
            )
        return desk

    async def _begin(
        self, desk: ModelDesk, tenant: Tenant, request: CompletionBase, record: Record
    ) -> _Begun:
        """Queue, route and open, once more elsewhere if a replica fails before its first byte."""
        body = render_request(request)
        clearance = Clearance(
            request_id=record.request_id,
            data_class=record.data_class or DataClass.RESTRICTED,
            may_burst=tenant.may_burst,
            body_sha256=hashlib.sha256(body).hexdigest(),
        )
        if not filter_allowed(desk.spec.pools, may_leave_owned=clearance.may_leave_owned):
            raise NotAllowedError(
                "This model has no pool on an owned site, and this request may not leave them.",
                code="no_allowed_site",
            )
        record.may_burst = clearance.may_leave_owned
        record.has_arrived = True
        waiter = desk.queue.arrive(clearance, prompt_tokens=len(body) // _BYTES_PER_TOKEN)
        for record.tries in range(1, _TRIES_MAX + 1):
            slot = record.slot = await desk.queue.wait_for_slot(waiter)
            record.waited_s = time.monotonic() - record.started_s
            try:
                return await self._open(slot, clearance, request, body, record)
            except ReplicaFailedError as exc:
                slot.release()
                self.report_failure(record, exc)
                self.metrics.retries.labels(desk.spec.name).inc()
                waiter.excluded |= {slot.replica_id}
            except BaseException:
                slot.release()
                raise
        raise UnavailableError(
            "The replicas asked failed before they said anything.",
            code="replica_failed",
            retry_after_s=_RETRY_AFTER_FAILURE_S,
        )

    async def _open(
        self,
        slot: HeldSlot,
        clearance: Clearance,
        request: CompletionBase,
        body: bytes,
        record: Record,
    ) -> _Begun:
        """Send the request to the slot's replica and wait for the first bytes worth sending on."""
        address = slot.address
        permit = grant_permit(clearance, site=address.site, is_owned=address.owned)
        exchange = await self._upstream.send(
            permit, address, path=request.path, body=body, slot=slot.token
        )
        try:
            await _check_status(exchange)
            record.engine = exchange.engine
            record.is_stream = request.stream
            rest = exchange.iterate()
            relay = EventRelay(wants_usage=request.wants_usage) if request.stream else None
            if relay is None:
                first = _take_usage(record, await exchange.read())
            else:
                first = await _first_events(relay, rest)
        except BaseException:
            exchange.close()
            raise
        slot.note_read()
        record.first_byte_s = time.monotonic() - record.started_s
        self.metrics.ttft_s.labels(record.model, address.site).observe(record.first_byte_s)
        return _Begun(slot, exchange, first, relay, rest)

    def _note_settled(self, record: Record, *, status: int, total_s: float) -> None:
        """Count, for the autoscaler, how a request went that got as far as the queue."""
        if record.model is None or not record.has_arrived:
            return
        desk = self._desks[record.model]
        desk.served.late += _is_late(record, desk.spec, status=status, total_s=total_s)
        desk.served.refused_may_burst += status in _UNSERVED and record.may_burst
        if record.slot is None or record.first_byte_s is None:
            return
        settled = Settled(
            held_from_s=record.waited_s or 0.0,
            ended_s=total_s,
            first_token_s=record.first_byte_s if record.is_stream else None,
            prompt_tokens=record.usage.prompt_tokens,
            output_tokens=record.usage.completion_tokens,
            cached_tokens=record.usage.cached_tokens,
        )
        desk.served.note(record.slot.address.pool, settled)


def _is_late(record: Record, spec: ModelSpec, *, status: int, total_s: float) -> bool:
    """Whether a request was begun after the promise, or not at all for want of a slot.

    An answer sent whole hides its first token: it is judged by when it got its slot.
    """
    if status in _UNSERVED:
        return True
    begun_s = record.first_byte_s if record.is_stream else record.waited_s
    is_answerable = status == _OK
    return is_answerable and (total_s if begun_s is None else begun_s) > spec.objective.ttft_s


async def _check_status(exchange: Exchange) -> None:
    """Return if the replica answers the request; raise what its status means otherwise."""
    if exchange.status == _OK:
        return
    if exchange.status not in _ENGINE_REFUSALS:
        raise ReplicaFailedError(f"status {exchange.status}")
    raise EngineRefusedError(_engine_message(await exchange.read()))


async def _first_events(relay: EventRelay, rest: AsyncIterator[bytes]) -> bytes:
    try:
        async for piece in rest:
            events = relay.feed(piece)
            if events:
                return events
    except BrokenEventError as exc:
        raise ReplicaFailedError(str(exc)) from exc
    raise ReplicaFailedError("the stream ended before its first event")


def _take_usage(record: Record, body: bytes) -> bytes:
    """Note what an answer sent whole took; return what the client gets of it."""
    try:
        answer = json.loads(body)
        usage = answer.get("usage")
    except (ValueError, AttributeError) as exc:
        raise ReplicaFailedError("the answer isn't a JSON object") from exc
    record.usage = read_usage(usage)
    return hide_reuse(answer) or body


def _engine_message(body: bytes) -> str:
    """What the engine says is wrong, shortened; the client wrote what it may quote."""
    fallback = "The engine can't answer this request."
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return fallback
    return message[:_ENGINE_MESSAGE_CHARS_MAX] if isinstance(message, str) else fallback


def _stated(text: str | None) -> DataClass | None:
    return None if text is None else parse_data_class(text)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
