"""EC2's instance metadata service, version 2: what it announces about the machine it runs on.

Only what the node agent asks: is the instance about to be interrupted, and would AWS rather have it
elsewhere. Standard library only, no credentials; `AWS_EC2_METADATA_SERVICE_ENDPOINT` is honoured.
"""

import http.client
import json
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cluster.errors import BackendError
from cluster.notices import INTERRUPTION_S_MAX, bound_left_s

_ENDPOINT = "http://169.254.169.254"
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - where tokens are, not one
_TOKEN_S = 21600
_ACTION_PATH = "/latest/meta-data/spot/instance-action"
_REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
_LEAVING_ACTIONS = {"terminate", "stop", "hibernate"}
_BODY_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: str
    date: str | None


class MetadataService:
    """One machine's metadata. Calls block for at most `timeout_s` each; a token is kept."""

    def __init__(
        self, endpoint: str, *, now_s: Callable[[], float], timeout_s: float = 1.0
    ) -> None:
        self._endpoint = urllib.parse.urlsplit(endpoint)
        self._now_s = now_s
        self._timeout_s = timeout_s
        self._token: str | None = None

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, now_s: Callable[[], float]
    ) -> "MetadataService | None":
        """The service this machine is told to ask; None where it is told to ask none."""
        if environment.get(_DISABLED_VARIABLE, "").lower() == "true":
            return None
        return cls(environment.get(_ENDPOINT_VARIABLE) or _ENDPOINT, now_s=now_s)

    def find_interruption(self) -> float | None:
        """Return the seconds until the machine is taken away, 0-120; None = nothing is announced.

        A notice that can't be read counts as one whose time isn't known: the full two minutes,
        because the notice is new.

        Raises:
            BackendError: the service doesn't answer.
        """
        answer = self._get(_ACTION_PATH)
        if answer is None:
            return None
        try:
            content = json.loads(answer.body)
            if content["action"] not in _LEAVING_ACTIONS:
                return None
            announced_s = _parse_time(content["time"])
        except (ValueError, KeyError, TypeError):
            return INTERRUPTION_S_MAX
        # The service's own clock, where it says it: the machine's may be wrong.
        return bound_left_s(announced_s, self._read_clock(answer))

    def has_rebalance_advice(self) -> bool:
        """Return whether AWS recommends to move away from this machine.

        Raises:
            BackendError: the service doesn't answer.
        """
        return self._get(_REBALANCE_PATH) is not None

    def _get(self, path: str) -> _Answer | None:
        """Return an answer, None for 404; a token that is no longer taken is fetched anew."""
        for _ in range(2):
            if self._token is None:
                self._token = self._fetch_token()
            answer = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if answer.status != http.client.UNAUTHORIZED:
                break
            self._token = None
        if answer.status == http.client.NOT_FOUND:
            return None
        if answer.status != http.client.OK:
            raise BackendError(f"{path} must answer 200 or 404; got {answer.status}.")
        return answer

    def _fetch_token(self) -> str:
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
        answer = self._ask("PUT", _TOKEN_PATH, header)
        if answer.status != http.client.OK:
            raise BackendError(
                f"{_TOKEN_PATH} must give a token; got {answer.status}. Is IMDSv2 enabled here?"
            )
        return answer.body

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> _Answer:
        host, port = self._endpoint.hostname or "", self._endpoint.port
        connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        try:
            connection.request(
                method, self._endpoint.path.rstrip("/") + path, headers=dict(headers)
            )
            response = connection.getresponse()
            body = response.read(_BODY_BYTES_MAX).decode("utf-8", errors="replace")
            return _Answer(response.status, body, response.getheader("Date"))
        except (OSError, http.client.HTTPException) as exc:
            address = self._endpoint.netloc
            raise BackendError(f"the metadata at {address} must answer; got: {exc}") from exc
        finally:
            connection.close()

    def _read_clock(self, answer: _Answer) -> float:
        """Return the service's wall time, the machine's own where it doesn't say."""
        try:
            return parsedate_to_datetime(answer.date or "").timestamp()
        except ValueError:
            return self._now_s()


def _parse_time(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
