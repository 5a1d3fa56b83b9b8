"""Brings our dashboards to a Grafana server: folder, data source, dashboards. Idempotent.

What is there already as it should be is left alone, so that a second push makes no new version. The
token comes from the environment or a file, is sent in the Authorization header and nowhere else.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from cluster.errors import ConfigError, TidegateError

Change = Literal["created", "updated", "unchanged"]
ENV_URL = "GRAFANA_URL"
ENV_TOKEN = "GRAFANA_TOKEN"  # noqa: S105 - the variable's name
ENV_TOKEN_FILE = "GRAFANA_TOKEN_FILE"  # noqa: S105 - as above

_FOLDER_UID = "tidegate"
_FOLDER_TITLE = "Tidegate"
_DATASOURCE_UID = "tidegate-prometheus"
_TIMEOUT_S = 10.0

_Answer = TypeVar("_Answer")


class GrafanaFailed(TidegateError):
    """Grafana couldn't be reached or refused; the message says what to do."""


@dataclass(frozen=True, slots=True)
class GrafanaAccess:
    """Where Grafana is and the token of a service account there."""

    url: str
    token: str

    def __repr__(self) -> str:
        """Return it without the token: values end up in logs."""
        return f"GrafanaAccess(url={self.url!r}, token=...)"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did to one thing."""

    what: str
    name: str
    change: Change
    url: str = ""


def find_access(environment: Mapping[str, str] = os.environ) -> GrafanaAccess:
    """Return the access that the environment describes.

    Raises:
        ConfigError: the URL or the token is missing or unusable.
    """
    url = environment.get(ENV_URL, "").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"{ENV_URL} must be Grafana's address; got {_without_password(url)!r}. "
            f"Type: export {ENV_URL}=https://grafana.example.org"
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"{ENV_URL} must hold no user, password or query; got {_without_password(url)!r}. "
            f"The token goes into {ENV_TOKEN} or the file that {ENV_TOKEN_FILE} names."
        )
    return GrafanaAccess(url, _find_token(environment))


def push_dashboards(
    access: GrafanaAccess,
    dashboards: list[dict[str, Any]],
    *,
    prometheus_url: str | None,
    message: str = "pushed by tidegate",
) -> list[Pushed]:
    """Bring folder, data source and dashboards to Grafana; return what changed.

    `prometheus_url` is Prometheus as Grafana reaches it, None = leave data sources alone.

    Raises:
        GrafanaFailed: Grafana can't be reached, isn't well, or refuses; what was pushed stays.
    """
    client = _Client(access)
    client.check_health()
    pushed = [_push_folder(client)]
    if prometheus_url is not None:
        pushed.append(_push_datasource(client, prometheus_url))
    pushed += [_push_dashboard(client, wanted, message) for wanted in dashboards]
    return pushed


def _find_token(environment: Mapping[str, str]) -> str:
    token = environment.get(ENV_TOKEN, "").strip()
    file = environment.get(ENV_TOKEN_FILE)
    if not token and file:
        try:
            token = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigError(
                f"{ENV_TOKEN_FILE} must name a readable file; got {file}: {exc.strerror}."
            ) from exc
    if not token:
        raise ConfigError(
            f"a token of a Grafana service account with role Editor must be in {ENV_TOKEN}, or in "
            f"the file that {ENV_TOKEN_FILE} names; both are empty. Grafana makes one under "
            "Administration > Service accounts (role Admin if it is to make the data source)."
        )
    return token


def _without_password(url: str) -> str:
    """Return an address that may be shown: of what stands before an @, nothing."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}".partition("?")[0]


def _push_folder(client: "_Client") -> Pushed:
    found = client.find("its folder", lambda api: api.folder.get_folder(_FOLDER_UID))
    if found is None:
        client.call(
            "making the folder",
            lambda api: api.folder.create_folder(_FOLDER_TITLE, uid=_FOLDER_UID),
        )
        return Pushed("folder", _FOLDER_TITLE, "created")
    # A folder that somebody has given another title keeps it: the uid is what counts.
    return Pushed("folder", str(found["title"]), "unchanged")


def _push_datasource(client: "_Client", prometheus_url: str) -> Pushed:
    wanted = {
        "uid": _DATASOURCE_UID,
        "name": "Tidegate Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
    }
    name = wanted["name"]
    found = client.find(
        "its data source", lambda api: api.datasource.get_datasource_by_uid(_DATASOURCE_UID)
    )
    if found is None:
        client.call("making the data source", lambda api: api.datasource.create_datasource(wanted))
        return Pushed("datasource", name, "created")
    if all(found.get(key) == value for key, value in wanted.items()):
        return Pushed("datasource", name, "unchanged")
    client.call(
        "changing the data source",
        lambda api: api.datasource.update_datasource_by_uid(_DATASOURCE_UID, {**found, **wanted}),
    )
    return Pushed("datasource", name, "updated")


