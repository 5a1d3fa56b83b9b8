"""A stream of server-sent events on its way through: seen, hardly touched.

Pure. Whole events go through as they came. Looked at are the end mark and the event that carries
usage, which is kept back from clients that didn't ask for it; others get it without what it says of
reused prompts (`deployments.usage.hide_reuse`).
"""

import json
from dataclasses import dataclass, field

from deployments.usage import Usage, hide_reuse, read_usage

_GAP = b"\n\n"
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error"'
_EVENT_BYTES_MAX = 8 * 1024 * 1024


class BrokenEventError(Exception):
    """What came isn't a stream of events."""


@dataclass
class EventRelay:
    """One stream; `feed` returns what may be passed on.

    `is_done`: the end mark came. `has_failed`: the engine reported an error of its own on the way.
    """

    wants_usage: bool
    is_done: bool = False
    has_failed: bool = False
    usage: Usage = field(default_factory=Usage)
    _rest: bytes = field(default=b"", repr=False)

    def feed(self, piece: bytes) -> bytes:
        """The whole events complete with `piece`, less what the client didn't ask for."""
        data = self._rest + piece.replace(b"\r\n", b"\n")
        end = data.rfind(_GAP)
        if end < 0:
            self._rest = data
            if len(data) > _EVENT_BYTES_MAX:
                raise BrokenEventError(f"an event is longer than {_EVENT_BYTES_MAX} bytes")
            return b""
        whole, self._rest = data[: end + 2], data[end + 2 :]
        self.has_failed = self.has_failed or _ERROR in whole
        if b'"usage"' not in whole and _DONE not in whole:
            return whole
        return b"".join(self._let_through(event) for event in whole.split(_GAP) if event)

    def _let_through(self, event: bytes) -> bytes:
        """What the client gets of one event."""
        if event.startswith(_DONE):
            self.is_done = True
            return event + _GAP
        if b'"usage"' not in event:
            return event + _GAP
        chunk = _chunk_of(event)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = read_usage(usage)
            if not self.wants_usage and not chunk.get("choices"):
                return b""
        hidden = hide_reuse(chunk)
        return event + _GAP if hidden is None else render_event(hidden)


def render_event(payload: bytes) -> bytes:
    """One event that carries `payload`."""
    return b"data: " + payload + _GAP


def list_chunks(events: bytes) -> list[dict[str, object]]:
    """The JSON objects in whole events, without the end mark."""
    chunks = [_chunk_of(event) for event in events.split(_GAP) if event.startswith(b"data:")]
    return [chunk for chunk in chunks if chunk]


def _chunk_of(event: bytes) -> dict[str, object]:
    """The JSON of an event; empty if it isn't any, which is then the client's to judge."""
    try:
        chunk = json.loads(event.removeprefix(b"data:").strip())
    except ValueError:
        return {}
    return chunk if isinstance(chunk, dict) else {}
