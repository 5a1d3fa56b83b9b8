"""EC2 of one region: every call limited in rate and time, retried, its errors told in our words.

Credentials come from AWS's standard chain (environment, profile, role) and from nowhere else. When
EC2 doesn't accept them, the chain is asked anew by the next call, so new ones need no restart.
botocore's own retries are off: they know neither our rate limit nor our deadline.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.backends.sold_out import SOLD_OUT_CODES
from cluster.errors import BackendError, CredentialsError

logger = logging.getLogger(__name__)

_THROTTLED_CODES = {
    "EC2ThrottledException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_CREDENTIAL_CODES = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_PERMISSION_CODES = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_UNAVAILABLE_CODES = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}
_SERVER_ERROR_STATUS = 500


@dataclass(frozen=True, slots=True)
class CallLimits:
    """How long a call may take and how often it is tried. Seconds.

    `settle_s` is how long EC2's listings may lag behind what it has accepted. No try begins later
    than `total_s` after the first, so a call ends within total_s + connect_s + read_s: less than
    the minute that a backend's call may block.
    """

    connect_s: float = 3.0
    read_s: float = 10.0
    total_s: float = 40.0
    tries_max: int = 6
    pause_s: float = 0.5
    pause_s_max: float = 8.0
    settle_s: float = 60.0


class Ec2CallError(BackendError):
    """EC2 answered with an error: the call had no effect. `code` is EC2's."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_sold_out(self) -> bool:
        """Return whether it means that EC2 has none of what was asked for."""
        return self.code in SOLD_OUT_CODES

    @property
    def is_about_unknown_instance(self) -> bool:
        """Return whether it means that EC2 knows no such instance, or not yet."""
        return self.code.startswith("InvalidInstanceID")


