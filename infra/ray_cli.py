"""Ray's own command line, run as a user would: up, status, down on one cluster file."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.errors import TidegateError

_TAIL_LINES = 15
_QUERY_S_MAX = 60.0


class RayCommandFailed(TidegateError):
    """A `ray` command ended with an error; the message holds the end of its output."""


class RayCli:
    """Runs `ray` of this Python's environment for one cluster file, with output kept in a log."""

    def __init__(self, cluster_file: Path, log_file: Path) -> None:
        self._cluster_file = cluster_file
        self._log_file = log_file

    def up(self, *, timeout_s: float) -> None:
        """Start the cluster; idempotent. Blocks until the head answers."""
        self._run(
            ["up", "-y", "--no-config-cache", str(self._cluster_file)],
            timeout_s=timeout_s,
            fix=f"Its whole output is in {self._log_file}.",
        )

    def down(self, *, timeout_s: float) -> None:
        """Stop every node of the cluster; idempotent, works with the head dead."""
        self._run(
            ["down", "-y", str(self._cluster_file)],
            timeout_s=timeout_s,
            fix=f"Its whole output is in {self._log_file}.",
        )

    def status(self) -> str:
        """Return what `ray status` prints on the head."""
        return self._run(
            ["exec", str(self._cluster_file), "ray status"],
            timeout_s=_QUERY_S_MAX,
            fix="The cluster's control store doesn't answer: is the head running?",
        )

    def head_ip(self) -> str:
        """Return the head's address."""
        output = self._run(
            ["get-head-ip", str(self._cluster_file)],
            timeout_s=_QUERY_S_MAX,
            fix="Is the head running?",
        )
        return output.split()[-1]

    def _run(self, arguments: list[str], *, timeout_s: float, fix: str) -> str:
        command = [str(Path(sys.executable).parent / "ray"), *arguments]
        # A session of its own: Ctrl-C reaches us, and we decide what is stopped in which order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ray_environment(),
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_session(process)
            output, _ = process.communicate()
            raise RayCommandFailed(
                f"`ray {arguments[0]}` must end within {timeout_s:.0f} s; it still ran. "
                f"{fix}\n{_tail(output)}"
            ) from None
        except BaseException:
            # Ctrl-C while it runs: nobody else would end it.
            _kill_session(process)
            process.wait()
            raise
        with self._log_file.open("a") as log:
            log.write(f"$ ray {' '.join(arguments)}\n{output}\n")
        if process.returncode != 0:
            raise RayCommandFailed(
                f"`ray {arguments[0]}` failed with exit code {process.returncode}. "
                f"{fix}\n{_tail(output)}"
            )
        return output


def _kill_session(process: subprocess.Popen[str]) -> None:
    """End `ray` with its children: a hanging one would hold the pipe we read to its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ray_environment() -> dict[str, str]:
    """Return the environment Ray's commands need from us: token auth, no telemetry, offline."""
    return {
        **os.environ,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _tail(output: str) -> str:
    return "\n".join(f"  | {line}" for line in output.splitlines()[-_TAIL_LINES:])
