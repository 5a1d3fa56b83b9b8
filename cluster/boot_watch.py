"""A command runner that notes when its node became reachable and when its set-up was done."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.backends.contract import CommandRunner
from cluster.model import BootStage


class WatchedRunner:
    """Passes everything on to another runner, and notes boot stages by what passes."""

    def __init__(self, runner: CommandRunner, note: Callable[[BootStage, float], None]) -> None:
        self._runner = runner
        self._note = note
        self._noted: set[BootStage] = set()

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        port_forward: list[tuple[int, int]] | None = None,
        with_output: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        environment_variables: Mapping[str, object] | None = None,
        **ray_options: Any,
    ) -> str:
        """Run a command. Only Ray's start commands, which follow set-up, come with variables."""
        if environment_variables is not None:
            self._note_once(BootStage.SET_UP)
        output = self._runner.run(
            cmd,
            timeout,
            exit_on_fail,
            port_forward,
            with_output,
            environment_variables,
            **ray_options,
        )
        self._note_once(BootStage.REACHABLE)
        return output

    def run_rsync_up(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder to the node."""
        self._runner.run_rsync_up(source, target, options)

    def run_rsync_down(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder from the node."""
        self._runner.run_rsync_down(source, target, options)

    def remote_shell_command_str(self) -> str:
        """Return the command a person types for a shell on the node."""
        return self._runner.remote_shell_command_str()

    def run_init(
        self, *, as_head: bool, file_mounts: Mapping[str, str], sync_run_yet: bool
    ) -> bool | None:
        """Prepare the node before its setup commands."""
        return self._runner.run_init(
            as_head=as_head, file_mounts=file_mounts, sync_run_yet=sync_run_yet
        )

    def _note_once(self, stage: BootStage) -> None:
        if stage not in self._noted:
            self._noted.add(stage)
            self._note(stage, time.time())