def _push_dashboard(client: "_Client", wanted: dict[str, Any], message: str) -> Pushed:
    title = str(wanted["title"])
    found = client.find("the dashboard", lambda api: api.dashboard.get_dashboard(wanted["uid"]))
    if found is not None:
        # Only what is ours is compared: Grafana adds to what it stores.
        stored = {key: found["dashboard"].get(key) for key in wanted}
        meta = found.get("meta", {})
        if stored == wanted and meta.get("folderUid") == _FOLDER_UID:
            return Pushed("dashboard", title, "unchanged", client.absolute(meta.get("url", "")))
    body = {
        "dashboard": {**wanted, "id": None},
        "folderUid": _FOLDER_UID,
        "message": message,
        # The uid is ours: what somebody changed by hand is in Grafana's history of versions.
        "overwrite": True,
    }
    answer = client.call("saving the dashboard", lambda api: api.dashboard.update_dashboard(body))
    change: Change = "created" if found is None else "updated"
    return Pushed("dashboard", title, change, client.absolute(answer.get("url", "")))


class _Client:
    """Grafana's API with our errors: each says what failed, why, and what to do."""

    def __init__(self, access: GrafanaAccess) -> None:
        # Here and not above: `tidegate --help` needs neither Grafana's client nor its HTTP stack.
        from grafana_client import GrafanaApi  # noqa: PLC0415 - see above

        self._url = access.url
        self._api = GrafanaApi.from_url(
            f"{access.url}/", credential=access.token, timeout=_TIMEOUT_S
        )

    def check_health(self) -> None:
        """Raise GrafanaFailed unless Grafana and its database are well."""
        health = self.call("asking for its health", lambda api: api.client.GET("/health"))
        state = health.get("database") if isinstance(health, Mapping) else None
        if state != "ok":
            raise GrafanaFailed(
                f"Grafana at {self._url} must be well; its database is {state!r}. "
                f"Is {ENV_URL} Grafana's address? See {self._url}/api/health."
            )

    def absolute(self, path: str) -> str:
        """Return the address of a page; Grafana's answers begin with its own sub-path."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc}{path}" if path else ""

    def find(self, what: str, ask: Callable[[Any], _Answer]) -> _Answer | None:
        """Return what is there, None if there is no such thing."""
        return self._ask(f"looking for {what}", ask, is_missing_fine=True)

    def call(self, doing: str, ask: Callable[[Any], _Answer]) -> _Answer:
        """Return the answer; what is missing is an error here."""
        answer = self._ask(doing, ask, is_missing_fine=False)
        if answer is None:
            raise GrafanaFailed(f"{doing} at {self._url} failed: Grafana answered nothing.")
        return answer

    def _ask(
        self, doing: str, ask: Callable[[Any], _Answer], *, is_missing_fine: bool
    ) -> _Answer | None:
        from grafana_client.client import GrafanaException  # noqa: PLC0415 - as above
        from niquests.exceptions import RequestException  # noqa: PLC0415 - the client's own HTTP

        try:
            return ask(self._api)
        except GrafanaException as exc:
            if exc.status_code == _NOT_FOUND and is_missing_fine:
                return None
            status, why = exc.status_code, str(exc)
        except RequestException as exc:
            status, why = _UNREACHABLE, type(exc).__name__
        # Outside of `except`: the library's errors hold the request, and with it the token.
        raise GrafanaFailed(_explain(self._url, doing, status, why))


_UNREACHABLE, _UNAUTHORISED, _FORBIDDEN, _NOT_FOUND = 0, 401, 403, 404

_FIXES: Mapping[int, str] = {
    _UNREACHABLE: f"Is it running, and is {ENV_URL} right?",
    _UNAUTHORISED: f"The token in {ENV_TOKEN} or {ENV_TOKEN_FILE} isn't valid (any more): make a "
    "new one under Administration > Service accounts.",
    _FORBIDDEN: "The token's service account lacks the right: it needs role Editor, and Admin for "
    "the data source (or push without --prometheus-url).",
    _NOT_FOUND: f"Is {ENV_URL} Grafana's address, sub-path included?",
}


def _explain(url: str, doing: str, status: int, why: str) -> str:
    answer = "it can't be reached" if status == _UNREACHABLE else f"it answered {status}"
    return f"{doing} at Grafana ({url}) failed: {answer}: {why}. {_FIXES.get(status, '')}".rstrip()
