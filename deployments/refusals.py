"""Why a request is refused: one class per HTTP status, so that each status means one thing.

RequestRefusedError
├── MalformedBodyError   400  the body isn't JSON, or not JSON that reads one way only
├── NotAuthorisedError   401  no key, or a key nobody has
├── NotAllowedError      403  this key or class may not do this, however often it asks
├── UnknownThingError    404  no such model or path
├── WrongMethodError     405  the path exists for another method
├── BodyTooLargeError    413  more bytes than the gateway reads
├── InvalidRequestError  422  readable, but a field is unknown, refused, of a wrong type or value
├── BusyError            429  every slot this request may use is taken and its wait is over
├── EngineRefusedError   400  the engine found the request impossible, e.g. longer than its context
├── BrokenStreamError    502  a replica failed after the answer had begun
└── UnavailableError     503  nothing that could answer is running, or what ran failed
"""

import json
from typing import Any, ClassVar

from cluster.errors import TidegateError


class RequestRefusedError(TidegateError):
    """A request that gets no answer; `code` is stable, `param` names the field at fault.

    `headers` are told to the client beside it, once it is known whose request it is.
    """

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """The refusal in OpenAI's error shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }

    def to_body(self) -> bytes:
        """The refusal as the body of an answer."""
        return json.dumps(self.to_dict()).encode()


class MalformedBodyError(RequestRefusedError):
    """The body isn't JSON that reads one way only."""

    status = 400
    error_type = "invalid_request_error"
    default_code = "malformed_body"


class NotAuthorisedError(RequestRefusedError):
    """No key, or a key nobody has; which of the two isn't said."""

    status = 401
    error_type = "authentication_error"
    default_code = "invalid_api_key"


class NotAllowedError(RequestRefusedError):
    """This key or data class may not do this, however often it asks."""

    status = 403
    error_type = "permission_error"
    default_code = "not_allowed"


class UnknownThingError(RequestRefusedError):
    """No such model or path."""

    status = 404
    error_type = "invalid_request_error"
    default_code = "not_found"


class WrongMethodError(RequestRefusedError):
    """The path exists for another method."""

    status = 405
    error_type = "invalid_request_error"
    default_code = "method_not_allowed"


class BodyTooLargeError(RequestRefusedError):
    """More bytes than the gateway reads."""

    status = 413
    error_type = "invalid_request_error"
    default_code = "body_too_large"


class InvalidRequestError(RequestRefusedError):
    """Readable, but a field is unknown, refused, or of a wrong type or value."""

    status = 422
    error_type = "invalid_request_error"
    default_code = "invalid_value"


class BusyError(RequestRefusedError):
    """Every slot this request may use is taken and its wait is over."""

    status = 429
    error_type = "rate_limit_error"
    default_code = "all_slots_busy"


class EngineRefusedError(RequestRefusedError):
    """The engine found the request impossible; asking again changes nothing."""

    status = 400
    error_type = "invalid_request_error"
    default_code = "refused_by_engine"


class BrokenStreamError(RequestRefusedError):
    """A replica failed after the answer had begun: the client has a part of it."""

    status = 502
    error_type = "server_error"
    default_code = "stream_broken"


class UnavailableError(RequestRefusedError):
    """Nothing that could answer is running, or what ran failed before it said anything."""

    status = 503
    error_type = "server_error"
    default_code = "no_replica"
