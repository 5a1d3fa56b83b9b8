"""Runs the launcher's commands on a node over SSH, in the node's environment.

The environment is written into a file on the node first (`~/.tidegate/env.sh`), which each command
reads: so no value of it stands in a process list, and a person who logs in can read it too.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
from ray.autoscaler._private.subprocess_output_util import ProcessRunnerError
from ray.autoscaler.command_runner import CommandRunnerInterface

from cluster.backends.node_environment import ENV_FILE, render_env_file
from cluster.backends.ssh_access import SshTarget
from cluster.errors import BackendError

_POLL_S = 0.5
# Set-up may install a wheel with everything it needs.
_COMMAND_LIMIT_S = 1200.0
_PREPARE_LIMIT_S = 30.0
_REFUSED_EXIT = 255
_HOLD_COMMAND = "while true; do sleep 86400; done"


class SshCommandRunner(CommandRunnerInterface):  # type: ignore[misc] # Ray is untyped
    """Runs commands on one node.

    `locate` returns the node's way once its site knows it, None before; `environment_at` the
    node's variables for an address.
    """

    def __init__(
        self,
        *,
        locate: Callable[[], SshTarget | None],
        environment_at: Callable[[str], Mapping[str, str]],
        command_limit_s: float = _COMMAND_LIMIT_S,
    ) -> None:
        self._locate = locate
        self._environment_at = environment_at
        self._command_limit_s = command_limit_s
        self._prepared: SshTarget | None = None

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
        target = self._prepare(wait_s=timeout)
        forwards = [port_forward] if isinstance(port_forward, tuple) else port_forward or []
        options = [] if with_output else ["-tt"]
        for local, remote in forwards:
            options += ["-L", f"{local}:localhost:{remote}"]
        if cmd is None:
            # A shared connection would keep the ports when this command is gone.
            options += ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
        script = _render_script(cmd or _HOLD_COMMAND, environment_variables or {})
        return self._run_bounded(
            [*target.build_ssh(*options), script],
            named=cmd or "forward ports",
            target=target,
            is_personal=exit_on_fail or cmd is None,
            capture=with_output,
        )

    def run_rsync_up(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder to the node; modes are kept."""
        way = self._prepare(wait_s=_PREPARE_LIMIT_S)
        paths = [os.path.expanduser(source), way.locate_path(target)]  # noqa: PTH111 - keeps a final /
        self._rsync(way, ["--rsync-path", "cd && rsync", *paths], options)

    def run_rsync_down(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder from the node; modes are kept."""
        way = self._prepare(wait_s=_PREPARE_LIMIT_S)
        paths = [way.locate_path(source), os.path.expanduser(target)]  # noqa: PTH111 - keeps a final /
        self._rsync(way, ["--rsync-path", "cd && rsync", *paths], options)

    def remote_shell_command_str(self) -> str:
        """Return the command a person types for a shell on the node."""
        return shlex.join(self._wait_for_target(wait_s=_PREPARE_LIMIT_S).build_ssh())

    def run_init(
        self, *, as_head: bool, file_mounts: Mapping[str, str], sync_run_yet: bool
    ) -> bool | None:
        """Do nothing: the first command has prepared the node."""
        del as_head, file_mounts, sync_run_yet
        return None

    def _prepare(self, *, wait_s: float) -> SshTarget:
        """Return the way to the node, its environment written there once."""
        target = self._wait_for_target(wait_s=wait_s)
        if target != self._prepared:
            text = render_env_file(self._environment_at(target.address))
            try:
                target.run_script(_render_env_script(text), limit_s=_PREPARE_LIMIT_S)
            except BackendError as exc:
                # Not Ray's own error: with this one, the launcher says why and tries again.
                raise click.ClickException(str(exc)) from exc
            self._prepared = target
        return target

    def _wait_for_target(self, *, wait_s: float) -> SshTarget:
        deadline_s = time.monotonic() + wait_s
        while (target := self._locate()) is None:
            if time.monotonic() >= deadline_s:
                raise click.ClickException(
                    f"the node must have an address within {wait_s:g} s; it has none yet."
                )
            time.sleep(_POLL_S)
        return target

    def _rsync(
        self, way: SshTarget, arguments: list[str], options: Mapping[str, Any] | None
    ) -> None:
        filters: list[str] = []
        for pattern in (options or {}).get("rsync_exclude") or ():
            filters += ["--exclude", pattern]
        for file in (options or {}).get("rsync_filter") or ():
            filters += ["--filter", f"dir-merge,- {file}"]
        command = ["rsync", "-az", "--rsh", way.build_rsync_shell(), *filters, *arguments]
        self._run_bounded(
            command,
            named=shlex.join(["rsync", *arguments]),
            target=way,
            is_personal=False,
            capture=False,
        )

    def _run_bounded(
        self, command: list[str], *, named: str, target: SshTarget, is_personal: bool, capture: bool
    ) -> str:
        """Return a command's output; after its limit, or interrupted, it is ended with its ssh."""
        limit_s = None if is_personal else self._command_limit_s
        with subprocess.Popen(
            command,
            # A group of its own can be ended whole, but may not read from the terminal.
            process_group=None if is_personal else 0,
            stdin=None if is_personal else subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=None if is_personal else subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            try:
                output, said = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise ProcessRunnerError(
                    f"{target.login}: command must end within {limit_s:g} s; it was ended",
                    "ssh_command_failed",
                    command=named,
                ) from None
            except BaseException:
                _end(process, is_alone=is_personal)
                raise
        sys.stderr.write(said or "")
        if process.returncode != 0:
            _fail(target, named, process.returncode, said=said or "", is_final=is_personal)
        return output or ""


def _render_script(command: str, variables: Mapping[str, object]) -> str:
    """Return the remote command line: a login shell in the node's home and environment.

    What isn't text is written as JSON, as Ray's own SSH runner does. Each command gets a process
    group of its own (`set -m`): the terminal's end would take along what Ray left running.
    """
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in variables.items()
    }
    exports = "".join(f"export {name}={shlex.quote(text)}; " for name, text in texts.items())
    script = f"set -m; cd ~ && . {ENV_FILE} && {{ {exports}{command}\n}}"
    return f"exec bash --login -c {shlex.quote(script)}"


def _render_env_script(text: str) -> str:
    """Return the script that writes the environment file in one step."""
    return (
        "umask 077\nset -e\nmkdir -p ~/.tidegate\n"
        f"draft={ENV_FILE}.$$\n"
        f'printf %s {shlex.quote(text)} >"$draft"\nmv -f "$draft" {ENV_FILE}\n'
    )


def _end(process: subprocess.Popen[str], *, is_alone: bool) -> None:
    if is_alone:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def _fail(target: SshTarget, command: str, code: int, *, said: str, is_final: bool) -> None:
    if code == _REFUSED_EXIT and said:
        raise click.ClickException(str(target.explain_refusal(said)))
    if is_final:
        raise click.ClickException(
            f"Command failed on {target.login} with exit code {code}:\n\n  {command}\n"
        )
    raise ProcessRunnerError("Command failed", "ssh_command_failed", code=code, command=command)