class TokenBucket:
    """So many calls per second, in bursts of twice as many. Thread-safe."""

    def __init__(
        self,
        calls_per_s: float,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._calls_per_s = calls_per_s
        self._burst = max(1.0, 2 * calls_per_s)
        self._now_s = now_s
        self._sleep = sleep
        self._tokens = self._burst
        self._filled_s = now_s()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take one token; waits for it. Those who wait are served one after another."""
        with self._lock:
            now_s = self._now_s()
            grown = self._tokens + (now_s - self._filled_s) * self._calls_per_s
            self._tokens = min(self._burst, grown) - 1
            self._filled_s = now_s
            wait_s = max(0.0, -self._tokens / self._calls_per_s)
        if wait_s:
            self._sleep(wait_s)


class Ec2Client:
    """Calls of one region's EC2. Thread-safe."""

    def __init__(
        self,
        region: str,
        *,
        endpoint_url: str | None = None,
        calls_per_s: float = 2.0,
        limits: CallLimits | None = None,
    ) -> None:
        self.region = region
        self._endpoint_url = endpoint_url
        self._limits = limits or CallLimits()
        self._bucket = TokenBucket(calls_per_s)
        self._client: Any = None
        self._lock = threading.Lock()

    def deadline_s(self) -> float:
        """Return until when the tries of work that begins now may begin, monotonic time."""
        return time.monotonic() + self._limits.total_s

    def call(self, operation: str, *, until_s: float | None = None, **request: Any) -> Any:
        """Return EC2's answer to one call, tried again after throttling, failures and silence.

        A repetition is the same call word for word, so calls that mustn't happen twice carry a
        ClientToken. `until_s` is a deadline shared by several calls.

        Raises:
            CredentialsError: EC2 doesn't accept our credentials, or there are none.
            Ec2CallError: EC2 refused; the call had no effect.
            BackendError: no answer; whether the call took effect is unknown.
        """
        until_s = self.deadline_s() if until_s is None else until_s
        for number in range(self._limits.tries_max):
            self._bucket.take()
            try:
                return self._send(operation, request)
            except _TryAgainError as exc:
                pause_s = self._pick_pause_s(number)
                is_last = number + 1 == self._limits.tries_max
                if is_last or time.monotonic() + pause_s >= until_s:
                    raise BackendError(
                        f"EC2 in {self.region} must answer {operation}; got, {number + 1} times: "
                        f"{exc}. It is tried again later; see AWS's health page if it lasts."
                    ) from exc
                logger.info("EC2 %s %s: %s; again", self.region, operation, exc)
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def list_all(
        self, operation: str, key: str, *, until_s: float | None = None, **request: Any
    ) -> list[Any]:
        """Return the items of all pages, or raise as `call` does: never some of the pages."""
        until_s = self.deadline_s() if until_s is None else until_s
        items: list[Any] = []
        while True:
            page = self.call(operation, until_s=until_s, **request)
            items += page.get(key, [])
            token = page.get("NextToken")
            if not token:
                return items
            request = {**request, "NextToken": token}

    def _send(self, operation: str, request: dict[str, Any]) -> Any:
        from botocore.exceptions import (  # noqa: PLC0415 - boto3 only where AWS is used
            BotoCoreError,
            ClientError,
        )

        try:
            method = getattr(self._open(), operation)
            return method(**request)
        except ClientError as exc:
            raise self._explain_refusal(operation, exc) from exc
        except BotoCoreError as exc:
            raise self._explain_failure(operation, exc) from exc

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                import boto3  # noqa: PLC0415 - only where AWS is used
                from botocore.config import Config  # noqa: PLC0415

                config = Config(
                    connect_timeout=self._limits.connect_s,
                    read_timeout=self._limits.read_s,
                    retries={"mode": "standard", "total_max_attempts": 1},
                )
                self._client = boto3.session.Session().client(
                    "ec2",
                    region_name=self.region,
                    endpoint_url=self._endpoint_url,
                    config=config,
                )
            return self._client

    def _forget_credentials(self) -> None:
        with self._lock:
            self._client = None

    def _explain_refusal(self, operation: str, error: Any) -> Exception:
        details = error.response.get("Error", {})
        code, message = str(details.get("Code", "")), str(details.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _CREDENTIAL_CODES:
            self._forget_credentials()
            return CredentialsError(
                f"EC2 in {self.region} must accept our credentials for {operation}; got {code}: "
                f"{message} Renew them; they are read again by themselves."
            )
        if code in SOLD_OUT_CODES:
            return Ec2CallError(f"{code}: {message}", code=code)
        if code in _THROTTLED_CODES or code in _UNAVAILABLE_CODES:
            return _TryAgainError(f"{code}: {message}")
        if status >= _SERVER_ERROR_STATUS:
            return _TryAgainError(f"{code}: {message} (HTTP {status})")
        hint = " Compare the role's policy with infra/aws_policy.json."
        return Ec2CallError(
            f"EC2 in {self.region} must accept {operation}; got {code}: {message}"
            f"{hint if code in _PERMISSION_CODES else ''}",
            code=code,
        )

    def _explain_failure(self, operation: str, error: Exception) -> Exception:
        from botocore import exceptions  # noqa: PLC0415 - only where AWS is used

        lacking = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
            exceptions.TokenRetrievalError,
            exceptions.SSOTokenLoadError,
        )
        if isinstance(error, lacking):
            self._forget_credentials()
            return CredentialsError(
                f"AWS credentials must be found for {operation}; got: {error}. Set a profile, a "
                "role or the environment variables; type `aws sts get-caller-identity` to check."
            )
        if isinstance(error, exceptions.ParamValidationError):
            return Ec2CallError(str(error), code="ParamValidation")
        return _TryAgainError(f"{type(error).__name__}: {error}")

    def _pick_pause_s(self, number: int) -> float:
        """Return a wait between nothing and a limit that doubles: many callers spread out."""
        limit_s = min(self._limits.pause_s_max, self._limits.pause_s * 2**number)
        return random.uniform(limit_s / 10, limit_s)  # noqa: S311 - jitter, no secret


class _TryAgainError(Exception):
    """The same call may succeed a moment later."""
