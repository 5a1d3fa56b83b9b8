"""Serve's REST interface on the dashboard: deploy a configuration, ask how far it is."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import TidegateError

_REQUEST_S_MAX = 30.0
_POLL_S = 0.5


class DeployFailed(TidegateError):
    """Serve refused the configuration, or an application didn't come up."""


class ServeApi:
    """Talks to the dashboard of one cluster with Ray's token."""

    def __init__(self, dashboard_url: str, token_file: Path) -> None:
        self._url = f"{dashboard_url}/api/serve/applications/"
        self._token_file = token_file

    def wait_ready(self, *, timeout_s: float) -> None:
        """Block until the dashboard answers.

        Raises:
            DeployFailed: it doesn't within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self._request("GET").raise_for_status()
            except httpx.HTTPError as error:
                if time.monotonic() > deadline_s:
                    raise DeployFailed(
                        f"Ray's dashboard must answer within {timeout_s:.0f} s at {self._url}; "
                        f"got: {error}"
                    ) from error
                time.sleep(_POLL_S)
            else:
                return

    def deploy(self, configuration: Mapping[str, Any]) -> None:
        """Ask Serve to make this configuration true; returns before it is.

        Raises:
            DeployFailed: Serve refused the configuration; the message holds its words.
        """
        response = self._request("PUT", json=dict(configuration))
        if response.is_error:
            raise DeployFailed(
                f"Serve must accept the serve file; it answered {response.status_code}: "
                f"{response.text[:2000]}"
            )

    def statuses(self) -> dict[str, tuple[str, str]]:
        """Return status and message of every application."""
        response = self._request("GET")
        response.raise_for_status()
        applications: dict[str, dict[str, Any]] = response.json().get("applications", {})
        return {
            name: (str(details.get("status")), str(details.get("message", "")))
            for name, details in applications.items()
        }

    def wait_running(
        self, names: list[str], *, timeout_s: float, on_progress: Callable[[str], None]
    ) -> None:
        """Block until every named application runs.

        Raises:
            DeployFailed: one of them failed, or the time is up; says which and what Serve says.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            statuses = self._statuses_or_none()
            states = {name: statuses.get(name, ("NOT_STARTED", "")) for name in names}
            if all(state == "RUNNING" for state, _ in states.values()):
                return
            failed = [name for name, (state, _) in states.items() if state == "DEPLOY_FAILED"]
            if failed:
                raise DeployFailed(f"application {failed[0]} failed: {states[failed[0]][1]}")
            summary = ", ".join(f"{name} {state.lower()}" for name, (state, _) in states.items())
            if time.monotonic() > deadline_s:
                raise DeployFailed(
                    f"applications must run within {timeout_s:.0f} s; now: {summary}. "
                    f"{' '.join(message for _, message in states.values())}"
                )
            on_progress(summary)
            time.sleep(_POLL_S)

    def _statuses_or_none(self) -> dict[str, tuple[str, str]]:
        """Return the statuses; empty while the dashboard is still coming up."""
        try:
            return self.statuses()
        except httpx.HTTPError:
            return {}

    def _request(self, method: str, **options: Any) -> httpx.Response:
        token = self._token_file.read_text().strip()
        return httpx.request(
            method,
            self._url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_REQUEST_S_MAX,
            trust_env=False,
            **options,
        )
