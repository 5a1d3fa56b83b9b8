"""Runs the launcher's commands on a process node, as SSH would on a machine.

Commands run in a shell with the node's environment, `~` is the node's home, and the launcher's
literal /tmp/ray is the node's own Ray folder, so `ray monitor` finds its logs.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
from ray.autoscaler._private.subprocess_output_util import ProcessRunnerError
from ray.autoscaler.command_runner import CommandRunnerInterface

from cluster.backends.process_node import NodeFolder

_POLL_S = 0.1
# `ray start` tries three times, which takes up to 100 s on a busy machine.
_COMMAND_LIMIT_S = 300.0
_LAUNCHERS_RAY_FOLDER = "/tmp/ray/"  # noqa: S108 - a text in Ray's own commands, not a path of ours


class ProcessCommandRunner(CommandRunnerInterface):  # type: ignore[misc] # Ray is untyped
    """Runs commands on one process node."""

    def __init__(self, node: NodeFolder, *, command_limit_s: float = _COMMAND_LIMIT_S) -> None:
        self._node = node
        self._command_limit_s = command_limit_s

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        port_forward: list[tuple[int, int]] | tuple[int, int] | None = None,
        with_output: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        environment_variables: Mapping[str, object] | None = None,
        **_ray_options: Any,
    ) -> str:
        """Return the command's output, or nothing unless `with_output`. Blocks until it ends.

        The launcher's own commands are ended when they take too long. Those with `exit_on_fail`
        are a person's (`ray exec`, `ray attach`): they last, and read keys, as long as wanted.
        """
        self._wait_until_ready(timeout_s=timeout)
        _check_forwarding(port_forward)
        if cmd is None:
            return self._hold()
        exports = _render_exports(environment_variables or {})
        script = exports + cmd.replace(_LAUNCHERS_RAY_FOLDER, f"{self._node.ray_folder}/")
        process = self._start(script, capture=with_output, is_personal=exit_on_fail)
        limit_s = None if exit_on_fail else self._command_limit_s
        output = _wait_for(process, command=cmd, limit_s=limit_s)
        if process.returncode != 0:
            _fail(cmd, process.returncode, is_final=exit_on_fail)
        return output

    def run_rsync_up(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder to the node."""
        _copy(Path(source).expanduser(), self._locate(target), options)

    def run_rsync_down(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder from the node."""
        _copy(self._locate(source), Path(target).expanduser(), options)

    def remote_shell_command_str(self) -> str:
        """Return the command for a shell in the node's environment."""
        return f"env -i bash --rcfile {shlex.quote(str(self._node.env_file))} -i"

    def _start(self, script: str, *, capture: bool, is_personal: bool) -> subprocess.Popen[str]:
        enter = f". {shlex.quote(str(self._node.env_file))}"
        return subprocess.Popen(
            ["/bin/bash", "-c", script],
            cwd=self._node.home,
            env=_read_environment(enter),
            # A group of its own can be ended whole, but may not read from the terminal.
            process_group=None if is_personal else 0,
            stdin=None if is_personal else subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            text=True,
        )

    def _wait_until_ready(self, *, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            instance = self._node.read_instance()
            if instance is not None and time.time() >= instance.ready_s:
                return
            if time.monotonic() >= deadline_s:
                _fail(f"wait for node {self._node.node_id}", 1, is_final=False)
            time.sleep(_POLL_S)

    def _locate(self, path: str) -> Path:
        """Return where a path of the node is on this machine."""
        if path.startswith("~"):
            return self._node.home / path.removeprefix("~").lstrip("/")
        return self._node.home / path.replace(_LAUNCHERS_RAY_FOLDER, f"{self._node.ray_folder}/")

    def _hold(self) -> str:
        """Wait until interrupted, as a forwarding session does; ports need no forwarding here."""
        while True:
            time.sleep(60)


def _read_environment(enter: str) -> dict[str, str]:
    """Return the variables that a node's env.sh exports, and no others."""
    listed = subprocess.run(
        ["/usr/bin/env", "-i", "/bin/bash", "-c", f"{enter} && env -0"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pairs = [entry.partition("=") for entry in listed.split("\0") if entry]
    return {name: text for name, _, text in pairs if name not in {"_", "PWD", "OLDPWD", "SHLVL"}}


def _wait_for(process: subprocess.Popen[str], *, command: str, limit_s: float | None) -> str:
    """Return a command's output once it ended; after `limit_s`, its process group is killed."""
    with process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            message = f"Command must end within {limit_s:g} s; it was killed"
            raise ProcessRunnerError(
                message, "ssh_command_failed", code=process.returncode, command=command
            ) from None
        except BaseException:
            # Interrupted: what shares our group was told by the terminal, what has its own wasn't.
            if limit_s is None:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return output or ""


def _render_exports(variables: Mapping[str, object]) -> str:
    """Return export statements; what isn't text is written as JSON, as Ray's SSH runner does."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in variables.items()
    }
    return "".join(f"export {name}={shlex.quote(text)}; " for name, text in texts.items())


def _check_forwarding(forward: list[tuple[int, int]] | tuple[int, int] | None) -> None:
    pairs = [forward] if isinstance(forward, tuple) else forward or []
    for local, remote in pairs:
        if local != remote:
            raise click.ClickException(
                f"port {local} must equal {remote}: this node shares your machine, so ports need "
                f"no forwarding. Use {remote}."
            )


def _copy(source: Path, target: Path, options: Mapping[str, Any] | None) -> None:
    if source == target:
        return
    if source.is_dir():
        excluded = shutil.ignore_patterns(*((options or {}).get("rsync_exclude") or ()))
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=excluded)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # In one step, as rsync does: the autoscaler reads the cluster file while it is replaced.
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy(source, draft)
    draft.replace(target)


def _fail(command: str, code: int, *, is_final: bool) -> NoReturn:
    if is_final:
        raise click.ClickException(f"Command failed with exit code {code}:\n\n  {command}\n")
    raise ProcessRunnerError("Command failed", "ssh_command_failed", code=code, command=command)
